"""`tuneloop train`: learn offline, from files, datasets or the ledger."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tuneloop.cli.models import DEFAULT_CACHE_DIR, CacheDir
from tuneloop.learner.commands.options import (
    Constitution,
    JudgeKey,
    JudgeModel,
    JudgeUrl,
    JudgeVotes,
    RewardFunctions,
    RewardModel,
    exit_on_error,
    judge_options,
)
from tuneloop.learner.trainer.algorithms import offline_algorithms
from tuneloop.policies import WeightsKind

STOPPED = 130
"""Exit status of a run that was stopped and can be resumed."""

KINDS = {None: None, True: WeightsKind.LORA, False: WeightsKind.FULL}


if TYPE_CHECKING:
    from tuneloop.learner.offline.train import TrainOptions

    AlgorithmName = str
else:
    AlgorithmName = Literal[tuple(offline_algorithms())]

Data = Annotated[
    str,
    typer.Option(
        help="A .jsonl, .json, .parquet or .csv file, a save_to_disk folder, a dataset's hub "
        "id (owner/name:split), or ledger:DATA_DIR."
    ),
]
Output = Annotated[
    Path, typer.Option(help="Folder for the version; a run that is in it is resumed.")
]
Lora = Annotated[
    bool | None,
    typer.Option(
        "--lora/--full",
        help="Train an adapter, or all the weights.",
        show_default="an adapter; all the weights of a reward model",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting, such as learning_rate=1e-4."),
]


def train(
    algorithm: Annotated[AlgorithmName, typer.Argument(help="What to train, or how.")],
    *,
    model: Annotated[str, typer.Option(help="A folder, a hub id or a catalog name.")],
    data: Data,
    output: Output,
    lora: Lora = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    settings: Settings = None,
    reward: RewardFunctions = None,
    reward_model: RewardModel = None,
    judge: JudgeUrl = None,
    judge_model: JudgeModel = "tuneloop",
    judge_key: JudgeKey = "",
    judge_votes: JudgeVotes = 3,
    constitution: Constitution = None,
    restart: Annotated[bool, typer.Option(help="Throw away the run in --output.")] = False,
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
) -> None:
    """Train on data and write a version that `tuneloop up --model` and transformers load.

    If it is killed or stopped, the same command resumes it and ends with the very same weights.
    """
    with exit_on_error():
        from tuneloop.learner.offline.train import TrainOptions

        options = TrainOptions(
            algorithm=algorithm,
            model=model,
            data=data,
            output=output,
            kind=KINDS[lora],
            seed=seed,
            assignments=settings or [],
            rewards=reward or [],
            reward_model=reward_model,
            judge=judge_options(
                judge,
                model=judge_model,
                api_key=judge_key,
                votes=judge_votes,
                constitution=constitution,
            ),
            restart=restart,
            cache_dir=cache_dir,
        )
        run_or_follow(options)


def run_or_follow(options: "TrainOptions") -> None:
    """Run the training, and print its summary; of several ranks all but the first follow."""
    from tuneloop.learner.followers import follow
    from tuneloop.learner.models.world import dismiss_followers, join
    from tuneloop.learner.offline.run.report import print_summary
    from tuneloop.learner.offline.train import train as run

    world = join()
    if not world.is_leader:
        follow(world)
        return
    with dismiss_followers(world):
        summary = run(options, world)
    if summary is None:
        typer.echo("stopped; the same command goes on from here", err=True)
        raise typer.Exit(STOPPED)
    print_summary(summary, str(options.output))
