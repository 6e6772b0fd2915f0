"""What the gate stops: candidates a little worse, one at a time and twenty in a row.

    python -m benchmarks.gate_power [--runs 2000]
    python -m benchmarks.gate_power --measure MODEL VERSION…   (folders; the noise, once)
    python -m benchmarks.gate_power --timing                   (a real service; the seconds)

Losses are in standard deviations of the base model's values between items: "0.1 worse" has lost 0.1
of them on average over all items there could be. The items of a run, as many as the gate asks, are
drawn anew from those that were measured, with replacement. A candidate differs from the version
before it by that loss and, by item, by what a real version differed from the one before it, about
its mean, with a random sign.

Two rules run on the same draws: the old one (twelve prompts, the reward's 95 % interval against the
stable version) and the gate's own, by its functions. The old rule's noise is that of rewards, whose
differences are normal and vary as much as the prompts do; the same rule is also given the suite's
own noise.

Writes gate-power.json and .md into benchmarks/results/, from gate-noise.json beside them.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tuneloop.learner.release.gate.settings import GateSettings
from tuneloop.learner.release.gate.verdict import is_borne
from tuneloop.learner.stats.intervals import Estimate, rate_of
from tuneloop.learner.stats.paired import difference_with_error, spent_alpha

RESULTS = Path(__file__).parent / "results"
NOISE = RESULTS / "gate-noise.json"
Numbers: TypeAlias = npt.NDArray[np.float64]

LOSSES = (0.0, 0.02, 0.05, 0.1, 0.2)
PROMOTIONS = 20
OLD_PROMPTS = 12
SETTINGS = GateSettings()
ALPHA = 1 - SETTINGS.confidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Per-item values in units of the base's spread, about their means."""

    base: Numbers
    """(items)"""
    steps: Numbers
    """(pairs of neighbouring versions, items)"""

    @classmethod
    def of_versions(cls, measured: dict[str, Any]) -> "Noise":
        """Take it from the values of version 0 and of neighbouring versions, by item."""
        table = np.asarray(measured["values"], dtype=np.float64)
        spread = table[0].std(ddof=1)
        steps = np.array([table[two] - table[one] for one, two in neighbours(measured)]) / spread
        return cls(
            base=(table[0] - table[0].mean()) / spread,
            steps=steps - steps.mean(axis=1, keepdims=True),
        )

    @classmethod
    def normal(cls, correlation: float, items: int, seed: int) -> "Noise":
        """Take normal values, of which those of neighbours correlate like this."""
        chance = np.random.default_rng(seed)
        scale = np.sqrt(2 * (1 - correlation))
        return cls(
            base=chance.standard_normal(items * 40),
            steps=scale * chance.standard_normal((PROMOTIONS, items * 40)),
        )


