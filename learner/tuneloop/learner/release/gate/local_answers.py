"""Answers to the gate's prompts by the trainer's own model.

The trainer answers while it saves a version, and the answers stay on disk. It is quicker than
generation, and no user waits for it: the answers of the version before are its drafts, and most of
them hold after a small step. Full weights could not be loaded beside those that serve.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from tuneloop.files import write_file
from tuneloop.learner.samples import GreedyPrompt, SampledAnswer

logger = logging.getLogger("tuneloop.learner.release")

KEPT = 16
"""The number of versions whose answers stay on disk, besides version 0."""


class AnswersGreedily(Protocol):
    """A trainer whose model can be asked."""

    def answers(self, prompts: Sequence[GreedyPrompt]) -> list[SampledAnswer]:
        """Return the current weights' answer to each prompt, in order."""
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
        asked = json.dumps([max_tokens, [list(prompt) for prompt in prompts]])
        self._asked = hashlib.sha256(asked.encode()).hexdigest()

    def save_base_answers(self) -> None:
        """Save the answers of version 0, unless they are known.

        Call this before a checkpoint is restored: the trainer still is version 0 then. Blocks, in
        the trainer's thread.
        """
        if self.of_version(0) is None:
            self.save_answers(0)

    def save_answers(
        self, version: int, others: Sequence[GreedyPrompt] = ()
    ) -> list[SampledAnswer] | None:
        """Save the trainer's answers as those of `version`; blocks, in the trainer's thread.

        Returns the answers to `others`, which cost little when asked at the same time. None: the
        version could not answer. It is published all the same, and the gate holds it.
        """
        own = [GreedyPrompt(tuple(prompt), self._max_tokens) for prompt in self._prompts]
        try:
            answers = self._trainer.answers([*own, *others])
        except (RuntimeError, ValueError) as error:
            logger.error("version %d could not answer the gate's prompts: %s", version, error)
            return None
        self.keep(version, answers[: len(own)])
        return answers[len(own) :]

    def keep(self, version: int, answers: Sequence[SampledAnswer]) -> None:
        """Save what a version answered."""
        self._folder.mkdir(parents=True, exist_ok=True)
        document = {"asked": self._asked, "answers": [asdict(answer) for answer in answers]}
        write_file(self._path(version), json.dumps(document).encode())
        for old in sorted(self._folder.glob("*.json"))[1:-KEPT]:
            old.unlink()

    def of_version(self, version: int) -> list[SampledAnswer] | None:
        """Return what a version answered; None if it was asked nothing, or something else."""
        try:
            document = json.loads(self._path(version).read_text())
            if document["asked"] != self._asked:
                return None
            return [_answer(row) for row in document["answers"]]
        except (FileNotFoundError, TypeError, KeyError):
            # Earlier releases did not save what was asked, so their file holds a bare list; later
            # ones did not tell the thought from the answer.
            return None

    def _path(self, version: int) -> Path:
        return self._folder / f"{version:08d}.json"


def _answer(row: Mapping[str, Any]) -> SampledAnswer:
    return SampledAnswer(
        text=row["text"],
        token_ids=tuple(row["token_ids"]),
        logprobs=tuple(row["logprobs"]),
        reasoning_tokens=row["reasoning_tokens"],
    )
