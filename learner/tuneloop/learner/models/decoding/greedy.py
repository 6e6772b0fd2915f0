"""The likeliest answers of a model, with its last ones as drafts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessor

from tuneloop.generation.prompts import Tokenization
from tuneloop.learner.models.decoding.sampling import (
    Sampled,
    as_answer,
    cut_completion,
    generate,
)
from tuneloop.learner.samples import GreedyPrompt, SampledAnswer, TokenSequence

GREEDY_BATCH = 32
"""Prompts in a batch."""


@torch.no_grad()
def greedy_answers(
    model: Any, tokenization: Tokenization, prompts: Sequence[Sequence[int]], max_tokens: int
) -> list[SampledAnswer]:
    """Return the likeliest answer of a transformers model to each prompt (token ids), in order."""
    return [
        as_answer(found)
        for start in range(0, len(prompts), GREEDY_BATCH)
        for found in _likeliest(
            model, tokenization, prompts[start : start + GREEDY_BATCH], max_tokens
        )
    ]


def _likeliest(
    model: Any, tokenization: Tokenization, prompts: Sequence[Sequence[int]], max_tokens: int
) -> list[Sampled]:
    noted = NotedLikeliest()
    generate(model, tokenization, prompts, max_tokens, noted)
    return [
        cut_completion(tokenization, *row) for row in zip(prompts, *noted.result(), strict=True)
    ]


class NotedLikeliest(LogitsProcessor):  # type: ignore[misc]
    """Notes the likeliest next token and its log-prob; `generate` takes that one too."""

    def __init__(self) -> None:
        self._chosen: list[Tensor] = []
        self._logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores, (B, vocabulary), as they are."""
        z = scores.float()
        most = z.max(dim=-1)
        self._chosen.append(most.indices)
        self._logprobs.append(most.values - z.logsumexp(dim=-1))
        return scores

    def result(self) -> tuple[list[list[int]], list[list[float]]]:
        """Return tokens and log-probs by row; after an end token they mean nothing."""
        chosen, logprobs = torch.stack(self._chosen, -1), torch.stack(self._logprobs, -1)
        return chosen.tolist(), logprobs.tolist()


class Likeliest(NamedTuple):
    """What a model would have said in the place of each token of a completion."""

    logprobs: tuple[float, ...]
    token_ids: tuple[int, ...]
    divergences: tuple[float, ...] = ()
    """KL(π ‖ π_ref) before each token, in nats, where it was asked for."""


class Drafted(Protocol):
    """See `PolicyModel`."""

    @property
    def module(self) -> Any:
        """The transformers model as it is now."""
        ...

    def compute_likeliest(
        self, sequences: Sequence[TokenSequence], *, divergences: bool = False
    ) -> list[Likeliest]:
        """Return the likeliest token in the place of each completion token."""
        ...


DRAFTS = 1024
"""Answers kept as drafts; the oldest go first."""


class GreedyDecoder:
    """Greedy answers of a model that changes little from one call to the next.

    The last answer to a prompt is the draft of the next: one pass tells how much of it the model
    would say again, and only what follows is generated. That is speculative decoding at temperature
    0 (Leviathan et al. 2023, https://arxiv.org/abs/2211.17192), with the model before as the draft
    model; after a small step nearly all of a draft holds.
    """

    def __init__(self, model: Drafted, tokenization: Tokenization) -> None:
        self._model = model
        self.tokenization = tokenization
        self._drafts: dict[tuple[int, ...], tuple[int, ...]] = {}

    def answers(self, prompts: Sequence[GreedyPrompt]) -> list[SampledAnswer]:
        """Return the likeliest answer to each prompt, in order.

        All that has to be generated is generated together.
        """
        known = self._checked_drafts(prompts)
        limits = [prompt.max_tokens for prompt in prompts]
        unfinished = [i for i, found in enumerate(known) if self._goes_on(found, limits[i])]
        if unfinished:
            begun = [(*prompts[i].token_ids, *known[i].token_ids) for i in unfinished]
            room = max(limits[i] - len(known[i].token_ids) for i in unfinished)
            further = greedy_answers(self._model.module, self.tokenization, begun, room)
            for i, rest in zip(unfinished, further, strict=True):
                known[i] = Likeliest(
                    token_ids=(*known[i].token_ids, *rest.token_ids)[: limits[i]],
                    logprobs=(*known[i].logprobs, *rest.logprobs)[: limits[i]],
                )
        changed = [i for i in unfinished if prompts[i].is_measured]
        if changed:
            said = [_plain(prompts[i], known[i].token_ids) for i in changed]
            measured = self._model.compute_likeliest(said, divergences=True)
            for i, found in zip(changed, measured, strict=True):
                known[i] = known[i]._replace(divergences=found.divergences)
        for prompt, found in zip(prompts, known, strict=True):
            self._drafts.pop(prompt.token_ids, None)
            self._drafts[prompt.token_ids] = found.token_ids
        for old in list(self._drafts)[:-DRAFTS]:
            del self._drafts[old]
        return [
            replace(
                as_answer(
                    cut_completion(
                        self.tokenization, prompt.token_ids, found.token_ids, found.logprobs
                    )
                ),
                divergences=found.divergences,
            )
            for prompt, found in zip(prompts, known, strict=True)
        ]

    def _checked_drafts(self, prompts: Sequence[GreedyPrompt]) -> list[Likeliest]:
        """Return what the model would say of each draft, and the token that it would say next."""
        drafts = [self._drafts.get(one.token_ids, ())[: one.max_tokens] for one in prompts]
        known = [Likeliest(token_ids=(), logprobs=())] * len(prompts)
        for is_measured in (False, True):
            drafted = [
                i
                for i, prompt in enumerate(prompts)
                if drafts[i] and prompt.is_measured is is_measured
            ]
            if not drafted:
                continue
            sequences = [_plain(prompts[i], drafts[i]) for i in drafted]
            likeliest = self._model.compute_likeliest(sequences, divergences=is_measured)
            for i, found in zip(drafted, likeliest, strict=True):
                same = [a == b for a, b in zip(drafts[i], found.token_ids, strict=True)]
                until = (*same, False).index(False) + 1
                known[i] = Likeliest(
                    token_ids=found.token_ids[:until],
                    logprobs=found.logprobs[:until],
                    divergences=found.divergences[:until],
                )
        return known

    def _goes_on(self, found: Likeliest, max_tokens: int) -> bool:
        if not found.token_ids:
            return True
        ended = found.token_ids[-1] in self.tokenization.stop_token_ids
        return not ended and len(found.token_ids) < max_tokens


def _plain(prompt: GreedyPrompt, completion: tuple[int, ...]) -> TokenSequence:
    return TokenSequence(
        prompt_token_ids=prompt.token_ids,
        completion_token_ids=completion,
        generation_logprobs=(),
        temperature=1.0,
    )
