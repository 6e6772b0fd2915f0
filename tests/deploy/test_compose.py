import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography import x509
from support.deploy_files import PROCESSES, ROOT, Dockerfile, Document, composed, tool

from tuneloop.rpc.access import Role
from tuneloop.rpc.tls import Tls

DEPLOY = ROOT / "deploy"
OURS = {"models", "keys", "generation-cuda", "learner-cuda", *PROCESSES}


@pytest.fixture(scope="module", params=["cpu", "cuda"])
def compose(request: pytest.FixtureRequest) -> Document:
    return composed(request.param)


@pytest.fixture(scope="module")
def services(compose: Document) -> dict[str, Document]:
    found: dict[str, Document] = compose["services"]
    return found


def process_of(name: str) -> str:
    return name.removesuffix("-cuda")


def test_each_process_runs_once(services: dict[str, Document]) -> None:
    running = sorted(process_of(name) for name in services if process_of(name) in PROCESSES)
    assert running == sorted(PROCESSES)
    assert {"nats", "postgres", "prometheus", "grafana"} <= set(services)


def test_everything_is_hardened(services: dict[str, Document]) -> None:
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"privileged", "cap_add"}.isdisjoint(service), name


def test_others_images_are_pinned(services: dict[str, Document]) -> None:
    for name, service in services.items():
        if name not in OURS:
            assert re.search(r":v?\d+\.\d+[.-]", service["image"]), name


def test_our_images_are_targets_of_the_dockerfile(services: dict[str, Document]) -> None:
    dockerfile = Dockerfile()
    for name in OURS & set(services):
        build = services[name]["build"]
        assert build["target"] in dockerfile.stages
        assert services[name]["image"].startswith(f"tuneloop-{build['target']}:")
        if process_of(name) in PROCESSES:
            assert build["target"] == process_of(name)


def test_what_serves_has_a_health_check(services: dict[str, Document]) -> None:
    dockerfile = Dockerfile()
    for name, service in services.items():
        if name in ("models", "keys"):
            continue
        if name in OURS:
            assert "healthcheck" not in service
            assert dockerfile.last(process_of(name), "HEALTHCHECK")
        else:
            assert service["healthcheck"]["test"], name


def test_only_the_edge_has_a_way_out(compose: Document, services: dict[str, Document]) -> None:
    assert compose["networks"]["inside"]["internal"] is True
    outside = {name for name, service in services.items() if "edge" in service.get("networks", {})}
    assert outside == {"gateway", "models", "prometheus", "grafana"}
    for name, service in services.items():
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1", name


def test_addresses_are_those_of_the_images(services: dict[str, Document]) -> None:
    dockerfile = Dockerfile()
    names = {
        alias: process_of(name)
        for name, service in services.items()
        if process_of(name) in PROCESSES
        for alias in (name, *((service["networks"]["inside"] or {}).get("aliases") or ()))
    }
    found = 0
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            if name.endswith("_ADDRESS"):
                host, port = value.removeprefix("dns:///").split(":")
                process = names[host]
                assert name.split("_")[2] == process.upper()
                stage = dockerfile.environment(process)
                assert port == stage[f"TUNELOOP_{process.upper()}_PORT"]
                found += 1
    assert found >= 4


def test_time_to_stop_is_longer_than_the_drain(services: dict[str, Document]) -> None:
    for name, service in services.items():
        for variable, value in service.get("environment", {}).items():
            if variable.endswith("_DRAIN_SECONDS"):
                assert int(service["stop_grace_period"].removesuffix("s")) > float(value), name


def test_secrets_are_files_that_the_script_makes(compose: Document, tmp_path: Path) -> None:
    for script in ("secrets.sh", "certificates.sh"):
        shutil.copy(DEPLOY / script, tmp_path)
    made = make_secrets(tmp_path)
    secrets = DEPLOY / "secrets"
    wanted = {Path(s["file"]).relative_to(secrets).as_posix() for s in compose["secrets"].values()}
    assert set(made) - wanted == {"grpc/ca.key", "grpc/operator.crt", "grpc/operator.key"}
    assert wanted <= set(made)
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0
    assert (tmp_path / "secrets" / "grpc" / "ca.key").stat().st_mode & 0o077 == 0
    assert make_secrets(tmp_path) == made


