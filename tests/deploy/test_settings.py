"""What the containers are told is what the processes read, and they would start with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings
from support.deploy_files import (
    PROCESSES,
    ROOT,
    Dockerfile,
    composed,
    environment_of,
    one,
    pods,
    rendered,
)

from tuneloop.gateway.keys.store import KeyFile, Scope, new_key
from tuneloop.gateway.keys.store import Limits as KeyLimits
from tuneloop.gateway.settings import GatewaySettings
from tuneloop.generation.settings import GenerationSettings
from tuneloop.learner.settings import LearnerSettings
from tuneloop.reward.settings import RewardSettings
from tuneloop.settings import load

SETTINGS: dict[str, type[BaseSettings]] = {
    "gateway": GatewaySettings,
    "generation": GenerationSettings,
    "reward": RewardSettings,
    "learner": LearnerSettings,
}
NOT_SETTINGS = ("AWS_", "PG")
FILES = ("/run/secrets/", "/etc/tuneloop/", "/var/lib/tuneloop/keys/")
SOURCES = ["compose cpu", "compose cuda", "chart", "chart with tls"]


def environments() -> dict[str, dict[str, dict[str, str]]]:
    """The environment of each process, by where it is deployed."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for profile in ("cpu", "cuda"):
        services = composed(profile)["services"]
        found[f"compose {profile}"] = {
            process: (services.get(process) or services[f"{process}-cuda"])["environment"]
            for process in PROCESSES
        }
    for name, settings in (
        ("chart", ()),
        ("chart with tls", ('tls.grpcSecret="grpc"', 'tls.natsSecret="nats"')),
    ):
        deployed = pods(rendered(*settings))
        found[name] = {p: environment_of(deployed[p]["containers"][0]) for p in PROCESSES}
    return found


@pytest.fixture(scope="module")
def everywhere() -> dict[str, dict[str, dict[str, str]]]:
    return environments()


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("source", SOURCES)
def test_a_process_would_start_with_its_environment(
    source: str,
    process: str,
    everywhere: dict[str, dict[str, dict[str, str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = Dockerfile().environment(process) | everywhere[source][process]
    for name in list(os.environ):
        if name.startswith("TUNELOOP_"):
            monkeypatch.delenv(name)
    ours = {name: value for name, value in given.items() if name.startswith("TUNELOOP_")}
    others = set(everywhere[source][process]) - set(ours)
    assert all(name.startswith(NOT_SETTINGS) for name in others), others
    for name, value in ours.items():
        if value.startswith(FILES):
            value = str(tmp_path / value.rsplit("/", 1)[1])
            Path(value).write_text("s" * 64)
        monkeypatch.setenv(name, value)
    if process == "gateway":
        keys = Path(os.environ["TUNELOOP_GATEWAY_KEYS_FILE"])
        keys.unlink()
        KeyFile(keys).add(new_key("ann", [Scope.ADMIN], KeyLimits())[1])
    settings = load(SETTINGS[process])
    prefix = f"TUNELOOP_{process.upper()}_"
    unread = [name for name in ours if not name.startswith(prefix)]
    assert unread == []
    for name in ours:
        field = name.removeprefix(prefix).lower().split("__")[0]
        assert field in settings.model_fields_set, name


def test_the_chart_documents_no_setting_that_does_not_exist() -> None:
    """Of those that docs/deploy.md names."""
    words = (ROOT / "docs" / "deploy.md").read_text().replace("`", " ").replace("=", " ").split()
    known = {
        f"TUNELOOP_{process.upper()}_{name.upper()}"
        for process, settings in SETTINGS.items()
        for name in settings.model_fields
    }
    prefixes = tuple(f"TUNELOOP_{process.upper()}_" for process in PROCESSES)
    named = {word.strip(".,;:()[]{}\"'").split("__")[0] for word in words}
    assert {name for name in named if name.startswith(prefixes) and "…" not in name} <= known


@pytest.mark.parametrize("replicas", [1, 3])
def test_nats_takes_the_configuration_of_the_chart(replicas: int, tmp_path: Path) -> None:
    for name, text in one(rendered(f"nats.replicas={replicas}"), "ConfigMap", "nats")[
        "data"
    ].items():
        (tmp_path / name).write_text(text.replace("/data", str(tmp_path)))
    check_nats(tmp_path / "nats.conf")


def test_nats_takes_the_configuration_of_compose() -> None:
    check_nats(ROOT / "deploy" / "nats" / "nats.conf")


def check_nats(config: Path) -> None:
    users = ("gateway", "generation", "reward", "learner", "admin", "cluster")
    passwords = {f"NATS_{user.upper()}_PASSWORD": "s12e3" for user in users}
    binary = Path(sys.executable).with_name("nats-server")
    done = subprocess.run(
        [binary, "-t", "-c", config],
        env=os.environ | passwords | {"POD_NAME": "tuneloop-nats-0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
