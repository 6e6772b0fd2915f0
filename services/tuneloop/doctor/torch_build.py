"""Checks whether the installed torch fits the machine, from its files, without importing it."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tuneloop.doctor.finding import Finding, fine, problem, warning
from tuneloop.doctor.machine import Gpu
from tuneloop.doctor.packages import installed_version

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
