"""With mTLS the name in a certificate says which methods its holder may call."""

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_reflection.v1alpha import reflection_pb2
from support.nats_servers import Certificate, make_certificate

from tuneloop.errors import SettingsError
from tuneloop.generation.settings import GenerationSettings
from tuneloop.learner.settings import LearnerSettings
from tuneloop.reward.settings import RewardSettings
from tuneloop.rpc import server as rpc_server
from tuneloop.rpc.access import Role, actor_of
from tuneloop.rpc.channel import connect
from tuneloop.rpc.probe import is_serving
from tuneloop.rpc.server import Server
from tuneloop.rpc.settings import RpcServerSettings
from tuneloop.rpc.tls import Tls
from tuneloop.settings import load
from tuneloop.v1 import (
    generation_pb2,
    generation_pb2_grpc,
    learner_pb2,
    learner_pb2_grpc,
    reward_pb2,
    reward_pb2_grpc,
)

METHODS = {
    f"{service.name}/{method.name}": service.full_name
    for proto in (generation_pb2, reward_pb2, learner_pb2)
    for service in proto.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
MAY = {
    "gateway": METHODS.keys() - {"GenerationService/LoadWeights"},
    "learner": {
        "GenerationService/Generate",
        "GenerationService/LoadWeights",
        "GenerationService/GetPolicy",
        "RewardService/ScoreRollouts",
    },
    "operator": METHODS.keys(),
    "generation": set(),
    "reward": set(),
    "somebody.example": set(),
}


class Generation(generation_pb2_grpc.GenerationServiceServicer):
    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield generation_pb2.GenerateResponse()


class Learner(learner_pb2_grpc.LearnerServiceServicer):
    async def Pause(self, request: Any, context: Any) -> Any:
        return learner_pb2.PauseResponse(state=actor_of(request.actor))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Certificate]:
    folder, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    names = {name: (name,) for name in MAY} | {"server": ("127.0.0.1",), "both": (*MAY,)}
    return {
        name: make_certificate(authority, folder / name, *hosts) for name, hosts in names.items()
    }


def tls_of(certificate: Certificate) -> Tls:
    return Tls.from_files(ca=certificate.ca, cert=certificate.cert, key=certificate.key)


async def serve(tls: Tls | None, **options: Any) -> Server:
    server = Server(host="127.0.0.1", port=0, tls=tls, drain_seconds=0, **options)
    server.add(generation_pb2_grpc.add_GenerationServiceServicer_to_server, Generation())
    server.add(
        reward_pb2_grpc.add_RewardServiceServicer_to_server, reward_pb2_grpc.RewardServiceServicer()
    )
    server.add(learner_pb2_grpc.add_LearnerServiceServicer_to_server, Learner())
    await server.start()
    await server.set_serving(True)
    return server


@pytest.fixture
async def server(certificates: dict[str, Certificate]) -> AsyncIterator[Server]:
    server = await serve(tls_of(certificates["server"]))
    yield server
    await server.stop()


async def refusal(channel: grpc.aio.Channel, method: str) -> str | None:
    """Call with an empty request; return why not, None if it came as far as the servicer."""
    path = f"/tuneloop.v1.{method}"
    if method.endswith("/Generate"):
        call: Any = channel.unary_stream(path)(b"")
        outcome = call.read()
    else:
        outcome = channel.unary_unary(path)(b"")
    try:
        await outcome
    except grpc.aio.AioRpcError as error:
        denied = error.code() is grpc.StatusCode.PERMISSION_DENIED
        return str(error.details()) if denied else None
    return None


@pytest.mark.parametrize("name", MAY)
async def test_each_role_may_call_what_it_needs_and_nothing_else(
    name: str, server: Server, certificates: dict[str, Certificate]
) -> None:
    async with connect(f"127.0.0.1:{server.port}", tls_of(certificates[name])) as channel:
        assert await is_serving(channel)
        passed = {method for method in METHODS if await refusal(channel, method) is None}
        assert passed == set(MAY[name])


async def test_a_refusal_names_method_certificate_and_who_may(
    server: Server, certificates: dict[str, Certificate]
) -> None:
    async with connect(f"127.0.0.1:{server.port}", tls_of(certificates["reward"])) as channel:
        found = await refusal(channel, "LearnerService/Promote")
    assert found is not None
    assert "LearnerService/Promote" in found
    assert "reward" in found
    assert "gateway, operator" in found


async def test_one_certificate_may_have_several_roles_and_a_role_other_names(
    certificates: dict[str, Certificate],
) -> None:
    tls = tls_of(certificates["server"])
    server = await serve(tls)
    async with connect(f"127.0.0.1:{server.port}", tls_of(certificates["both"])) as channel:
        assert await refusal(channel, "LearnerService/Promote") is None
    await server.stop()
    server = await serve(tls, peers={Role.GATEWAY: ("somebody.example",)})
    for name, passes in (("somebody.example", True), ("gateway", False), ("operator", True)):
        async with connect(f"127.0.0.1:{server.port}", tls_of(certificates[name])) as channel:
            assert (await refusal(channel, "LearnerService/Pause") is None) == passes, name
    await server.stop()


