"""gRPC between processes with TLS: who may call, whom to believe, and half-set settings."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import trustme
from support.nats_servers import Certificate, make_certificate

from tuneloop.errors import SettingsError
from tuneloop.gateway.settings import GatewaySettings
from tuneloop.generation.settings import GenerationSettings
from tuneloop.learner.settings import LearnerSettings
from tuneloop.reward.settings import RewardSettings
from tuneloop.rpc.channel import connect
from tuneloop.rpc.probe import is_serving
from tuneloop.rpc.server import Server
from tuneloop.rpc.tls import Tls
from tuneloop.settings import load


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def generation(authority: trustme.CA, folder: Path) -> Certificate:
    return make_certificate(authority, folder / "generation", "generation.example", "127.0.0.1")


@pytest.fixture(scope="module")
def gateway(authority: trustme.CA, folder: Path) -> Certificate:
    return make_certificate(authority, folder / "gateway", "gateway.example")


@pytest.fixture(scope="module")
def stranger(folder: Path) -> Certificate:
    return make_certificate(trustme.CA(), folder / "stranger", "127.0.0.1")


def tls_of(certificate: Certificate) -> Tls:
    return Tls.from_files(ca=certificate.ca, cert=certificate.cert, key=certificate.key)


@pytest.fixture
async def server(generation: Certificate) -> AsyncIterator[Server]:
    """One that demands client certificates."""
    server = Server(host="127.0.0.1", port=0, tls=tls_of(generation), drain_seconds=0)
    await server.start()
    await server.set_serving(True)
    yield server
    await server.stop()


async def answers(server: Server, tls: Tls | None, name: str | None = None) -> bool:
    channel = connect(f"127.0.0.1:{server.port}", tls, name=name)
    try:
        return await is_serving(channel, seconds=5)
    finally:
        await channel.close()


async def test_only_clients_of_the_authority_may_call(
    server: Server, generation: Certificate, gateway: Certificate, stranger: Certificate
) -> None:
    assert await answers(server, tls_of(gateway))
    assert await answers(server, tls_of(generation))
    assert not await answers(server, None)
    assert not await answers(server, Tls(ca=gateway.ca.read_bytes()))
    forged = Tls(
        ca=gateway.ca.read_bytes(), cert=stranger.cert.read_bytes(), key=stranger.key.read_bytes()
    )
    assert not await answers(server, forged)


async def test_a_client_believes_only_its_authority_and_the_right_name(
    server: Server, gateway: Certificate, stranger: Certificate
) -> None:
    elsewhere = Tls(
        ca=stranger.ca.read_bytes(), cert=gateway.cert.read_bytes(), key=gateway.key.read_bytes()
    )
    assert not await answers(server, elsewhere)
    assert not await answers(server, tls_of(gateway), name="reward.example")
    assert await answers(server, tls_of(gateway), name="generation.example")


async def test_without_an_authority_a_server_takes_every_client(
    generation: Certificate, gateway: Certificate
) -> None:
    tls = Tls.from_files(ca=None, cert=generation.cert, key=generation.key)
    server = Server(host="127.0.0.1", port=0, tls=tls, drain_seconds=0)
    await server.start()
    await server.set_serving(True)
    assert await answers(server, Tls(ca=gateway.ca.read_bytes()))
    await server.stop()


@pytest.mark.parametrize("module", ["tuneloop.rpc.probe", "tuneloop.cli.healthcheck"])
async def test_the_probe_asks_with_the_processs_own_settings(
    server: Server, generation: Certificate, module: str
) -> None:
    def probe(**settings: object) -> subprocess.CompletedProcess[str]:
        environment = {
            f"TUNELOOP_GENERATION_{name.upper()}": str(value) for name, value in settings.items()
        }
        return subprocess.run(
            [sys.executable, "-c", f"from {module} import main; main()", "generation"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )

    tls = {
        "grpc_tls_ca_file": generation.ca,
        "grpc_tls_cert_file": generation.cert,
        "grpc_tls_key_file": generation.key,
    }
    asked = await asyncio.to_thread(probe, host="0.0.0.0", port=server.port, **tls)
    assert (asked.returncode, asked.stderr) == (0, "")
    await server.set_serving(False)
    assert (await asyncio.to_thread(probe, port=server.port, **tls)).returncode == 1
    half = await asyncio.to_thread(probe, port=server.port, grpc_tls_cert_file=generation.cert)
    assert half.returncode == 2
    assert "grpc_tls_key_file" in half.stderr


COMMON = {
    "model": "/m",
    "weights_uri": "/w",
    "signing_key_file": "/k",
    "verify_key_file": "/k",
    "data_dir": "/d",
}


@pytest.mark.parametrize(
    ("settings_class", "given", "named"),
    [
        pytest.param(
            GenerationSettings, {"GRPC_TLS_CERT_FILE": "c"}, "grpc_tls_key_file", id="no-key"
        ),
        pytest.param(
            RewardSettings, {"GRPC_TLS_CA_FILE": "c"}, "grpc_tls_cert_file", id="no-certificate"
        ),
        pytest.param(
            LearnerSettings,
            {"GRPC_TLS_CERT_FILE": "c", "GRPC_TLS_KEY_FILE": "k"},
            "grpc_tls_ca_file",
            id="no-authority",
        ),
        pytest.param(RewardSettings, {"NATS_USER": "u"}, "nats_password_file", id="no-password"),
        pytest.param(RewardSettings, {"NATS_PASSWORD_FILE": "p"}, "nats_user", id="no-user"),
        pytest.param(
            GenerationSettings,
            {"NATS_NKEY_SEED_FILE": "a", "NATS_CREDENTIALS_FILE": "b"},
            "at most one",
            id="two-identities",
        ),
        pytest.param(LearnerSettings, {"NATS_URL": "tls://a:4222"}, "nats_tls_ca_file", id="no-ca"),
        pytest.param(
            GenerationSettings,
            {"NATS_URL": "tls://a:4222,nats://b:4222", "NATS_TLS_CA_FILE": "c"},
            "nats_url",
            id="one-server-in-the-clear",
        ),
        pytest.param(LearnerSettings, {"NATS_REPLICAS": "2"}, "nats_replicas", id="even"),
    ],
)
def test_what_is_set_by_half_is_refused_by_name(
    settings_class: type, given: Mapping[str, str], named: str
) -> None:
    prefix = settings_class.model_config["env_prefix"]
    required = {name: path for name, path in COMMON.items() if name in settings_class.model_fields}
    environment = {f"{prefix}{name}": value for name, value in given.items()}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with pytest.raises(SettingsError, match=named):
            load(settings_class, environment, **required)


def test_files_that_cannot_be_used_are_named(
    tmp_path: Path, generation: Certificate, gateway: Certificate
) -> None:
    (tmp_path / "noise").write_text("no PEM")
    for files, named in (
        ({"ca": tmp_path / "absent"}, "grpc_tls_ca_file.*absent"),
        ({"ca": tmp_path / "noise"}, "grpc_tls_ca_file: not a PEM certificate"),
        ({"cert": generation.cert, "key": tmp_path / "noise"}, "grpc_tls_key_file: not an"),
        ({"cert": generation.cert, "key": gateway.key}, "not the key of grpc_tls_cert_file"),
    ):
        with pytest.raises(SettingsError, match=named):
            Tls.from_files(**{"ca": None, "cert": None, "key": None} | files)


def test_the_gateway_only_calls(gateway: Certificate) -> None:
    settings = GatewaySettings(secret="s" * 32, grpc_tls_ca_file=gateway.ca)
    assert settings.grpc_tls == Tls(ca=gateway.ca.read_bytes())
