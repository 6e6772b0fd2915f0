"""Options that several commands of the learner take, and how errors are printed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneloop.cli.processes import missing_package
from tuneloop.errors import FailedPrecondition, SettingsError, TuneloopError

if TYPE_CHECKING:
    from tuneloop.learner.offline.sources.judge import JudgeOptions

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
    """Print the error; return the exit: status 2 for wrong arguments, else 1."""
    typer.echo(f"tuneloop: {error.message}", err=True)
    return typer.Exit(2 if isinstance(error, SettingsError) else 1)


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Print an error of ours, or a missing package, and exit."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise fail(FailedPrecondition(missing_package(error, "learner"))) from error
    except TuneloopError as error:
        raise fail(error) from error


def judge_options(
    url: str | None, *, model: str, api_key: str, votes: int, constitution: Path | None
) -> "JudgeOptions | None":
    """Return the judge that the options name; None without a URL."""
    if url is None:
        return None
    from tuneloop.learner.offline.sources.judge import JudgeOptions

    return JudgeOptions(
        url=url, model=model, api_key=api_key, votes=votes, constitution=constitution
    )
