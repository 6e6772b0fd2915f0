"""`tuneloop evaluate`: two versions on the same prompts."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from tuneloop.learner.offline.compare import VersionComparison
    from tuneloop.learner.stats.intervals import Estimate


DataDir = Annotated[
    Path | None, typer.Option(help="Data folder of tuneloop up, for versions by number.")
]
Base = Annotated[
    str | None, typer.Option(help="What KL is measured to.", show_default="what A grew from")
]
AsChat = Annotated[
    bool, typer.Option(help="Take a plain prompt as the question of a conversation.")
]


def evaluate(
    a: Annotated[str, typer.Argument(help="A version: a folder, a number, a model.")],
    b: Annotated[str, typer.Argument(help="Another.")],
    *,
    prompts: Annotated[str, typer.Option(help="File or dataset with prompts.")],
    data_dir: DataDir = None,
    base: Base = None,
    policy: Annotated[str, typer.Option(help="Name of the policy.")] = "tuneloop",
    reward: RewardFunctions = None,
    reward_model: RewardModel = None,
    judge: JudgeUrl = None,
    judge_model: JudgeModel = "tuneloop",
    judge_key: JudgeKey = "",
    judge_votes: JudgeVotes = 3,
    constitution: Constitution = None,
    samples: Annotated[int, typer.Option(min=1, help="Completions of each prompt.")] = 1,
    temperature: Annotated[float, typer.Option(help="Of sampling, above 0.")] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest completion.")] = 128,
    as_chat: AsChat = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
) -> None:
    """Compare two versions on prompts: reward, KL, length, win rate, with 95 % intervals."""
    with exit_on_error():
        from tuneloop.learner.offline.compare import EvaluateOptions
        from tuneloop.learner.offline.compare import evaluate as run
        from tuneloop.learner.offline.versions import Versions

        options = EvaluateOptions(
            a=a,
            b=b,
            prompts=prompts,
            versions=Versions(data_dir=data_dir, base=base, policy=policy, cache_dir=cache_dir),
            rewards=reward or [],
            reward_model=reward_model,
            judge=judge_options(
                judge,
                model=judge_model,
                api_key=judge_key,
                votes=judge_votes,
                constitution=constitution,
            ),
            samples_per_prompt=samples,
            temperature=temperature,
            max_tokens=max_tokens,
            as_chat=as_chat,
            seed=seed,
        )
        comparison = run(options)
    if as_json:
        typer.echo(json.dumps({"a": a, "b": b, **comparison.document()}, indent=2))
    else:
        show(comparison, a, b)


def show(comparison: "VersionComparison", a: str, b: str) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{comparison.prompts} prompts, mean with 95 % interval")
    table.add_column("")
    table.add_column(f"A: {a}", justify="right")
    table.add_column(f"B: {b}", justify="right")
    for name, (of_a, of_b) in comparison.figures.items():
        table.add_row(name, spelled(of_a), spelled(of_b))
    if comparison.win_rate is not None:
        table.add_row(f"B better, by {comparison.judged_by}", "", spelled(comparison.win_rate))
    Console().print(table)


def spelled(estimate: "Estimate") -> str:
    """`0.62 (0.51 – 0.72)`; what is below a ten-thousandth is rounding."""
    value, low, high = (
        f"{round(number, 4) + 0.0:.3g}" for number in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} ({low} – {high})"
