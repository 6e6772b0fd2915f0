"""Completions of the model in training: sampled with their exact log-probs, or greedy."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from tuneloop.errors import FailedPrecondition
from tuneloop.generation.prompts import Tokenization
from tuneloop.learner.samples import SampledAnswer, TokenSequence


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
        generate(
            model,
            self._tokenization,
            prompts,
            self._max_tokens,
            use_cache=True,
            logits_processor=LogitsProcessorList([choose]),
        )
        return [
            cut_completion(self._tokenization, *row)
            for row in zip(prompts, *choose.result(), strict=True)
        ]


def generate(
    model: Any,
    tokenization: Tokenization,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    **options: Any,
) -> tuple[Any, int]:
    """Run `generate` on prompts padded at their left; return its output and the prompts' width.

    The next token is the likeliest, unless `options` say otherwise: what `generate` and
    `GenerationConfig` take.
    """
    stops = sorted(tokenization.stop_token_ids)
    pad = stops[0] if stops else 0
    width = max(map(len, prompts))
    input_ids = torch.full((len(prompts), width), pad, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        attention_mask[row, width - len(prompt) :] = 1
    processors = options.pop("logits_processor", None)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_tokens,
        eos_token_id=stops or None,
        pad_token_id=pad,
        **options,
    )
    with only_config(model):
        output = model.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=attention_mask.to(model.device),
            generation_config=config,
            logits_processor=processors,
        )
    return output, width


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


GREEDY_BATCH = 16
"""Prompts in a batch: the logits of every token are kept."""


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
    output, width = generate(
        model,
        tokenization,
        prompts,
        max_tokens,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = output.sequences[:, width:]
    logits = torch.stack(output.logits, dim=1).float()
    logprobs = torch.log_softmax(logits, dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    rows = zip(tokens.tolist(), logprobs.tolist(), strict=True)
    return [
        cut_completion(tokenization, prompt, *row)
        for prompt, row in zip(prompts, rows, strict=True)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeliest:
    """What a model would have said in the place of each token of a completion."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


class Drafted(Protocol):
    """See `PolicyModel`."""

    @property
    def module(self) -> Any:
        """The transformers model as it is now."""
        ...

    def compute_likeliest(self, sequences: Sequence[TokenSequence]) -> list[Likeliest]:
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

    def answers(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[SampledAnswer]:
        """Return the likeliest answer to each prompt (token ids), in order."""
        known = self._checked_drafts([tuple(prompt) for prompt in prompts], max_tokens)
        unfinished = [i for i, found in enumerate(known) if self._goes_on(found, max_tokens)]
        if unfinished:
            begun = [(*prompts[i], *known[i].token_ids) for i in unfinished]
            room = max(max_tokens - len(known[i].token_ids) for i in unfinished)
            further = greedy_answers(self._model.module, self.tokenization, begun, room)
            for i, rest in zip(unfinished, further, strict=True):
                known[i] = Likeliest(
                    token_ids=(*known[i].token_ids, *rest.token_ids)[:max_tokens],
                    logprobs=(*known[i].logprobs, *rest.logprobs)[:max_tokens],
                )
        for prompt, found in zip(prompts, known, strict=True):
            self._drafts.pop(tuple(prompt), None)
            self._drafts[tuple(prompt)] = found.token_ids
        for prompt in list(self._drafts)[:-DRAFTS]:
            del self._drafts[prompt]
        return [
            as_answer(cut_completion(self.tokenization, prompt, found.token_ids, found.logprobs))
            for prompt, found in zip(prompts, known, strict=True)
        ]

    def _checked_drafts(
        self, prompts: Sequence[tuple[int, ...]], max_tokens: int
    ) -> list[Likeliest]:
        """Return what the model would say of each draft, and the token that it would say next."""
        drafts = [self._drafts.get(prompt, ())[:max_tokens] for prompt in prompts]
        drafted = [i for i, draft in enumerate(drafts) if draft]
        sequences = [
            TokenSequence(
                prompt_token_ids=prompts[i],
                completion_token_ids=drafts[i],
                generation_logprobs=(),
                temperature=1.0,
            )
            for i in drafted
        ]
        known = [Likeliest(token_ids=(), logprobs=())] * len(prompts)
        likeliest = self._model.compute_likeliest(sequences) if sequences else []
        for i, found in zip(drafted, likeliest, strict=True):
            same = [a == b for a, b in zip(drafts[i], found.token_ids, strict=True)]
            until = (*same, False).index(False) + 1
            known[i] = Likeliest(token_ids=found.token_ids[:until], logprobs=found.logprobs[:until])
        return known

    def _goes_on(self, found: Likeliest, max_tokens: int) -> bool:
        if not found.token_ids:
            return True
        ended = found.token_ids[-1] in self.tokenization.stop_token_ids
        return not ended and len(found.token_ids) < max_tokens
