"""What `learner_quality` found: a table, a JSON document and pictures of the curves."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneloop.learner.offline.intervals import mean_of

CURVES = Path(__file__).parents[1] / "docs" / "quality"
KEYS: Mapping[str, Sequence[str]] = {
    "peers": ("task", "method", "side"),
    "thumbs": ("combined",),
    "live": ("flips", "response_rate", "delay"),
}
"""What tells the cells of a part's table apart; a cell's runs differ in the seed."""

Rows = Sequence[Mapping[str, Any]]


def cells_of(rows: Rows, part: str, tuning_seed: int) -> dict[tuple[Any, ...], Rows]:
    """Runs by cell, without those that only chose the rate."""
    cells: dict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["part"] == part and row["seed"] != tuning_seed:
            cells[tuple(row[key] for key in KEYS[part])].append(row)
    return dict(sorted(cells.items(), key=lambda item: item[0]))


def report(rows: Rows, device: str, *, tuning_seed: int) -> dict[str, Any]:
    """Print a table of each part; return the document to keep."""
    from rich.console import Console
    from rich.table import Table

    parts: dict[str, Any] = {}
    for part, keys in KEYS.items():
        found = []
        table = Table(*keys, "rate", "seeds", "start", "end", "95 % interval", title=part)
        for cell, runs in cells_of(rows, part, tuning_seed).items():
            end = mean_of([run["curve"][-1][-1] for run in runs])
            start = mean_of([run["curve"][0][-1] for run in runs])
            rate = runs[0].get("rate", "")
            found.append(
                {
                    **dict(zip(keys, cell, strict=True)),
                    "rate": rate,
                    "schedule": runs[0].get("schedule", ""),
                    "steps": runs[0]["steps"],
                    "seeds": sorted(run["seed"] for run in runs),
                    "score": end.value,
                    "interval": [end.low, end.high],
                    "curves": [run["curve"] for run in runs],
                }
            )
            interval = f"{end.low:.3f}-{end.high:.3f}"
            figures = [str(rate), str(len(runs)), f"{start.value:.3f}", f"{end.value:.3f}"]
            table.add_row(*map(str, cell), *figures, interval)
        if found:
            parts[part] = found
            Console().print(table)
    tuning = [
        {key: row[key] for key in (*KEYS["peers"], "rate", "schedule")}
        | {"score": row["curve"][-1][-1]}
        for row in rows
        if row["part"] == "peers" and row["seed"] == tuning_seed
    ]
    return {"device": device, **parts, "tuning": tuning}


def draw(rows: Rows, *, tuning_seed: int) -> None:
    """Write a picture for each task and method of the peers, and one for each other part."""
    peers = cells_of(rows, "peers", tuning_seed)
    pictures: dict[str, dict[str, Rows]] = defaultdict(dict)
    for (task, method, side), runs in peers.items():
        name = side if method != "ppo" or side == "tuneloop" else f"{side} (RLOO)"
        pictures[f"{task}:{method}"][name] = runs
    for (combined,), runs in cells_of(rows, "thumbs", tuning_seed).items():
        label = "KTO + reward model + GRPO" if combined else "KTO"
        pictures["thumbs:conditional, thumbs alone"][label] = runs
    for (flips, rate, delay), runs in cells_of(rows, "live", tuning_seed).items():
        panel = f"live:{rate:.0%} answer, {delay} versions late at most"
        pictures[panel][f"{flips:.0%} flipped"] = runs
    figures: dict[str, dict[str, dict[str, Rows]]] = defaultdict(dict)
    for key, lines in pictures.items():
        figure, panel = key.split(":", 1)
        figures[figure][panel] = lines
    for figure_name, panels in figures.items():
        _draw(CURVES / f"{figure_name}.png", panels)


def _draw(path: Path, panels: Mapping[str, Mapping[str, Rows]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * max(2, len(panels)), 3.2), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (panel, lines) in zip(axes, panels.items(), strict=True):
        for label, runs in lines.items():
            points = list(zip(*(run["curve"] for run in runs), strict=True))
            steps = [column[0][0] for column in points]
            scores = [[point[1] for point in column] for column in points]
            (line,) = ax.plot(steps, [sum(s) / len(s) for s in scores], label=label)
            low, high = [min(s) for s in scores], [max(s) for s in scores]
            ax.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        ax.set(title=panel, xlabel="step", ylim=(0.35, 1.02))
        ax.title.set_fontsize(9)
        ax.grid(alpha=0.3)
        ax.legend(loc="lower right", fontsize=7)
    axes[0].set_ylabel("hidden preference")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})
