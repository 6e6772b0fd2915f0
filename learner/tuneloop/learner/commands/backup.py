"""`tuneloop backup` and `tuneloop restore`: everything that a data folder holds, as one folder."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneloop.errors import TuneloopError
from tuneloop.learner.commands.options import fail, missing

if TYPE_CHECKING:
    from tuneloop.learner.backup import Copied

DataFolder = Annotated[Path, typer.Option(help="Data folder of tuneloop up.")]


def backup(
    target: Annotated[Path, typer.Argument(help="New folder for the backup.")],
    *,
    data_dir: DataFolder = Path(".tuneloop"),
) -> None:
    """Copy all that tuneloop up keeps, while it runs or not; keys and texts of users included."""
    try:
        from tuneloop.learner.backup import back_up
        from tuneloop.supervisor.data_dir import DataDir

        data = DataDir(root=data_dir.expanduser().absolute())
        copied = asyncio.run(back_up(data, target.expanduser().absolute()))
    except ModuleNotFoundError as error:
        raise fail(missing(error)) from error
    except TuneloopError as error:
        raise fail(error) from error
    typer.echo(f"{target}: {described(copied)}")


def restore(
    source: Annotated[Path, typer.Argument(help="Folder that tuneloop backup made.")],
    *,
    data_dir: DataFolder = Path(".tuneloop"),
) -> None:
    """Make a new data folder of a backup; tuneloop up then goes on from it."""
    try:
        from tuneloop.learner.backup import restore as restore_from
        from tuneloop.supervisor.data_dir import DataDir

        data = DataDir(root=data_dir.expanduser().absolute())
        copied = asyncio.run(restore_from(source.expanduser().absolute(), data))
    except ModuleNotFoundError as error:
        raise fail(missing(error)) from error
    except TuneloopError as error:
        raise fail(error) from error
    typer.echo(f"{data_dir}: {described(copied)}")


def described(copied: "Copied") -> str:
    """What was copied, in a line."""
    serving = "the base model" if copied.stable is None else f"version {copied.stable}"
    return (
        f"{copied.feedback} feedback in the ledger, {copied.events} events in the streams, "
        f"{copied.versions} versions; {serving} serves"
    )
