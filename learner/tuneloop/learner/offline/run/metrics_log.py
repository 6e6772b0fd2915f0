"""The figures of every step: metrics.jsonl, and TensorBoard's event files where it is installed.

After a resume the lines of steps that are taken again are cut off first.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneloop.files import write_file
from tuneloop.text.lines import split_lines

FigureRow = Mapping[str, float]


class MetricsLog:
    """Writes the figures of steps as they are taken."""

    def __init__(self, metrics: Path, tensorboard: Path, *, step: int) -> None:
        """Continue after `step` steps."""
        kept = [row for row in read_figures(metrics) if row["step"] <= step]
        write_file(metrics, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self._file = metrics.open("a", encoding="utf-8")
        self._events = open_events(tensorboard, step + 1)

    def write(self, step: int, figures: FigureRow) -> None:
        """The figures of one step."""
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in figures.items():
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Through to the disk."""
        os.fsync(self._file.fileno())
        self._file.close()
        if self._events is not None:
            self._events.close()


def open_events(folder: Path, first_step: int) -> Any:
    """TensorBoard's writer, which hides earlier events from `first_step` on; None without it."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(log_dir=str(folder), purge_step=first_step, flush_secs=10)


def read_figures(path: Path) -> list[dict[str, float]]:
    """Return all whole lines; a last one that a crash cut short is left out."""
    rows = []
    lines = split_lines(path.read_text(encoding="utf-8")) if path.exists() else []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows
