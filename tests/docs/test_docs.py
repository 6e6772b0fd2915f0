"""The docs say what the code does: generated pages are current, named commands and paths exist."""

import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from docs import render_api, render_settings
from tests.support.clients_tools import CLIENTS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [
    page
    for pattern in ("*.md", "docs/*.md", "examples/**/*.md")
    for page in ROOT.glob(pattern)
    if "node_modules" not in page.parts
]
SOURCES = "benchmarks|deploy|docs|examples|learner/tuneloop|proto|services|tests"
SOURCE_ROOTS = [ROOT / source for source in ("proto", "services", "learner")]
GENERATED = {"deploy/secrets", "deploy/secrets/grafana_password"}
"""Paths that `deploy/secrets.sh` writes."""


def test_settings_page_is_current() -> None:
    assert render_settings.PAGE.read_text() == render_settings.render(), (
        "docs/settings.md is out of date: python -m docs.render_settings"
    )


def test_table_of_openai_fields_is_current() -> None:
    page = render_api.PAGE.read_text()
    assert page == render_api.render(page), "docs/api.md is out of date: python -m docs.render_api"


def test_each_client_of_the_table_has_its_tests() -> None:
    for tests in CLIENTS.values():
        for test in tests.values():
            path, _, name = test.partition("::")
            assert f"def {name}(" in (ROOT / path).read_text(), test


def test_every_setting_has_a_meaning() -> None:
    for settings_class in render_settings.PROCESSES.values():
        for name, field in settings_class.model_fields.items():
            assert field.description, f"{settings_class.__name__}.{name}"


def test_settings_of_the_readme_exist() -> None:
    page = render_settings.render() + "TUNELOOP_API_KEY TUNELOOP_LOG_LEVEL TUNELOOP_CACHE_DIR"
    for name in re.findall(r"TUNELOOP_[A-Z_]+", README):
        assert name.rstrip("_") in page, name


def test_paths_of_the_readme_exist() -> None:
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_and_modules_of_a_page_exist(page: Path) -> None:
    text = page.read_text()
    named = [p.rstrip("./") for p in re.findall(rf"(?<![\w./-])(?:{SOURCES})/[\w./-]*", text)]
    missing = [p for p in named if p not in GENERATED and not _path_exists(p)]
    modules = re.findall(r"`(tuneloop(?:\.[a-z]\w*)+)`", text)
    missing += [m for m in modules if not (_module_exists(m) or _is_attribute(m))]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in _anchors(linked), target


@pytest.mark.parametrize("container", ["tuneloop", "tuneloop.learner"])
def test_layers_of_the_architecture_are_those_of_the_contract(container: str) -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    [layers] = [
        contract["layers"]
        for contract in contracts["contracts"]
        if contract.get("containers") == [container]
    ]
    # In brackets is what need not exist.
    listed = "\n".join(layer.strip("()") for layer in layers)
    assert f"```\n{listed}\n```" in (ROOT / "docs" / "architecture.md").read_text()


def _path_exists(path: str) -> bool:
    """Tell whether a path exists; a trailing `_` stands for every name that begins so."""
    return (ROOT / path).exists() or (path.endswith("_") and any(ROOT.glob(f"{path}*")))


def _module_exists(name: str) -> bool:
    path = name.replace(".", "/")
    roots = [root / path for root in SOURCE_ROOTS]
    return any(root.is_dir() or root.with_suffix(".py").is_file() for root in roots)


@cache
def _sources() -> str:
    return "".join(path.read_text() for root in SOURCE_ROOTS for path in root.rglob("*.py"))


def _is_attribute(name: str) -> bool:
    """Return whether spans carry an attribute of this name."""
    return f'"{name}"' in _sources()


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in headings}


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)", README)) <= targets


@pytest.mark.parametrize("command", ["up", "chat", "feedback", "policies"])
def test_commands_of_the_readme_exist(command: str) -> None:
    assert f"tuneloop {command}" in README
    program = [str(Path(sys.executable).with_name("tuneloop")), command, "--help"]
    assert subprocess.run(program, capture_output=True).returncode == 0
