"""The course of a run as a picture."""

from collections.abc import Sequence
from pathlib import Path

from tuneloop.learner.offline.journal import FigureRow

SHOWN = (
    "reward",
    "loss",
    "accuracy",
    "preference_accuracy",
    "kl",
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
    """A running mean over the last tenth of the run."""
    width = max(1, len(values) // 10)
    means = []
    for i in range(len(values)):
        window = values[max(0, i + 1 - width) : i + 1]
        means.append(sum(window) / len(window))
    return means
