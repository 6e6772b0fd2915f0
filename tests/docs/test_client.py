"""docs/cli.md is what the commands are now; the shell's completion knows them."""

import os
import re
import subprocess
import sys

import typer

from docs import render_cli
from tuneloop.cli.app import app

PARENTS = {"feedback", "policies", "models", "keys"}


def test_command_line_page_is_current() -> None:
    assert render_cli.PAGE.read_text() == render_cli.render(), (
        "docs/cli.md is out of date: python -m docs.render_cli"
    )


def test_every_command_says_what_it_does() -> None:
    page = render_cli.render()
    sections = re.split(r"^#+ `", page, flags=re.MULTILINE)[1:]
    assert len(sections) > 25
    for section in sections:
        heading, _, text = section.partition("`\n\n")
        assert heading.startswith("tuneloop "), heading
        assert re.match(r"[A-Z].*[.?]", text), heading


def test_every_command_that_prints_data_has_json() -> None:
    silent = {"up", "gateway", "generation", "reward", "learner", "train", "export", "import"}
    root = typer.main.get_command(app)
    found = {}
    for name, command in root.commands.items():
        children = getattr(command, "commands", None) or {name: command}
        for child, leaf in children.items():
            options = {option for parameter in leaf.params for option in parameter.opts}
            found[f"{name} {child}"] = "--json" in options
    assert [
        name for name, json in found.items() if not json and name.split()[0] not in silent
    ] == []


def test_completion_of_the_shell() -> None:
    def complete(words: str) -> list[str]:
        environment = os.environ | {
            "_TUNELOOP_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        }
        program = "import sys; sys.argv = ['tuneloop']; from tuneloop.cli.app import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True
        )
        return done.stdout.split()

    assert complete("tuneloop do") == ["doctor"]
    assert complete("tuneloop feedback list --kind th") == ["thumb"]
