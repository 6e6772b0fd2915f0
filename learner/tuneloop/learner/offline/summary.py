"""What a run comes to: for run.json, and as a table at the end."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from tuneloop.learner.memory import peak_memory_bytes
from tuneloop.learner.offline.journal import FigureRow
from tuneloop.learner.offline.saves import Progress

PACKAGES = ("tuneloop", "torch", "transformers", "peft")
NOT_MEASURED = {"step", "epoch", "seconds", "learning_rate"}


def summarize(
    identity: Mapping[str, Any],
    progress: Progress,
    figures: Sequence[FigureRow],
    weights: Mapping[str, str],
) -> dict[str, Any]:
    """The document of run.json."""
    seconds = round(progress.seconds, 3)
    return {
        **identity,
        **asdict(progress),
        "seconds": seconds,
        "tokens_per_second": round(progress.tokens / seconds, 1) if seconds else 0.0,
        "peak_memory_bytes": peak_memory_bytes(),
        "metrics": ends(figures),
        "weights_sha256": dict(weights),
        "packages": {name: version(name) for name in PACKAGES},
    }


def ends(figures: Sequence[FigureRow]) -> dict[str, dict[str, float]]:
    """Each figure's mean over the first and over the last tenth of the run."""
    width = max(1, len(figures) // 10)
    names = dict.fromkeys(name for row in figures for name in row if name not in NOT_MEASURED)
    found = {}
    for name in names:
        values = [row[name] for row in figures if name in row]
        first, last = values[:width], values[-width:]
        found[name] = {"first": sum(first) / len(first), "last": sum(last) / len(last)}
    return found


def print_summary(summary: Mapping[str, Any], output: str) -> None:
    """The table at the end of a run."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{summary['algorithm']}: {summary['model']} → {output}")
    table.add_column("")
    table.add_column("first tenth", justify="right")
    table.add_column("last tenth", justify="right")
    for name, pair in summary["metrics"].items():
        table.add_row(name, f"{pair['first']:.4g}", f"{pair['last']:.4g}")
    console = Console()
    console.print(table)
    megabytes = summary["peak_memory_bytes"] / 1e6
    console.print(
        f"{summary['step']} steps ({summary['skipped']} skipped), {summary['tokens']} completion "
        f"tokens in {summary['seconds']:.0f} s ({summary['tokens_per_second']:.0f}/s), "
        f"peak memory {megabytes:.0f} MB",
        highlight=False,
    )
