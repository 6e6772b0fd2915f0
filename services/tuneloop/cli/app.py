"""The `tuneloop` command. Whatever is heavy is imported by the command that needs it."""

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated

import typer

from tuneloop.cli import processes
from tuneloop.cli.chat.command import EPILOG, chat
from tuneloop.cli.doctor import doctor
from tuneloop.cli.feedback import feedback_app
from tuneloop.cli.forget import forget
from tuneloop.cli.keys import keys_app
from tuneloop.cli.lineage import lineage_app
from tuneloop.cli.models import models_app
from tuneloop.cli.policies import policies_app
from tuneloop.cli.signals import signals
from tuneloop.cli.up import up

COMMANDS = "tuneloop.commands"
"""Entry points of this group are commands: functions, or a `typer.Typer` of several."""

USE, RUN, TRAIN = "Use it", "Run it", "Learn from files"

app = typer.Typer(
    name="tuneloop",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A language-model service that learns from its users' feedback while it serves them.",
)


def print_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        typer.echo(f"tuneloop {version('tuneloop')}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Accept the options before a command."""


app.command(rich_help_panel=USE, epilog=EPILOG)(chat)
app.add_typer(feedback_app, name="feedback", rich_help_panel=USE)
app.add_typer(policies_app, name="policies", rich_help_panel=USE)
app.add_typer(lineage_app, name="lineage", rich_help_panel=USE)
app.command(rich_help_panel=USE, epilog="Example: tuneloop signals --json")(signals)
app.command(rich_help_panel=USE, epilog="Example: tuneloop forget ann --yes")(forget)
app.command(rich_help_panel=RUN, epilog="Example: tuneloop up --port 8001")(up)
app.command(rich_help_panel=RUN, epilog="Example: tuneloop doctor --process gateway --json")(doctor)
app.add_typer(models_app, name="models", rich_help_panel=RUN)
app.add_typer(keys_app, name="keys", rich_help_panel=RUN)
for process in (processes.gateway, processes.generation, processes.reward, processes.learner):
    app.command(rich_help_panel=RUN)(process)


def add_commands(entries: Iterable[EntryPoint]) -> None:
    """Add the commands of other packages, such as the learner's, by their entry points."""
    known = {command.name for command in app.registered_commands}
    known |= {group.name for group in app.registered_groups}
    for entry in sorted(entries, key=lambda entry: entry.name):
        if entry.name in known:
            continue
        command = entry.load()
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=entry.name, rich_help_panel=TRAIN)
        else:
            app.command(entry.name, rich_help_panel=TRAIN)(command)


add_commands(entry_points(group=COMMANDS))


def main() -> None:
    """Run the command line."""
    app()