@pytest.mark.parametrize(
    ("name", "claimed", "recorded"),
    [
        ("gateway", "key:ann", "key:ann"),
        ("gateway", "", "cert:gateway"),
        ("operator", "key:ann", "cert:operator"),
    ],
)
async def test_the_actor_is_the_certificates_name_unless_the_gateway_vouches(
    name: str,
    claimed: str,
    recorded: str,
    server: Server,
    certificates: dict[str, Certificate],
) -> None:
    async with connect(f"127.0.0.1:{server.port}", tls_of(certificates[name])) as channel:
        learner = learner_pb2_grpc.LearnerServiceStub(channel)
        answer: Any = await learner.Pause(learner_pb2.PauseRequest(actor=claimed))
    assert answer.state == recorded


async def test_what_operators_do_and_strangers_try_is_in_the_audit_log(
    server: Server, certificates: dict[str, Certificate], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="tuneloop.audit"):
        for name in ("gateway", "operator", "somebody.example", "somebody.example"):
            async with connect(f"127.0.0.1:{server.port}", tls_of(certificates[name])) as channel:
                await refusal(channel, "LearnerService/Pause")
    lines = [json.loads(r.getMessage()) for r in caplog.records if r.name == "tuneloop.audit"]
    assert [(line["actor"], line["action"], line["outcome"]) for line in lines] == [
        ("cert:operator", "LearnerService/Pause", "ok"),
        ("cert:somebody.example", "LearnerService/Pause", "permission_denied"),
    ]


async def test_without_certificates_everybody_may_and_says_who_it_is() -> None:
    server = await serve(None)
    async with connect(f"127.0.0.1:{server.port}") as channel:
        learner = learner_pb2_grpc.LearnerServiceStub(channel)
        answer: Any = await learner.Pause(learner_pb2.PauseRequest(actor="http:ann"))
    await server.stop()
    assert answer.state == "http:ann"


@pytest.mark.parametrize("token", ["", "wrong", "s3cret"])
async def test_with_a_token_nobody_calls_without_it(token: str) -> None:
    server = await serve(None, token="s3cret")
    async with connect(f"127.0.0.1:{server.port}", token=token) as channel:
        assert await is_serving(channel)
        learner = learner_pb2_grpc.LearnerServiceStub(channel)
        generation = generation_pb2_grpc.GenerationServiceStub(channel)
        paused: Any = learner.Pause(learner_pb2.PauseRequest(actor="http:ann"))
        stream: Any = generation.Generate(generation_pb2.GenerateRequest())
        with contextlib.suppress(grpc.aio.AioRpcError):
            await paused
        with contextlib.suppress(grpc.aio.AioRpcError):
            assert [answer async for answer in stream] != []
        codes = [await paused.code(), await stream.code()]
    await server.stop()
    passes = token == "s3cret"
    assert codes == [grpc.StatusCode.OK if passes else grpc.StatusCode.PERMISSION_DENIED] * 2


def test_a_token_file_without_a_token_is_named(tmp_path: Path) -> None:
    file = tmp_path / "token"
    values: dict[str, Any] = NEEDED[RewardSettings] | {"grpc_token_file": file}
    for content in (None, "", "zwölf", "a\nb"):
        if content is not None:
            file.write_text(content)
        with pytest.raises(SettingsError, match="grpc_token_file"):
            _ = load(RewardSettings, {}, **values).grpc_token
    file.write_text("s3cret\n")
    assert load(RewardSettings, {}, **values).grpc_token == "s3cret"


@pytest.mark.parametrize("on_loopback", [True, False])
async def test_reflection_is_for_loopback(
    on_loopback: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc_server, "is_loopback", lambda _: on_loopback)
    server = await serve(None)
    async with connect(f"127.0.0.1:{server.port}") as channel:
        # As one message: a stream that the server ends early may fail as it writes (INTERNAL).
        method: Any = channel.unary_unary(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        code = await method(reflection_pb2.ServerReflectionRequest(list_services="")).code()
    await server.stop()
    assert code is (grpc.StatusCode.OK if on_loopback else grpc.StatusCode.UNIMPLEMENTED)


NEEDED = {
    GenerationSettings: {"model": "/m", "weights_uri": "/w", "verify_key_file": "/k"},
    RewardSettings: {"model": "/m", "weights_uri": "/w", "verify_key_file": "/k"},
    LearnerSettings: {
        "model": "/m",
        "weights_uri": "/w",
        "verify_key_file": "/k",
        "signing_key_file": "/k",
        "data_dir": "/d",
    },
}


@pytest.mark.parametrize("settings_class", NEEDED)
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "learner.example"])
def test_a_network_needs_tls_or_to_be_told(
    settings_class: type[RpcServerSettings], host: str, tmp_path: Path
) -> None:
    values: dict[str, Any] = NEEDED[settings_class] | {"host": host}
    with pytest.raises(SettingsError, match=r"grpc_tls_cert_file.*grpc_plaintext"):
        load(settings_class, {}, **values)
    assert load(settings_class, {}, **values, grpc_plaintext=True).host == host
    file = tmp_path / "pem"
    tls = {f"grpc_tls_{name}_file": file for name in ("cert", "key", "ca")}
    assert load(settings_class, {}, **values, **tls).host == host
    for loopback in ("127.0.0.1", "localhost", "::1"):
        assert load(settings_class, {}, **values | {"host": loopback}).host == loopback