def neighbours(measured: dict[str, Any]) -> list[tuple[int, int]]:
    """Return the rows of versions of which one followed the other."""
    numbers = list(map(int, measured["versions"]))
    rows = range(len(numbers))
    return [(i, j) for i in rows for j in rows if numbers[j] == numbers[i] + 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A gate."""

    name: str
    items: int
    passes: Callable[["Candidates"], npt.NDArray[np.bool_]]
    noise_scale: float | None = None
    """Standard deviation of normal differences in place of the measured ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The candidates of all runs at one moment; differences are (runs, items)."""

    number: int
    from_stable: Numbers
    from_anchor: Numbers
    from_best: Numbers
    spread: Numbers
    """(runs)"""


def borne(differences: Numbers, spread: Numbers, confidence: float, margin: float) -> Any:
    """Whether the gate bears each run's differences."""
    means = differences.mean(axis=1)
    pairs = differences.shape[1]
    errors = differences.std(axis=1, ddof=1) / np.sqrt(pairs)
    return np.array(
        [
            is_borne(difference_with_error(mean, error, pairs, confidence), margin * unit)
            for mean, error, unit in zip(means, errors, spread, strict=True)
        ]
    )


def old(c: Candidates) -> Any:
    """The gate before: the reward of twelve prompts, against the stable version alone."""
    return borne(c.from_stable, c.spread, 0.95, 0.0)


def against_stable(c: Candidates) -> Any:
    """The stable version alone, on the whole suite."""
    return borne(c.from_stable, c.spread, 1 - ALPHA, SETTINGS.suite_margin)


def new(c: Candidates) -> Any:
    """The gate: the stable version, and version 0 with α spent over the candidates."""
    confidence = 1 - spent_alpha(ALPHA, c.number)
    anchored = borne(c.from_anchor, c.spread, confidence, SETTINGS.suite_drift)
    return against_stable(c) & anchored


def unspent(c: Candidates) -> Any:
    """Version 0 with the same α for each candidate."""
    return against_stable(c) & borne(c.from_anchor, c.spread, 1 - ALPHA, SETTINGS.suite_drift)


def best_so_far(c: Candidates) -> Any:
    """The best version so far in place of version 0, α spent."""
    confidence = 1 - spent_alpha(ALPHA, c.number)
    return against_stable(c) & borne(c.from_best, c.spread, confidence, SETTINGS.suite_drift)


def rules(items: int) -> list[Rule]:
    """The rules that are compared."""
    return [
        Rule(name="old: 12 rewards", items=OLD_PROMPTS, passes=old, noise_scale=1.0),
        Rule(name="old: 12 items of the suite", items=OLD_PROMPTS, passes=old),
        Rule(name="new", items=items, passes=new),
        Rule(name="new, stable only", items=items, passes=against_stable),
        Rule(name="new, α not spent", items=items, passes=unspent),
        Rule(name="new, anchor is the best so far", items=items, passes=best_so_far),
    ]


def simulate(
    rule: Rule, loss: float, noise: Noise, *, runs: int, seed: int, candidates: int = PROMOTIONS
) -> tuple[npt.NDArray[np.bool_], Numbers]:
    """Return which candidates passed (runs, candidates) and each run's true loss at the end."""
    chance = np.random.default_rng(seed)
    chosen = chance.integers(len(noise.base), size=(runs, rule.items))
    spread = noise.base[chosen].std(axis=1, ddof=1)
    drift = np.zeros((runs, rule.items))
    best = np.zeros((runs, rule.items))
    passed = np.zeros((runs, candidates), dtype=np.bool_)
    for number in range(1, candidates + 1):
        pair = chance.integers(len(noise.steps), size=(runs, 1))
        sign = chance.choice((-1.0, 1.0), size=(runs, 1))
        differs = sign * noise.steps[pair, chosen]
        if rule.noise_scale is not None:
            differs = rule.noise_scale * chance.standard_normal(differs.shape)
        step = differs - loss
        moment = Candidates(
            number=number,
            from_stable=step,
            from_anchor=drift + step,
            from_best=drift + step - best,
            spread=spread,
        )
        ok = passed[:, number - 1] = rule.passes(moment)
        drift += np.where(ok[:, None], step, 0.0)
        better = drift.mean(axis=1) > best.mean(axis=1)
        best = np.where(better[:, None], drift, best)
    return passed, loss * passed.sum(axis=1)


def rate(flags: npt.NDArray[np.bool_]) -> Estimate:
    """The share of them that is true."""
    return rate_of(float(flags.sum()), flags.size)


def measure_rule(rule: Rule, noise: Noise, runs: int, seed: int) -> list[dict[str, Any]]:
    """Every loss under one rule."""
    rows = []
    for loss in LOSSES:
        passed, lost = simulate(rule, loss, noise, runs=runs, seed=seed)
        rows.append(
            {
                "rule": rule.name,
                "loss": loss,
                "first_stopped": _plain(rate(~passed[:, 0])),
                "any_stopped": _plain(rate(~passed.all(axis=1))),
                "all_promoted": _plain(rate(passed.all(axis=1))),
                "promoted": float(passed.sum(axis=1).mean()),
                "lost": float(lost.mean()),
                "lost_95": float(np.quantile(lost, 0.95)),
            }
        )
    return rows


def by_correlation(items: int, runs: int, seed: int) -> list[dict[str, Any]]:
    """The new rule on normal noise: what is attainable with which correlation of neighbours."""
    rule = Rule(name="new", items=items, passes=new)
    rows = []
    for correlation in (0.8, 0.9, 0.95, 0.98, 0.99):
        noise = Noise.normal(correlation, items, seed)
        row: dict[str, Any] = {"correlation": correlation}
        for loss in LOSSES:
            passed, _ = simulate(rule, loss, noise, runs=runs, seed=seed, candidates=1)
            row[f"stopped {loss:g}"] = _plain(rate(~passed[:, 0]))
        rows.append(row)
    return rows


def _plain(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def run(runs: int, seed: int) -> dict[str, Any]:
    """Everything, from the noise on disk."""
    measured = json.loads(NOISE.read_text())
    noise = Noise.of_versions(measured)
    items = min(SETTINGS.suite_items, len(noise.base))
    return {
        "runs": runs,
        "seed": seed,
        "items": items,
        "versions": measured["versions"],
        "margin": SETTINGS.suite_margin,
        "drift": SETTINGS.suite_drift,
        "correlations": [
            float(np.corrcoef(measured["values"][one], measured["values"][two])[0, 1])
            for one, two in neighbours(measured)
        ],
        "step_sd": float(noise.steps.std()),
        "rules": [row for rule in rules(items) for row in measure_rule(rule, noise, runs, seed)],
        "correlation": by_correlation(items, runs, seed),
    }


def percent(estimate: dict[str, float]) -> str:
    """Return a rate with its interval."""
    return (
        f"{100 * estimate['value']:.1f} % "
        f"({100 * estimate['low']:.1f} to {100 * estimate['high']:.1f})"
    )


def table(found: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        "# What the gate stops",
        "",
        f"{found['runs']} runs, seed {found['seed']}; {found['items']} items; noise of "
        f"{len(found['versions'])} real versions ({', '.join(found['versions'])}): neighbours "
        f"correlate {min(found['correlations']):.4f} to {max(found['correlations']):.4f}, the "
        f"standard deviation of their differences is {found['step_sd']:.3f} of that between items. "
        f"A loss is in those standard deviations; {found['margin']:g} is borne against the "
        f"stable version and {found['drift']:g} against version 0. "
        "Intervals are Wilson's, 95 %.",
        "",
        "| rule | loss of each | first candidate stopped | all 20 promoted | promoted of 20 | "
        "lost in all (95th percentile) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['rule']} | {row['loss']:g} | {percent(row['first_stopped'])} | "
        f"{percent(row['all_promoted'])} | {row['promoted']:.1f} | "
        f"{row['lost']:.2f} ({row['lost_95']:.2f}) |"
        for row in found["rules"]
    ]
    heads = [f"{loss:g} worse stopped" for loss in LOSSES]
    lines += [
        "",
        "The first candidate by the correlation of neighbouring versions (normal values, the new "
        "rule):",
        "",
        f"| correlation | {' | '.join(heads)} |",
        f"| --- |{' --- |' * len(heads)}",
    ]
    lines += [
        f"| {row['correlation']:g} | "
        + " | ".join(percent(row[f"stopped {loss:g}"]) for loss in LOSSES)
        + " |"
        for row in found["correlation"]
    ]
    if seconds := found.get("seconds"):
        lines += ["", "Seconds of a gate on 2 cores (real service, median and range):", ""]
        lines += ["| load | suites scored | examination | together |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {row['load']} | {row['suites']} | {row['examination']} | {row['together']} |"
            for row in seconds
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--timing", action="store_true")
    options = parser.parse_args()
    if options.measure:
        from benchmarks.gate_measure import measure

        NOISE.write_text(json.dumps(measure(options.measure[0], options.measure[1:])) + "\n")
        return
    target = RESULTS / "gate-power.json"
    before = json.loads(target.read_text()) if target.exists() else {}
    found = run(options.runs, options.seed)
    found["seconds"] = before.get("seconds", [])
    if options.timing:
        from benchmarks.gate_measure import seconds

        found["seconds"] = seconds()
    target.write_text(json.dumps(found, indent=1) + "\n")
    target.with_suffix(".md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
