"""`tuneloop evaluate`: two versions on the same prompts."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneloop.cli.models import DEFAULT_CACHE_DIR, CacheDir
from tuneloop.errors import SettingsError
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
    from tuneloop.learner.offline.compare_abilities import AbilityEvaluation
    from tuneloop.learner.offline.versions import Versions
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


Prompts = Annotated[str | None, typer.Option(help="File or dataset with prompts.")]
Abilities = Annotated[
    list[str] | None,
    typer.Option(help="Ability suite to ask instead: builtin, or a file. Repeatable."),
]
Sampled = Annotated[int, typer.Option(min=0, help="Items of the suites to sample an answer to.")]


def evaluate(
    a: Annotated[str, typer.Argument(help="A version: a folder, a number, a model.")],
    b: Annotated[str, typer.Argument(help="Another.")],
    *,
    prompts: Prompts = None,
    abilities: Abilities = None,
    sampled: Sampled = 48,
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
    """Compare two versions on prompts: reward, KL, length, win rate, with 95 % intervals.

    With --abilities, on the items of ability suites.
    """
    with exit_on_error():
        from tuneloop.learner.offline.versions import Versions

        versions = Versions(data_dir=data_dir, base=base, policy=policy, cache_dir=cache_dir)
        if prompts is None or abilities:
            check_asked(prompts, abilities)
            compare_on_suites(a, b, versions, abilities or [], sampled=sampled, as_json=as_json)
            return
        options = judge_options(
            judge,
            model=judge_model,
            api_key=judge_key,
            votes=judge_votes,
            constitution=constitution,
        )
        compare_on_prompts(
            as_json=as_json,
            a=a,
            b=b,
            prompts=prompts,
            versions=versions,
            rewards=reward or [],
            reward_model=reward_model,
            judge=options,
            samples_per_prompt=samples,
            temperature=temperature,
            max_tokens=max_tokens,
            as_chat=as_chat,
            seed=seed,
        )


def check_asked(prompts: str | None, abilities: list[str] | None) -> None:
    """Raise `SettingsError` unless exactly one of the two is given."""
    if (prompts is None) == (not abilities):
        raise SettingsError("give either --prompts or --abilities", param="prompts")


def compare_on_prompts(*, as_json: bool, **given: Any) -> None:
    """Sample answers of both versions, and print the comparison; `given` are its options."""
    from tuneloop.learner.offline.compare import EvaluateOptions
    from tuneloop.learner.offline.compare import evaluate as run

    options = EvaluateOptions(**given)
    comparison = run(options)
    if as_json:
        document = {"a": options.a, "b": options.b, **comparison.document()}
        typer.echo(json.dumps(document, indent=2))
    else:
        show(comparison, options.a, options.b)


def compare_on_suites(
    a: str,
    b: str,
    versions: "Versions",
    suites: list[str],
    *,
    sampled: int,
    as_json: bool,
) -> None:
    """Ask both versions the suites, and print the comparison."""
    from tuneloop.learner.offline.compare_abilities import evaluate_abilities

    found = evaluate_abilities(versions, a, b, suites=suites, sampled_items=sampled)
    if as_json:
        typer.echo(json.dumps({"versions": {"a": a, "b": b}, **found.document()}, indent=2))
    else:
        show_abilities(found, a, b)


def show_abilities(found: "AbilityEvaluation", a: str, b: str) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Ability suite, {len(found.b.items)} items, with 95 % interval")
    for name in ("", f"A: {a}", f"B: {b}", "B − A"):
        table.add_column(name, justify="right" if name else "left")
    of_a, of_b, change = found.a.figures(), found.b.figures(), found.change
    rows = {
        "value": change.value,
        "accuracy": change.accuracy,
        "nats": change.nats,
        "sampled_accuracy": change.sampled,
    }
    for name, of in rows.items():
        if of is not None and name in of_a and name in of_b:
            difference = f"{of.difference:+.3f} ({of.low:+.3f} – {of.high:+.3f})"
            label = name.replace("_", " ")
            table.add_row(label, f"{of_a[name]:.3f}", f"{of_b[name]:.3f}", difference)
    Console().print(table)


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
