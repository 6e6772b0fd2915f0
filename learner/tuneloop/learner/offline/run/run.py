"""The run: resume where it stopped, learn, keep checkpoints, write the version."""

import hashlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.learner.files import write_folder
from tuneloop.learner.offline.run.ability_watch import AbilityWatch
from tuneloop.learner.offline.run.checkpoints import CheckpointManager, RunProgress
from tuneloop.learner.offline.run.console import Console
from tuneloop.learner.offline.run.folder import RunFolder, write_json
from tuneloop.learner.offline.run.metrics_log import MetricsLog, read_figures
from tuneloop.learner.offline.run.report import draw, summarize
from tuneloop.learner.offline.sources.base import TrainSource
from tuneloop.learner.trainer.base import StepResult, Trainer


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveSchedule:
    """When a run ends, and how often it saves a checkpoint."""

    max_steps: int | None
    save_steps: int
    save_total_limit: int


class Run:
    """One training run in its folder."""

    def __init__(
        self,
        *,
        title: str,
        folder: RunFolder,
        identity: Mapping[str, Any],
        trainer: Trainer,
        source: TrainSource,
        pace: SaveSchedule,
        console: Console,
        write_version: Callable[[Path], None],
        abilities: AbilityWatch | None = None,
    ) -> None:
        """`write_version` writes the finished version's files into an empty folder."""
        self._abilities = abilities
        self._title = title
        self._folder = folder
        self._identity = identity
        self._trainer = trainer
        self._source = source
        self._pace = pace
        self._console = console
        self._write_files = write_version
        self._checkpoints = CheckpointManager(
            folder.checkpoints, identity=identity, keep=pace.save_total_limit
        )
        self._progress = RunProgress()

    @property
    def _total(self) -> int:
        return min(self._source.steps, self._pace.max_steps or self._source.steps)

    def go(self) -> dict[str, Any] | None:
        """Train to the end; the summary, or None when the user stopped it (it can be resumed)."""
        self._resume()
        if self._abilities is not None:
            self._abilities.begin(self._progress.step)
        with stop_asked() as stopping:
            finished = self._learn(stopping)
        if not finished:
            return None
        if self._abilities is not None:
            self._end_abilities(self._abilities)
        self._write_version()
        figures = read_figures(self._folder.metrics)
        draw(figures, self._folder.curves, title=self._title)
        summary = summarize(self._identity, self._progress, figures, self._weights())
        if self._abilities is not None:
            summary["abilities"] = self._abilities.document()
        write_json(self._folder.summary, summary)
        return summary

    def _end_abilities(self, abilities: AbilityWatch) -> None:
        """Ask the suite a last time; after a drop, where that is wanted, go back to before it."""
        abilities.ask(self._progress.step)
        if abilities.ends_run:
            step = abilities.restore_best()
            self._console.line(f"stopped at a drop in abilities; the version is of step {step}")

    def _resume(self) -> None:
        self._progress = self._checkpoints.restore(self._trainer, self._console.line)
        self._progress.starts += 1
        self._source.resume(self._progress.step)
        if self._progress.step:
            self._console.line(f"going on after step {self._progress.step}")

    def _learn(self, stopping: threading.Event) -> bool:
        """Take the steps that are left; whether the run came to its end."""
        metrics_log = MetricsLog(
            self._folder.metrics, self._folder.tensorboard, step=self._progress.step
        )
        saved = self._progress.step
        try:
            with self._console.bar(self._title, self._total, self._progress.step):
                while not stopping.is_set():
                    step = self._progress.step
                    if step > saved and (
                        step % self._pace.save_steps == 0 or self._source.due(step)
                    ):
                        self._save()
                        saved = step
                    if not self._take(step, metrics_log):
                        self._save()
                        return True
            self._save()
            return False
        finally:
            metrics_log.close()

    def _take(self, step: int, metrics_log: MetricsLog) -> bool:
        """Take one step; return False when there is none left."""
        started = time.perf_counter()
        dropped = self._abilities is not None and self._abilities.ends_run
        over = step >= self._total or dropped
        train_step = None if over else self._source.train_step(step)
        if train_step is None:
            return False
        result = self._trainer.step(train_step.samples)
        seconds = time.perf_counter() - started
        self._note(result, seconds)
        figures = {
            **train_step.metrics,
            **result.metrics,
            "epoch": train_step.epoch,
            "seconds": seconds,
        }
        if self._abilities is not None and self._abilities.due(step + 1, self._total):
            figures.update(self._abilities.ask(step + 1))
        metrics_log.write(step + 1, figures)
        if result.skipped:
            self._console.line(f"step {step + 1} left the weights as they were: {result.reason}")
        self._console.step(step + 1, self._total, figures)
        return True

    def _note(self, result: StepResult, seconds: float) -> None:
        self._progress.step += 1
        self._progress.skipped += result.skipped
        self._progress.tokens += int(result.metrics.get("tokens", 0))
        self._progress.seconds += seconds

    def _save(self) -> None:
        self._checkpoints.save(self._trainer, self._progress)

    def _write_version(self) -> None:
        """Put the version's files into the run's folder, the weights last of all."""
        staged = self._folder.root / "version"
        write_folder(staged, self._write_files)
        shutil.rmtree(self._folder.adapter, ignore_errors=True)
        for path in sorted(staged.iterdir(), key=lambda p: (p.suffix == ".safetensors", p.name)):
            path.rename(self._folder.root / path.name)
        staged.rmdir()

    def _weights(self) -> dict[str, str]:
        """SHA-256 of every weights file of the version."""
        return {
            path.name: sha256_of(path) for path in sorted(self._folder.root.glob("*.safetensors"))
        }


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def stop_asked() -> Iterator[threading.Event]:
    """An event set by the first Ctrl-C or SIGTERM, for a stop between steps; a second one ends."""
    asked = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def stop(number: int, frame: object) -> None:
        asked.set()
        # Not print: the signal may have interrupted one.
        os.write(2, b"stopping after this step; once more ends it at once\n")
        for each in numbers:
            signal.signal(each, before[each])

    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            signal.signal(number, stop)
    try:
        yield asked
    finally:
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                signal.signal(number, before[number])
