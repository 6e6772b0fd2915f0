"""The rules of the source tree that no linter knows: `python tests/support/structure.py`.

Docs and reasons: docs/architecture.md and CONTRIBUTING.md.
"""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

MODULES_IN_A_FOLDER = 14
LINES_OF_A_MODULE = 350
LINES_OF_A_FUNCTION = 60
SMALL_LINES = 40
SMALL_MODULES = 14
"""Modules below `SMALL_LINES` that there may be: settings, protocols and the like."""
ODD_WORDS = re.compile(r"\b(anew|whoever|mend(s|ed)?|for ever)\b", re.IGNORECASE)
"""Words that a reader of English documentation stumbles over."""
TEXTS = ("*.md", "docs/**/*.md", "services/**/*.py", "learner/**/*.py")
PAGES = ("services/**/*.js", "services/**/*.html")


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One file of the source tree."""

    path: Path
    """Relative to the root of the repository."""
    text: str
    tree: ast.Module


def modules_in(root: Path) -> dict[str, Module]:
    """Return the modules of services and learner by dotted name, without generated code."""
    found = {}
    for source in ("services", "learner"):
        for file in sorted((root / source).rglob("*.py")):
            path = file.relative_to(root)
            if "_pb2" in path.name or "migrations" in path.parts:
                continue
            text = file.read_text()
            name = ".".join(path.with_suffix("").parts[1:]).removesuffix(".__init__")
            found[name] = Module(path=path, text=text, tree=ast.parse(text))
    return found


def crowded_folders(modules: Mapping[str, Module]) -> Iterator[str]:
    """Name folders with more modules than a reader can hold."""
    paths = [module.path for module in modules.values() if module.path.name != "__init__.py"]
    for folder, count in Counter(path.parent for path in paths).items():
        if count > MODULES_IN_A_FOLDER:
            yield f"{folder}: {count} modules, at most {MODULES_IN_A_FOLDER}"


def unsuitable_sizes(modules: Mapping[str, Module]) -> Iterator[str]:
    """Name modules and functions that are too long, and all small modules if there are many."""
    small = []
    for module in modules.values():
        lines = len(module.text.splitlines())
        if lines > LINES_OF_A_MODULE:
            yield f"{module.path}: {lines} lines, at most {LINES_OF_A_MODULE}"
        if lines < SMALL_LINES and module.path.name != "__init__.py":
            small.append(str(module.path))
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                length = node.end_lineno - node.lineno + 1
                if length > LINES_OF_A_FUNCTION:
                    yield (
                        f"{module.path}:{node.lineno}: {node.name} has {length} lines, "
                        f"at most {LINES_OF_A_FUNCTION}"
                    )
    if len(small) > SMALL_MODULES:
        yield (
            f"{len(small)} modules have fewer than {SMALL_LINES} lines, at most {SMALL_MODULES} "
            f"may: {', '.join(small)}"
        )


def imports_of(modules: Mapping[str, Module]) -> dict[str, set[str]]:
    """Return which of the modules each one imports, inside functions too."""
    graph: dict[str, set[str]] = {}
    for name, module in modules.items():
        graph[name] = set()
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    graph[name].add(full if full in modules else node.module)
            elif isinstance(node, ast.Import):
                graph[name].update(alias.name for alias in node.names)
        graph[name] = {other for other in graph[name] if other in modules and other != name}
    return graph


def import_circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import one another, each sorted.

    Every module of a group reaches every other: the strongly connected components of two or more.
    """
    reached = {name: _reachable(graph, name) for name in graph}
    groups = {
        tuple(sorted({name} | {o for o in reached[name] if name in reached[o]})) for name in graph
    }
    return [list(group) for group in sorted(groups) if len(group) > 1]


def _reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for other in graph[waiting.pop()] - seen:
            seen.add(other)
            waiting.append(other)
    return seen


def odd_words(root: Path) -> Iterator[str]:
    """Name the places of words that have a plainer spelling."""
    for pattern in (*TEXTS, *PAGES):
        for file in sorted(root.glob(pattern)):
            for number, line in enumerate(file.read_text().splitlines(), start=1):
                if found := ODD_WORDS.search(line):
                    yield f"{file.relative_to(root)}:{number}: write '{found[0]}' in plainer words"


def problems_of(root: Path) -> list[str]:
    """Return a line for each broken rule."""
    modules = modules_in(root)
    circles = import_circles(imports_of(modules))
    return [
        *crowded_folders(modules),
        *unsuitable_sizes(modules),
        *(f"import circle: {', '.join(circle)}" for circle in circles),
        *odd_words(root),
    ]


def main() -> None:
    """Print the problems; exit with 1 if there are any."""
    problems = problems_of(Path(__file__).resolve().parents[2])
    print("\n".join(problems) or "The source tree keeps its rules.")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
