"""What a person sees of a run: a progress bar on a terminal, else a line every few steps."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

SHOWN = ("loss", "reward", "accuracy", "kl")
"""Figures beside the bar, where the step has them."""

LONG = 256
"""Completions whose sampling is worth a line of its own."""


class Console:
    """Writes to standard error."""

    def __init__(self, *, every: int) -> None:
        """`every` is the number of steps to a line where there is no terminal."""
        self._every = every
        self._terminal = sys.stderr.isatty()
        self._bar: Any = None
        self._task: Any = None
        self._shown_step = 0
        self._shown_tenths = 0
        self._shown_time = time.monotonic()

    @contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[None]:
        """Show progress towards `total` steps while the block runs."""
        self._shown_step = done
        if not self._terminal:
            yield
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=Console(stderr=True),
        )
        with self._bar:
            self._task = self._bar.add_task(title, total=total, completed=done, figures="")
            yield
        self._bar = None

    def step(self, step: int, total: int, figures: Mapping[str, float]) -> None:
        """One more step is done."""
        shown = "  ".join(f"{name} {figures[name]:.4g}" for name in SHOWN if name in figures)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, total=total, figures=shown)
        elif step % self._every == 0 or step >= total:
            now = time.monotonic()
            pace = (now - self._shown_time) / max(1, step - self._shown_step)
            self._shown_time, self._shown_step = now, step
            left = f"{pace * max(0, total - step):.0f} s left"
            self.line(f"step {step}/{total}  {shown}  {pace:.2f} s/step  {left}")

    def sampled(self, done: int, total: int) -> None:
        """Show how many completions of how many are sampled, if that takes long."""
        if self._bar is not None:
            self._bar.update(self._task, figures=f"sampled {done}/{total}")
            if self._bar.tasks[0].total == total:
                self._bar.update(self._task, completed=done)
        elif total >= LONG and done * 10 // total > self._shown_tenths % 10:
            self.line(f"sampled {done}/{total}")
        self._shown_tenths = done * 10 // total

    def line(self, text: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)
