"""Checkpoints of a run: written every few steps; the newest good one of this run is resumed."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuneloop.errors import CorruptData
from tuneloop.learner.trainer import checkpoint
from tuneloop.learner.trainer.base import Trainer
from tuneloop.learner.trainer.checkpoint import Checkpoint


@dataclass(slots=True, kw_only=True)
class RunProgress:
    """Where a run is, and what it took so far."""

    step: int = 0
    """Steps done."""
    skipped: int = 0
    tokens: int = 0
    """Completion tokens learned from."""
    seconds: float = 0.0
    """In steps and sampling, over all the processes the run lived in."""
    starts: int = 0
    """How often it was started."""


class CheckpointManager:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, *, identity: Mapping[str, Any], keep: int) -> None:
        """`identity` is what the run was started with: checkpoints of another are refused."""
        self._folder = folder
        self._identity = identity_of(identity)
        self._keep = keep

    def save(self, trainer: Trainer, progress: RunProgress) -> None:
        """Keep the state after `progress.step` steps, and no more than the newest few."""
        position = {"run": self._identity, "progress": asdict(progress)}
        trainer.stage_checkpoint(position)(self._folder / f"step-{progress.step:08d}")
        checkpoint.prune(self._folder, self._keep)

    def restore(self, trainer: Trainer, say: Callable[[str], None]) -> RunProgress:
        """Resume from the newest checkpoint that can be used; from the beginning where none can.

        `say` is called with which were refused and why.
        """
        for folder in reversed(checkpoint.found(self._folder)):
            try:
                progress = self._accepted(checkpoint.load(folder))
                trainer.load_checkpoint(folder)
            except CorruptData as error:
                say(f"{error.message}; taking the one before")
                continue
            return progress
        return RunProgress()

    def _accepted(self, found: Checkpoint) -> RunProgress:
        name = found.folder.name
        if found.position.get("run") != self._identity:
            raise CorruptData(f"checkpoint {name}: of another run, or of other settings")
        try:
            return RunProgress(**found.position["progress"])
        except (KeyError, TypeError) as error:
            raise CorruptData(f"checkpoint {name}: no progress in it: {error}") from error


def identity_of(document: Mapping[str, Any]) -> str:
    """SHA-256 of what a run was started with."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
