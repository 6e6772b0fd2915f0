"""What is declared in pyproject.toml, what that brings, and which imports each package has."""

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
ROOTS = (ROOT / "services" / "tuneloop", ROOT / "learner" / "tuneloop")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SHARED_NAMESPACES = {
    "google.protobuf": "protobuf",
    "google.rpc": "googleapis-common-protos",
    "opentelemetry.exporter.otlp.proto.grpc": "opentelemetry-exporter-otlp-proto-grpc",
    "opentelemetry.exporter.otlp.proto.http": "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry.sdk": "opentelemetry-sdk",
    "opentelemetry": "opentelemetry-api",
}
"""Namespaces of several distributions, the longest names first."""


def declared(*extras: str) -> set[str]:
    """Distributions that the base install and `extras` name, those of extras in extras included."""
    found = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    for extra in extras:
        for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
            if requirement.name == "tuneloop":
                found |= declared(*requirement.extras)
            else:
                found.add(canonicalize_name(requirement.name))
    return found


def closure(requirements: list[str]) -> set[str]:
    """Every package that would come with these, as far as it is installed here."""
    found: set[str] = set()
    waiting = [Requirement(line) for line in requirements if line]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = requirement.extras or {""}
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        if name in found:
            continue
        found.add(name)
        try:
            wanted = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        for line in wanted:
            inner = Requirement(line)
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in extras):
                inner.marker = None
                waiting.append(inner)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """An import of a module that is not ours."""

    file: str
    """Below the folder of the package."""
    module: str
    at_start: bool
    """Made when the file is imported; else by a function, or for types alone."""


def imports() -> list[Import]:
    """Every import of services and learner, without those of tuneloop itself."""
    found = []
    for root in ROOTS:
        for path in sorted(root.rglob("*.py")):
            file = str(path.relative_to(root))
            for module, at_start in imported(ast.parse(path.read_text()), at_start=True):
                if module.split(".")[0] != "tuneloop":
                    found.append(Import(file=file, module=module, at_start=at_start))
    return found


def imported(node: ast.AST, *, at_start: bool) -> Iterator[tuple[str, bool]]:
    """Modules that `node` imports, each with whether that happens at the start."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, at_start) for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.level == 0 and child.module:
            yield child.module, at_start
        later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        yield from imported(child, at_start=at_start and not later and not types)


def distribution_of(module: str) -> str:
    """The distribution that a module comes from."""
    for namespace, name in SHARED_NAMESPACES.items():
        if f"{module}.".startswith(f"{namespace}."):
            return name
    top = module.partition(".")[0]
    return canonicalize_name(installed().get(top, [top])[0])


installed = cache(packages_distributions)
"""Names of distributions by each top-level module; reading them all takes seconds."""
