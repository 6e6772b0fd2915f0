"""`tuneloop backup` and `tuneloop restore`: everything that a data folder holds, as one folder."""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneloop import audit
from tuneloop.cli.options import AsJson
from tuneloop.cli.output import print_json
from tuneloop.learner.commands.options import exit_on_error

if TYPE_CHECKING:
    from tuneloop.learner.commands.backup_copy import Copied

DataFolder = Annotated[Path, typer.Option(help="Data folder of tuneloop up.")]


def backup(
    target: Annotated[Path, typer.Argument(help="New folder for the backup.")],
    *,
    data_dir: DataFolder = Path(".tuneloop"),
    as_json: AsJson = False,
) -> None:
    """Copy all that tuneloop up keeps, while it runs or not; keys and texts of users included."""
    with exit_on_error():
        from tuneloop.learner.commands.backup_copy import back_up
        from tuneloop.supervisor.data_dir import DataDir

        data = DataDir(root=data_dir.expanduser().absolute())
        copied = asyncio.run(back_up(data, target.expanduser().absolute()))
        audit.record_command(data.logs, "backup", {"folder": str(target.absolute())}, "ok")
    tell(target, copied, as_json=as_json)


def restore(
    source: Annotated[Path, typer.Argument(help="Folder that tuneloop backup made.")],
    *,
    data_dir: DataFolder = Path(".tuneloop"),
    as_json: AsJson = False,
) -> None:
    """Make a new data folder of a backup; tuneloop up then continues from it."""
    with exit_on_error():
        from tuneloop.learner.commands.backup_copy import restore as restore_from
        from tuneloop.supervisor.data_dir import DataDir

        data = DataDir(root=data_dir.expanduser().absolute())
        copied = asyncio.run(restore_from(source.expanduser().absolute(), data))
        audit.record_command(data.logs, "restore", {"folder": str(source.absolute())}, "ok")
    tell(data_dir, copied, as_json=as_json)


def tell(folder: Path, copied: "Copied", *, as_json: bool) -> None:
    """Say what was copied."""
    if as_json:
        print_json(asdict(copied))
        return
    serving = "the base model" if copied.stable is None else f"version {copied.stable}"
    typer.echo(
        f"{folder}: {copied.feedback} feedback in the ledger, {copied.events} events in the "
        f"streams, {copied.versions} versions; {serving} serves"
    )
