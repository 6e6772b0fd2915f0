"""What the demo shows: a rate with its interval, a table, a picture."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from examples.demo.users import Answer
from tuneloop.learner.stats.intervals import rate_of


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRow:
    """One version, as its users met it."""

    label: str
    answers: int
    liked: int
    mean_tokens: float
    reward: float | None
    kl: float | None
    abilities: float | None
    """Mean value of the items of the ability suite that the gate scored."""

    @property
    def rate(self) -> float:
        return self.liked / self.answers

    @property
    def interval(self) -> tuple[float, float]:
        found = rate_of(self.liked, self.answers)
        return found.low, found.high


def version_row(
    label: str,
    answers: Sequence[Answer],
    rewards: Mapping[str, float],
    kl: float | None,
    abilities: float | None,
) -> VersionRow:
    """Sum up the answers of one version; `rewards` is by completion id."""
    scored = [rewards[a.completion_id] for a in answers if a.completion_id in rewards]
    return VersionRow(
        label=label,
        answers=len(answers),
        liked=sum(a.liked for a in answers),
        mean_tokens=sum(a.tokens for a in answers) / len(answers),
        reward=sum(scored) / len(scored) if scored else None,
        kl=kl,
        abilities=abilities,
    )


def table(rows: Sequence[VersionRow], title: str) -> Table:
    """The rows for the terminal."""
    result = Table(title=title)
    columns = ("version", "answers", "thumbs up", "95 %", "tokens", "reward", "KL")
    for column in (*columns, "abilities"):
        result.add_column(column, justify="right")
    for row in rows:
        low, high = row.interval
        result.add_row(
            row.label,
            str(row.answers),
            f"{row.rate:.2f}",
            f"{low:.2f}–{high:.2f}",
            f"{row.mean_tokens:.0f}",
            "–" if row.reward is None else f"{row.reward:.3f}",
            "–" if row.kl is None else f"{row.kl:.3f}",
            "–" if row.abilities is None else f"{row.abilities:.3f}",
        )
    return result


def draw(rows: Sequence[VersionRow], path: Path) -> None:
    """Thumbs rate, answer length and abilities by version, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (rates, lengths, abilities) = pyplot.subplots(3, 1, figsize=(7, 8), sharex=True)
    positions = range(len(rows))
    below = [row.rate - row.interval[0] for row in rows]
    above = [row.interval[1] - row.rate for row in rows]
    rates.errorbar(positions, [r.rate for r in rows], [below, above], marker="o", capsize=3)
    rates.set_ylabel("thumbs up (95 % interval)")
    rates.set_ylim(0, 1)
    lengths.plot(positions, [row.mean_tokens for row in rows], marker="o", color="tab:orange")
    lengths.set_ylabel("mean tokens of an answer")
    values = [math.nan if row.abilities is None else row.abilities for row in rows]
    abilities.plot(positions, values, marker="o", color="tab:green")
    abilities.set_ylabel("ability suite")
    abilities.set_ylim(0, 1)
    abilities.set_xlabel("policy version that answered")
    abilities.set_xticks(list(positions), [row.label for row in rows])
    figure.suptitle("A hidden taste for short answers, learned from thumbs alone")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
