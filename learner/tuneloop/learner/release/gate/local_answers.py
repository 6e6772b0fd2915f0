"""A candidate's answers by the trainer's own model, for weights that generation cannot hold aside.

Full weights serve as soon as generation loads them, so the trainer answers the gate's prompts while
it saves the version, and the answers stay on disk until the version is decided about. They are
greedy, like the gate's requests to generation.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from tuneloop.files import write_file
from tuneloop.learner.samples import SampledAnswer

logger = logging.getLogger("tuneloop.learner.release")

KEPT = 4
"""The number of versions whose answers stay on disk."""


class AnswersGreedily(Protocol):
    """A trainer whose model can be asked."""

    def answers(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[SampledAnswer]:
        """Return the current weights' greedy answer to each prompt (token ids)."""
        ...


class LocalAnswers:
    """The answers of versions to the gate's prompts."""

    def __init__(
        self,
        folder: Path,
        trainer: AnswersGreedily,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
    ) -> None:
        self._folder = folder
        self._trainer = trainer
        self._prompts = prompts
        self._max_tokens = max_tokens

    def save_answers(self, version: int) -> None:
        """Save the trainer's answers as those of `version`; blocks, in the trainer's thread.

        A version that could not answer is published all the same, and the gate holds it.
        """
        try:
            answers = self._trainer.answers(self._prompts, self._max_tokens)
        except (RuntimeError, ValueError) as error:
            logger.error("version %d could not answer the gate's prompts: %s", version, error)
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        document = json.dumps([asdict(answer) for answer in answers])
        write_file(self._path(version), document.encode())
        for old in sorted(self._folder.glob("*.json"))[:-KEPT]:
            old.unlink()

    def of_version(self, version: int) -> list[SampledAnswer] | None:
        """Return what a version answered; None if it was asked nothing, or something else."""
        try:
            rows = json.loads(self._path(version).read_text())
        except FileNotFoundError:
            return None
        if len(rows) != len(self._prompts):
            return None
        return [
            SampledAnswer(
                text=row["text"],
                token_ids=tuple(row["token_ids"]),
                logprobs=tuple(row["logprobs"]),
            )
            for row in rows
        ]

    def _path(self, version: int) -> Path:
        return self._folder / f"{version:08d}.json"
