"""What a run comes to: for run.json, as a table, and as a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tuneloop.learner.offline.run.checkpoints import RunProgress
from tuneloop.learner.offline.run.metrics_log import FigureRow
from tuneloop.learner.trainer.base import peak_memory_bytes

PACKAGES = ("tuneloop", "torch", "transformers", "peft")
NOT_MEASURED = {"step", "epoch", "seconds", "learning_rate"}


def summarize(
    identity: Mapping[str, Any],
    progress: RunProgress,
    figures: Sequence[FigureRow],
    weights: Mapping[str, str],
) -> dict[str, Any]:
    """Return the document of run.json."""
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
    """Return each figure's mean over the first and over the last tenth of the run."""
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
    for row in summary.get("abilities", [])[-1:]:
        if (change := row["change"]) is not None:
            of = change["value"]
            console.print(
                f"ability suite: {row['figures']['value']:.3f}, changed by {of['difference']:+.3f} "
                f"({of['low']:+.3f} to {of['high']:+.3f})",
                highlight=False,
            )
    megabytes = summary["peak_memory_bytes"] / 1e6
    console.print(
        f"{summary['step']} steps ({summary['skipped']} skipped), {summary['tokens']} completion "
        f"tokens in {summary['seconds']:.0f} s ({summary['tokens_per_second']:.0f}/s), "
        f"peak memory {megabytes:.0f} MB",
        highlight=False,
    )


SHOWN = (
    "reward",
    "loss",
    "accuracy",
    "preference_accuracy",
    "kl",
    "ability_value",
    "completion_length",
    "stopped_fraction",
    "chosen_margin",
    "desirable_margin",
    "undesirable_margin",
    "value_loss",
    "clip_fraction",
    "gradient_norm",
)
"""In the order they are looked for; the first six that the run has."""
LIMIT = 6


def draw(figures: Sequence[FigureRow], path: Path, *, title: str) -> bool:
    """Write a PNG with a panel for each figure; False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    names = [name for name in SHOWN if any(name in row for row in figures)][:LIMIT]
    if not names:
        return False
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout="constrained")
    figure.suptitle(title, fontsize=11)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, name in zip(panels, names, strict=False):
        points = [(row["step"], row[name]) for row in figures if name in row]
        steps, values = zip(*points, strict=True)
        panel.plot(steps, values, color="#9db4c8", linewidth=0.8)
        panel.plot(steps, smoothed(values), color="#1f4e79", linewidth=1.6)
        panel.set_title(name.replace("_", " "), fontsize=9)
        panel.set_xlabel("step", fontsize=8)
        panel.tick_params(labelsize=7)
        panel.grid(visible=True, linewidth=0.3)
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    figure.savefig(path, dpi=110, format="png")
    return True


def smoothed(values: Sequence[float]) -> list[float]:
    """Return a running mean over the last tenth of the run."""
    width = max(1, len(values) // 10)
    means = []
    for i in range(len(values)):
        window = values[max(0, i + 1 - width) : i + 1]
        means.append(sum(window) / len(window))
    return means
