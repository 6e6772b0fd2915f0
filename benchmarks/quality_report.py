"""What `learner_quality` found: a table, a JSON document and pictures of the curves."""

import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CURVES = Path(__file__).parents[1] / "docs" / "quality"
KEYS: Mapping[str, Sequence[str]] = {
    "peers": ("task", "method", "side"),
    "thumbs": ("kto", "grpo"),
    "live": ("flips", "response_rate", "delay"),
}
"""What tells the cells of a part's table apart; a cell's runs differ in the seed."""

T95 = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t, two-sided 95 %, by degrees of freedom (none in the first)."""

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A mean over seeds and its 95 % interval."""

    mean: float
    ends: tuple[float, float] | None
    """None of a single seed."""

    def __str__(self) -> str:
        if self.ends is None:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} ({self.ends[0]:.3f} to {self.ends[1]:.3f})"


def figure_of(values: Sequence[float]) -> Figure:
    """The mean of up to 10 independent values, and its interval by Student's t."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Figure(mean=mean, ends=None)
    half = T95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return Figure(mean=mean, ends=(mean - half, mean + half))


def end_of(run: Mapping[str, Any]) -> float:
    """The score after the last step."""
    return float(run["curve"][-1][-1])


def difference(runs: Rows, peer: Rows) -> Figure | None:
    """How far runs end above a peer's of the same seeds, hence from the same model and data."""
    ends = {run["seed"]: end_of(run) for run in peer}
    both = [end_of(run) - ends[run["seed"]] for run in runs if run["seed"] in ends]
    return figure_of(both) if both else None


def cells_of(rows: Rows, part: str, tuning_seeds: Collection[int]) -> dict[tuple[Any, ...], Rows]:
    """Runs by cell, without those that only chose the rate."""
    cells: dict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["part"] == part and row["seed"] not in tuning_seeds:
            cells[tuple(row[key] for key in KEYS[part])].append(row)
    return dict(sorted(cells.items(), key=lambda item: item[0]))


def report(rows: Rows, device: str, tuning_seeds: Collection[int]) -> dict[str, Any]:
    """Print a table of each part; return the document to keep."""
    from rich.console import Console
    from rich.table import Table

    parts: dict[str, Any] = {}
    for part, keys in KEYS.items():
        found = []
        table = Table(*keys, "rate", "schedule", "seeds", "end", "above TRL", title=part)
        cells = cells_of(rows, part, tuning_seeds)
        for cell, runs in cells.items():
            end, above = figure_of([end_of(run) for run in runs]), None
            if part == "peers" and cell[-1] == "tuneloop":
                above = difference(runs, cells.get((*cell[:-1], "trl_tuned"), ()))
            row = {
                **dict(zip(keys, cell, strict=True)),
                **{key: runs[0][key] for key in ("rate", "schedule", "steps") if key in runs[0]},
                "seeds": sorted(run["seed"] for run in runs),
                "score": end.mean,
                "interval": end.ends,
                "curves": [run["curve"] for run in runs],
            }
            if above is not None:
                row |= {"above_trl": above.mean, "above_trl_interval": above.ends}
            found.append(row)
            figures = [row.get("rate", ""), row.get("schedule", ""), len(runs), end, above or ""]
            table.add_row(*map(str, (*cell, *figures)))
        if found:
            parts[part] = found
            Console(width=150).print(table)
    tuning = [
        {key: row[key] for key in (*KEYS["peers"], "seed", "rate", "schedule")}
        | {"score": end_of(row)}
        for row in rows
        if row["part"] == "peers" and row["seed"] in tuning_seeds
    ]
    return {"device": device, **parts, "tuning": tuning}


def draw(rows: Rows, tuning_seeds: Collection[int]) -> None:
    """Write a picture for each task and method of the peers, and one for each other part."""
    peers = cells_of(rows, "peers", tuning_seeds)
    pictures: dict[str, dict[str, Rows]] = defaultdict(dict)
    for (task, method, side), runs in peers.items():
        pictures[f"{task}:{method}"][side] = runs
    for (kto, grpo), runs in cells_of(rows, "thumbs", tuning_seeds).items():
        parts = ["KTO"] * bool(kto) + ["reward model", "GRPO"] * bool(grpo)
        pictures["thumbs:conditional, thumbs alone"][" + ".join(parts)] = runs
    for (flips, rate, delay), runs in cells_of(rows, "live", tuning_seeds).items():
        panel = f"live:{rate:.0%} answer, {delay} versions late at most"
        pictures[panel][f"{flips:.0%} flipped"] = runs
    figures: dict[str, dict[str, dict[str, Rows]]] = defaultdict(dict)
    for key, lines in pictures.items():
        figure, panel = key.split(":", 1)
        figures[figure][panel] = lines
    for figure_name, panels in figures.items():
        _draw(CURVES / f"{figure_name}.png", panels)


def _draw(path: Path, panels: Mapping[str, Mapping[str, Rows]]) -> None:
    from matplotlib import figure as canvas

    figure = canvas.Figure(figsize=(3.4 * max(2, len(panels)), 3.2), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    labels = sorted({label for lines in panels.values() for label in lines})
    colors = {label: f"C{number}" for number, label in enumerate(labels)}
    for ax, (panel, lines) in zip(axes, panels.items(), strict=True):
        for label, runs in lines.items():
            points = list(zip(*(run["curve"] for run in runs), strict=True))
            steps = [column[0][0] for column in points]
            scores = [[point[1] for point in column] for column in points]
            ax.plot(steps, [sum(s) / len(s) for s in scores], label=label, color=colors[label])
            low, high = [min(s) for s in scores], [max(s) for s in scores]
            ax.fill_between(steps, low, high, color=colors[label], alpha=0.2, linewidth=0)
        ax.set(title=panel, xlabel="step", ylim=(0.35, 1.02))
        ax.title.set_fontsize(9)
        ax.grid(alpha=0.3)
        ax.legend(loc="lower right", fontsize=7)
    axes[0].set_ylabel("hidden preference")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})
