"""The docs say what the code does: generated pages are current, named commands and paths exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs import render_api, render_settings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_settings_page_is_current() -> None:
    assert render_settings.PAGE.read_text() == render_settings.render(), (
        "docs/settings.md is out of date: python -m docs.render_settings"
    )


def test_table_of_openai_fields_is_current() -> None:
    page = render_api.PAGE.read_text()
    assert page == render_api.render(page), "docs/api.md is out of date: python -m docs.render_api"


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


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)", README)) <= targets


@pytest.mark.parametrize("command", ["up", "chat", "feedback", "policies"])
def test_commands_of_the_readme_exist(command: str) -> None:
    assert f"tuneloop {command}" in README
    program = [str(Path(sys.executable).with_name("tuneloop")), command, "--help"]
    assert subprocess.run(program, capture_output=True).returncode == 0
