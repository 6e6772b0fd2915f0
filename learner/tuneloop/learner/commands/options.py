"""What several commands of the learner take, and how they say what is wrong."""

from pathlib import Path
from typing import Annotated

import typer

from tuneloop.cli.extras import missing_package
from tuneloop.errors import FailedPrecondition, SettingsError, TuneloopError

RewardFunctions = Annotated[
    list[str] | None,
    typer.Option(metavar="MODULE:FUNCTION[=WEIGHT]", help="Reward function; repeatable."),
]
RewardModel = Annotated[str | None, typer.Option(help="Folder of a trained reward model.")]
JudgeUrl = Annotated[
    str | None,
    typer.Option(help="URL of a judge: any OpenAI-compatible endpoint, with its /v1."),
]
JudgeModel = Annotated[str, typer.Option(help="Name of the judge's model there.")]
JudgeKey = Annotated[
    str, typer.Option(envvar="TUNELOOP_JUDGE_API_KEY", help="Key of that endpoint.")
]
JudgeVotes = Annotated[int, typer.Option(min=1, help="Votes averaged for each pair.")]
Constitution = Annotated[
    Path | None,
    typer.Option(help="Text the judge judges by.", show_default="the one that comes with it"),
]


def fail(error: TuneloopError) -> typer.Exit:
    """Say what is wrong; 2 where the call is at fault, else 1."""
    typer.echo(f"tuneloop: {error.message}", err=True)
    return typer.Exit(2 if isinstance(error, SettingsError) else 1)


def missing(error: ModuleNotFoundError) -> FailedPrecondition:
    """Return what to say where the learner's packages are not installed."""
    return FailedPrecondition(missing_package(error, "learner"))
