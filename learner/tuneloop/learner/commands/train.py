"""`tuneloop train`: learn offline, from files, datasets or the ledger."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tuneloop.errors import FailedPrecondition, SettingsError, TuneloopError
from tuneloop.models.commands import DEFAULT_CACHE_DIR, CacheDir
from tuneloop.policies import WeightsKind

STOPPED = 130
"""Exit status of a run that was stopped and can be gone on with."""

Algorithm = Literal["sft", "reward-model", "dpo", "kto", "ppo", "grpo", "rest"]


def train(
    algorithm: Annotated[Algorithm, typer.Argument(help="What to train, or how.")],
    *,
    model: Annotated[str, typer.Option(help="A folder, a hub id or a catalog name.")],
    data: Annotated[
        str,
        typer.Option(
            help="A .jsonl, .json, .parquet or .csv file, a save_to_disk folder, a dataset's hub "
            "id (owner/name:split), or ledger:DATA_DIR."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the version; a run in it goes on.")],
    lora: Annotated[
        bool, typer.Option("--lora/--full", help="Train an adapter, or all the weights.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting, such as learning_rate=1e-4."),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE:FUNCTION[=WEIGHT]", help="Reward function; repeatable."),
    ] = None,
    reward_model: Annotated[
        str | None, typer.Option(help="Folder of a trained reward model.")
    ] = None,
    restart: Annotated[bool, typer.Option(help="Throw away the run in --output.")] = False,
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
) -> None:
    """Train on data and write a version that `tuneloop up --model` and transformers load.

    Killed or stopped, the same command goes on where it was, to the very same weights.
    """
    try:
        from tuneloop.learner.offline.summary import print_summary
        from tuneloop.learner.offline.train import TrainOptions
        from tuneloop.learner.offline.train import train as run
    except ModuleNotFoundError as error:
        raise fail(missing(error)) from error
    try:
        summary = run(
            TrainOptions(
                algorithm=algorithm,
                model=model,
                data=data,
                output=output,
                kind=WeightsKind.LORA if lora else WeightsKind.FULL,
                seed=seed,
                assignments=settings or [],
                rewards=reward or [],
                reward_model=reward_model,
                restart=restart,
                cache_dir=cache_dir,
            )
        )
    except TuneloopError as error:
        raise fail(error) from error
    if summary is None:
        typer.echo("stopped; the same command goes on from here", err=True)
        raise typer.Exit(STOPPED)
    print_summary(summary, str(output))


def fail(error: TuneloopError) -> typer.Exit:
    """Say what is wrong; 2 where the call is at fault, else 1."""
    typer.echo(f"tuneloop: {error.message}", err=True)
    return typer.Exit(2 if isinstance(error, SettingsError) else 1)


def missing(error: ModuleNotFoundError) -> FailedPrecondition:
    """What to say where the learner's packages are not installed."""
    return FailedPrecondition(
        f"this command needs the package {error.name}: pip install 'tuneloop[learner]'"
    )