def make_secrets(folder: Path) -> dict[str, bytes]:
    subprocess.run([folder / "secrets.sh"], check=True, capture_output=True)
    made = folder / "secrets"
    return {
        path.relative_to(made).as_posix(): path.read_bytes()
        for path in made.rglob("*")
        if path.is_file()
    }


def test_the_scripts_certificates_are_those_of_the_roles(tmp_path: Path) -> None:
    script = DEPLOY / "certificates.sh"
    given = [script, tmp_path, "tuneloop-%.prod.svc"]
    subprocess.run(given, check=True, capture_output=True)
    for role in Role:
        tls = Tls.from_files(
            ca=tmp_path / "ca.crt", cert=tmp_path / f"{role}.crt", key=tmp_path / f"{role}.key"
        )
        certificate = x509.load_pem_x509_certificate(tls.cert or b"")
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(tls.ca or b""))
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        hosts = names.value.get_values_for_type(x509.DNSName)
        assert hosts == [role.value, f"tuneloop-{role}.prod.svc"]


def test_a_secret_goes_only_to_who_needs_it(services: dict[str, Document]) -> None:
    readers: dict[str, set[str]] = {}
    for name, service in services.items():
        for secret in service.get("secrets", []):
            readers.setdefault(secret["source"], set()).add(process_of(name))
        for variable, value in service.get("environment", {}).items():
            if value and value.startswith("/run/secrets/"):
                targets = {secret["target"] for secret in service["secrets"]}
                assert value in targets, (name, variable)
    assert readers["manifest_private"] == {"learner"}
    assert readers["gateway_secret"] == {"gateway"}
    assert readers["postgres_password"] == {"postgres", "learner"}
    for process in PROCESSES:
        assert readers[f"nats_{process}_password"] == {"nats", process}
        assert readers[f"grpc_{process}.key"] == {process}


def test_what_is_mounted_from_here_is_here(services: dict[str, Document]) -> None:
    for name, service in services.items():
        for volume in service.get("volumes", []):
            if volume["type"] == "bind":
                assert Path(volume["source"]).exists(), (name, volume["source"])
                assert volume["read_only"], name


@pytest.mark.parametrize(
    ("arguments", "gibibytes"),
    [(("--gpu", "h100"), {"generation-cuda": 8, "learner-cuda": 23}), (("--gpu", "cpu"), {})],
)
def test_compose_takes_the_sizes_of_a_model(
    arguments: Sequence[str], gibibytes: dict[str, int]
) -> None:
    given = ["doctor", "--plan", "--model", "qwen3-8b", "--values", "compose", *arguments]
    lines = tool("tuneloop", *given).stdout.splitlines()
    variables = dict(line.split("=") for line in lines)
    services = composed(variables.pop("COMPOSE_PROFILES"), **variables)["services"]
    for name, size in gibibytes.items():
        limit = services[name]["deploy"]["resources"]["limits"]["memory"]
        assert int(limit) == size << 30
    # Everything printed is read: a limit, or a setting of a container.
    told = {
        name: value
        for service in services.values()
        for name, value in service.get("environment", {}).items()
    }
    for name, value in variables.items():
        if not name.startswith(("TUNELOOP_MEMORY_OF_", "TUNELOOP_WEIGHTS_KIND")):
            assert told[name] == value
    for process in ("GENERATION", "LEARNER"):
        assert told[f"TUNELOOP_{process}_WEIGHTS_KIND"] == "lora"
        sizes = {
            s["deploy"]["resources"]["limits"]["memory"] for s in services.values() if "deploy" in s
        }
        assert str(int(variables[f"TUNELOOP_MEMORY_OF_{process}"][:-1]) << 30) in sizes
