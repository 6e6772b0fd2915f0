"""Scores of encoded texts, with gradients; a language model reads what several share only once.

The answers of a pair or a ranking begin with the same prompt. Packed, they stand in one row without
padding, the prompt once, and each is scored in the state of its own last token. An encoder sees
both ways and cannot share anything: its texts are padded, neighbours of like length together.
"""

import itertools
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tuneloop.learner.models.architecture import run_body, take_packed_rows
from tuneloop.learner.models.batch import micro_batches, packed_batches
from tuneloop.learner.models.packing import pack
from tuneloop.learner.samples import TokenSequence
from tuneloop.models.reward_model import Encoding, RewardModel

Encoded = tuple[Encoding, ...]
"""The texts of one sample."""
T = TypeVar("T")


class RewardScores:
    """Runs a reward model on samples of K texts each."""

    def __init__(self, model: RewardModel, *, packing: bool) -> None:
        """Pack rows where `packing` is wanted and the model takes them."""
        self._model = model
        self.packs = packing and model.causal and take_packed_rows(model.module)

    def cut(
        self, items: Sequence[tuple[T, Encoded]], token_budget: int
    ) -> list[list[tuple[T, Encoded]]]:
        """Cut samples of K texts each into micro-batches of at most `token_budget` tokens."""
        if self.packs:
            return packed_batches(
                items, sequences=lambda item: sequences_of(item[1]), token_budget=token_budget
            )
        return micro_batches(
            items,
            length=lambda item: max(len(encoding["input_ids"]) for encoding in item[1]),
            rows=len(items[0][1]),
            token_budget=token_budget,
        )

    def of(self, samples: Sequence[Encoded]) -> Tensor:
        """Return (B, K) scores of B samples of K texts; takes gradients."""
        texts = len(samples[0])
        if not self.packs:
            flat = self._model.forward([e for encoded in samples for e in encoded])
            return flat.view(len(samples), texts)
        module = self._model.module
        sequences = [s for encoded in samples for s in sequences_of(encoded)]
        layout = pack(sequences, module.device)
        ends = torch.tensor([len(s.completion_token_ids) for s in sequences]).cumsum(0) - 1
        on_gpu = module.device.type == "cuda"
        with torch.autocast(module.device.type, torch.bfloat16, enabled=on_gpu):
            states = run_body(module, layout)[layout.sources[ends.to(module.device)]]
            scores: Tensor = module.score(states).squeeze(-1)
        scores = scores if scores.dtype == torch.float64 else scores.float()
        return scores.view(len(samples), texts)


def sequences_of(encoded: Encoded) -> list[TokenSequence]:
    """Return the texts of a sample with what they share as prompt.

    A row's last token predicts nothing and is left out of the row; here it is one more than the
    text has, so that the text's own last token is the one that "predicts" it.
    """
    texts = [encoding["input_ids"] for encoding in encoded]
    same = itertools.takewhile(lambda tokens: len(set(tokens)) == 1, zip(*texts, strict=False))
    shared = max(1, len(list(same)))
    return [
        TokenSequence(
            prompt_token_ids=tuple(ids[:shared]),
            completion_token_ids=(*ids[shared:], 0),
            generation_logprobs=(),
            temperature=1.0,
        )
        for ids in texts
    ]


def head_name(module: Any) -> str:
    """Return the name of the last linear layer with one output."""
    heads: list[str] = [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and part.out_features == 1
    ]
    return heads[-1]
