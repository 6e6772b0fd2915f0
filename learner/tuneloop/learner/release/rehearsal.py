"""A candidate's answers by the trainer's own model, for weights that generation cannot hold aside.

Full weights serve as soon as generation has them, so their answers are taken where they are made:
in the trainer, while the version is saved, and kept on disk until it is decided about. Greedy, like
the gate's questions to generation.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import GenerationConfig

from tuneloop.generation.prompts import Tokenization
from tuneloop.learner.offline.sampler import only_config
from tuneloop.learner.release.answers import Answer

logger = logging.getLogger("tuneloop.learner.rehearsal")

KEPT = 4
"""Versions whose answers stay on disk."""
AT_ONCE = 8
"""Prompts in a batch: the logits of every token are kept."""


class Answering(Protocol):
    """A trainer whose model can be asked."""

    def answers(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Answer]:
        """The likeliest answer of the weights as they are to each prompt (token ids)."""
        ...


class Rehearsals:
    """The answers of versions to the gate's prompts."""

    def __init__(
        self,
        folder: Path,
        trainer: Answering,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
    ) -> None:
        self._folder = folder
        self._trainer = trainer
        self._prompts = prompts
        self._max_tokens = max_tokens

    def take(self, version: int) -> None:
        """Have the trainer answer as `version`, which it is now; blocks, in the trainer's thread.

        A version that could not answer is published all the same, and held by the gate.
        """
        try:
            answers = self._trainer.answers(self._prompts, self._max_tokens)
        except (RuntimeError, ValueError) as error:
            logger.error("version %d could not answer the gate's prompts: %s", version, error)
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        document = json.dumps([asdict(answer) for answer in answers])
        partial = self._folder / ".unfinished"
        partial.write_text(document)
        partial.rename(self._path(version))
        for old in sorted(self._folder.glob("*.json"))[:-KEPT]:
            old.unlink()

    def of(self, version: int) -> list[Answer] | None:
        """What a version answered; None where nobody asked it, or asked something else."""
        try:
            rows = json.loads(self._path(version).read_text())
        except FileNotFoundError:
            return None
        if len(rows) != len(self._prompts):
            return None
        return [
            Answer(
                text=row["text"],
                token_ids=tuple(row["token_ids"]),
                logprobs=tuple(row["logprobs"]),
            )
            for row in rows
        ]

    def _path(self, version: int) -> Path:
        return self._folder / f"{version:08d}.json"


@torch.no_grad()
def rehearse(
    model: Any, tokenization: Tokenization, prompts: Sequence[Sequence[int]], max_tokens: int
) -> list[Answer]:
    """The likeliest answer of a transformers model to each prompt (token ids), in order."""
    stops = sorted(tokenization.stop_token_ids)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_tokens,
        eos_token_id=stops or None,
        pad_token_id=stops[0] if stops else 0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return [
        answer
        for start in range(0, len(prompts), AT_ONCE)
        for answer in _batch(model, tokenization, prompts[start : start + AT_ONCE], config)
    ]


def _batch(
    model: Any,
    tokenization: Tokenization,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
) -> list[Answer]:
    width = max(map(len, prompts))
    input_ids = torch.full((len(prompts), width), config.pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        attention_mask[row, width - len(prompt) :] = 1
    with only_config(model):
        output = model.generate(
            input_ids.to(model.device),
            attention_mask=attention_mask.to(model.device),
            generation_config=config,
        )
    tokens = output.sequences[:, width:]
    logits = torch.stack(output.logits, dim=1).float()
    logprobs = torch.log_softmax(logits, dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return [
        _answer(tokenization, row_tokens, row_logprobs)
        for row_tokens, row_logprobs in zip(tokens.tolist(), logprobs.tolist(), strict=True)
    ]


def _answer(tokenization: Tokenization, tokens: Sequence[int], logprobs: Sequence[float]) -> Answer:
    stops = tokenization.stop_token_ids
    end = next((i for i, token in enumerate(tokens) if token in stops), None)
    length = len(tokens) if end is None else end + 1
    return Answer(
        text=tokenization.decode(tokens[: length if end is None else end]),
        token_ids=tuple(tokens[:length]),
        logprobs=tuple(logprobs[:length]),
    )
