"""Render docs/cli.md from the commands: `python -m docs.render_cli`.

A test renders it again and compares, so the page cannot fall behind the code.
"""

import re
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

from typer.cli import get_docs_for_click
from typer.core import TyperGroup
from typer.main import get_command
from typer.models import Context

from tuneloop.cli.app import COMMANDS, add_commands, app

PAGE = Path(__file__).with_name("cli.md")
INTRODUCTION = """# The command line

`tuneloop COMMAND --help` tells the same. Commands that talk to a running service take its address
from `--url` or `TUNELOOP_URL` (by default http://127.0.0.1:8000) and the key, where one is needed,
from `--api-key` or `TUNELOOP_API_KEY`. With `--json` what a command prints is for programs. A
failure is one line on standard error; the status is 1 where the service refused or something was
found to be wrong, 2 where the command or a setting was not understood.

`tuneloop --install-completion` teaches bash, zsh, fish or PowerShell to complete commands, options
and their values.

In a conversation (`tuneloop chat`) `+` and `-` on an empty line are thumbs:

```
%s
```

This page is generated: `python -m docs.render_cli`.

"""
LIST_OF_COMMANDS = re.compile(r"\*\*Commands\*\*:\n\n(?:\* .*\n)+\n")
"""Cut off after a few words; the commands themselves follow."""
HELP_OPTION = re.compile(r"^\* `--help`: .*\n", re.MULTILINE)
NO_OPTIONS = re.compile(r"\*\*Options\*\*:\n\n(?!\*)")
EXAMPLE = re.compile(r"^Example: (tuneloop .*)$", re.MULTILINE)


def render() -> str:
    """The whole page."""
    from tuneloop.cli.chat.conversation import HELP

    project = tomllib.loads(PAGE.parents[1].joinpath("pyproject.toml").read_text())["project"]
    # What is installed may be older than what is written.
    offered = project["entry-points"][COMMANDS]
    add_commands(EntryPoint(name, value, COMMANDS) for name, value in offered.items())
    command = get_command(app)
    assert isinstance(command, TyperGroup)
    command.commands = dict(sorted(command.commands.items()))
    page = get_docs_for_click(obj=command, ctx=Context(command), name="tuneloop")
    _, _, commands = page.partition("\n## ")
    text = LIST_OF_COMMANDS.sub("", f"## {commands}")
    text = NO_OPTIONS.sub("", HELP_OPTION.sub("", text))
    text = EXAMPLE.sub(r"Example: `\1`", text)
    return INTRODUCTION % HELP + re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(render())
