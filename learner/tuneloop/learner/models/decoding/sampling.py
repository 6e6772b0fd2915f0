"""Completions of the model in training, sampled with their exact log-probs."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from tuneloop.errors import FailedPrecondition
from tuneloop.generation.prompts import Tokenization
from tuneloop.learner.samples import SampledAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """One completion."""

    token_ids: tuple[int, ...]
    """With the token that ended it, if one did."""
    logprobs: tuple[float, ...]
    text: str
    """Of the answer, without its thought."""
    stopped: bool
    """False when it ran into the limit."""
    reasoning_tokens: int = 0
    """The first tokens that are its thought, delimiters included."""


class Sampler:
    """Samples from a causal language model with one tokenizer."""

    def __init__(
        self,
        tokenization: Tokenization,
        *,
        temperature: float,
        max_tokens: int,
        batch_size: int,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Call `report` with how many completions of a call are done, and how many there are."""
        self._report = report
        self._tokenization = tokenization
        self._temperature = temperature
        self._max_tokens = max_tokens
        self._batch_size = batch_size

    def sample(
        self, model: Any, prompts: Sequence[Sequence[int]], seeds: Sequence[str]
    ) -> list[Sampled]:
        """Return one completion of each prompt (token ids), in order; `seeds` decide which.

        `model` is a transformers model with `generate`; its mode is left as it is.
        """
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        found: dict[int, Sampled] = {}
        for start in range(0, len(order), self._batch_size):
            chosen = order[start : start + self._batch_size]
            completions = self._batch(
                model, [prompts[i] for i in chosen], [seeds[i] for i in chosen]
            )
            found.update(zip(chosen, completions, strict=True))
            self._report(len(found), len(order))
        return [found[i] for i in range(len(prompts))]

    @torch.no_grad()
    def _batch(
        self, model: Any, prompts: Sequence[Sequence[int]], seeds: Sequence[str]
    ) -> list[Sampled]:
        choose = InverseSampling(uniforms(seeds, self._max_tokens), self._temperature)
        generate(model, self._tokenization, prompts, self._max_tokens, choose)
        return [
            cut_completion(self._tokenization, *row)
            for row in zip(prompts, *choose.result(), strict=True)
        ]


def generate(
    model: Any,
    tokenization: Tokenization,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    processor: LogitsProcessor,
) -> None:
    """Run `generate` on prompts padded at their left; `processor` chooses or notes each token.

    The next token is the likeliest of the scores that it leaves.
    """
    stops = sorted(tokenization.stop_token_ids)
    pad = stops[0] if stops else 0
    width = max(map(len, prompts))
    input_ids = torch.full((len(prompts), width), pad, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        attention_mask[row, width - len(prompt) :] = 1
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_tokens,
        eos_token_id=stops or None,
        pad_token_id=pad,
        use_cache=True,
    )
    with only_config(model):
        model.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=attention_mask.to(model.device),
            generation_config=config,
            logits_processor=LogitsProcessorList([processor]),
        )


def cut_completion(
    tokenization: Tokenization,
    prompt: Sequence[int],
    tokens: Sequence[int],
    logprobs: Sequence[float],
) -> Sampled:
    """Return a completion up to and with the token that ended it."""
    stops = tokenization.stop_token_ids
    end = next((i for i, token in enumerate(tokens) if token in stops), None)
    length = len(tokens) if end is None else end + 1
    read = tokenization.read_completion(tokens[:length], prompt)
    return Sampled(
        token_ids=tuple(tokens[:length]),
        logprobs=tuple(logprobs[:length]),
        text=read.answer,
        stopped=end is not None,
        reasoning_tokens=read.reasoning_tokens,
    )


def as_answer(sampled: Sampled) -> SampledAnswer:
    """Return a completion as an answer to compare with others."""
    return SampledAnswer(
        text=sampled.text,
        token_ids=sampled.token_ids,
        logprobs=sampled.logprobs,
        reasoning_tokens=sampled.reasoning_tokens,
    )


class InverseSampling(LogitsProcessor):  # type: ignore[misc]
    """Chooses the next token itself, notes its log-prob, and leaves `generate` no other choice."""

    def __init__(self, numbers: Tensor, temperature: float) -> None:
        """Take one number in [0, 1) for each row and token, (B, tokens) float64."""
        self._numbers = numbers
        self._temperature = temperature
        self._chosen: list[Tensor] = []
        self._logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return (B, vocabulary) scores, −∞ but for the token chosen in each row."""
        logprobs = torch.log_softmax(scores.float() / self._temperature, dim=-1)
        cumulative = logprobs.double().exp().cumsum(-1)
        numbers = self._numbers[:, len(self._chosen)].to(scores.device).unsqueeze(-1)
        # Scaled to the sum, which rounding leaves a little off 1; a token of no mass is never hit.
        target = numbers * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, target, right=True)
        chosen = chosen.clamp(max=scores.shape[-1] - 1)
        self._chosen.append(chosen)
        self._logprobs.append(logprobs.gather(-1, chosen))
        return torch.full_like(scores, -math.inf).scatter(-1, chosen, 0.0)

    def result(self) -> tuple[list[list[int]], list[list[float]]]:
        """Return tokens and log-probs by row; after an end token they mean nothing."""
        logprobs = torch.cat(self._logprobs, -1)
        if not torch.isfinite(logprobs).all():
            raise FailedPrecondition(
                "the model's output is not a number: its weights have diverged"
            )
        return torch.cat(self._chosen, -1).tolist(), logprobs.tolist()


def uniforms(seeds: Sequence[str], count: int) -> Tensor:
    """Numbers in [0, 1), (B, count) float64: a row of them for each seed."""
    rows = []
    for seed in seeds:
        number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") >> 1
        generator = torch.Generator().manual_seed(number)
        rows.append(torch.rand(count, generator=generator, dtype=torch.float64))
    return torch.stack(rows)


@contextmanager
def only_config(model: Any) -> Iterator[None]:
    """Keep the model's own generation defaults (penalties, top-p) out of what is sampled."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
