"""Samples to tensors: checked, cut into micro-batches by a token budget, padded.

The layout is private to this module and `models`: a loss sees (B, C) log-probs and a `loss_mask`
and cannot tell a padded batch from a packed one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from tuneloop.errors import InvalidRequest
from tuneloop.learner.samples import PairSample, PolicySample, ScoredSample, TokenSequence

T = TypeVar("T")

GREEDY = 1e-5
"""A temperature below this means greedy decoding, as in vLLM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceBatch:
    """B prompts with one completion each, padded on the right.

    Attention is causal, so what stands to the right of a sequence cannot reach it: no attention
    mask is needed.
    """

    input_ids: Tensor  # (B, T) int64
    """Prompt and completion without its last token, which predicts nothing."""
    predicts: Tensor  # (B, T) bool
    """True where the next token is a completion's."""
    targets: Tensor  # (N,) int64
    """The completion tokens, row after row; N is the number of completion tokens."""
    temperatures: Tensor  # (N,) float32
    loss_mask: Tensor  # (B, C) bool
    """True on completion tokens; its true places, in row order, are the N targets."""
    generation_logprobs: Tensor  # (B, C) float32
    """NaN where the sampler's log-prob is not known."""

    @property
    def tokens(self) -> int:
        """Completion tokens."""
        return self.targets.numel()

    def scatter(self, flat: Tensor) -> Tensor:
        """Put a value for each target, (N,), into place, (B, C); 0 where masked."""
        padded = torch.zeros(self.loss_mask.shape, dtype=flat.dtype, device=flat.device)
        return padded.masked_scatter(self.loss_mask, flat)


def sequences_of(sample: PolicySample) -> tuple[TokenSequence, ...]:
    """The token sequences of a sample: one, or chosen and rejected."""
    if isinstance(sample, PairSample):
        return (sample.chosen, sample.rejected)
    return (sample.sequence,)


def sequence_length(sequence: TokenSequence) -> int:
    """Tokens in prompt and completion."""
    return len(sequence.prompt_token_ids) + len(sequence.completion_token_ids)


def check_sample(sample: PolicySample, *, max_length: int, vocab_size: int) -> None:
    """Raise `InvalidRequest` naming the sample if it cannot be learned from."""
    for sequence in sequences_of(sample):
        problem = _problem_of(sequence, max_length=max_length, vocab_size=vocab_size)
        if problem:
            raise InvalidRequest(f"sample {sample.sample_id}: {problem}", param=sample.sample_id)
    if not (math.isfinite(sample.weight) and sample.weight >= 0):
        message = f"sample {sample.sample_id}: weight {sample.weight} is not a number from 0 up"
        raise InvalidRequest(message, param=sample.sample_id)
    if isinstance(sample, ScoredSample) and not math.isfinite(sample.reward):
        message = f"sample {sample.sample_id}: reward {sample.reward} is not finite"
        raise InvalidRequest(message, param=sample.sample_id)


def _problem_of(sequence: TokenSequence, *, max_length: int, vocab_size: int) -> str:
    prompt, completion = sequence.prompt_token_ids, sequence.completion_token_ids
    if not prompt or not completion:
        return "the completion is empty" if prompt else "the prompt is empty"
    if (length := sequence_length(sequence)) > max_length:
        return f"{length} tokens, more than the {max_length} that fit"
    if min(*prompt, *completion) < 0 or max(*prompt, *completion) >= vocab_size:
        return f"a token id is outside the vocabulary of {vocab_size}"
    if not (math.isfinite(sequence.temperature) and sequence.temperature >= 0):
        return f"temperature {sequence.temperature} is not a number from 0 up"
    return _problem_of_logprobs(sequence)


def _problem_of_logprobs(sequence: TokenSequence) -> str:
    logprobs, tokens = sequence.generation_logprobs, len(sequence.completion_token_ids)
    if logprobs and len(logprobs) != tokens:
        return f"{len(logprobs)} log-probs for {tokens} completion tokens"
    # The sampler rounds: a certain token may come out a little above 0.
    if not all(math.isfinite(logprob) and logprob <= 1e-3 for logprob in logprobs):
        return "a generation log-prob is not a finite number below 0"
    return ""


def micro_batches(
    items: Sequence[T], *, length: Callable[[T], int], rows: int, token_budget: int
) -> list[list[T]]:
    """Cut items into batches of at most `token_budget` padded tokens, longest first.

    An item takes `rows` rows of its `length`. Sorting keeps the padding small; one item that is
    larger than the budget makes a batch of its own.
    """
    batches: list[list[T]] = []
    room = 0
    for item in sorted(items, key=length, reverse=True):
        if not batches or len(batches[-1]) >= room:
            batches.append([])
            room = max(1, token_budget // (rows * length(item)))
        batches[-1].append(item)
    return batches


def collate(sequences: Sequence[TokenSequence], device: torch.device) -> SequenceBatch:
    """Pad sequences into a batch on `device`; they must have passed `check_sample`."""
    width = max(sequence_length(s) for s in sequences) - 1
    completion_width = max(len(s.completion_token_ids) for s in sequences)
    input_ids = torch.zeros((len(sequences), width), dtype=torch.int64)
    predicts = torch.zeros((len(sequences), width), dtype=torch.bool)
    loss_mask = torch.zeros((len(sequences), completion_width), dtype=torch.bool)
    generation_logprobs = torch.full(loss_mask.shape, math.nan)
    targets: list[int] = []
    temperatures: list[float] = []
    for row, s in enumerate(sequences):
        prompt, completion = len(s.prompt_token_ids), len(s.completion_token_ids)
        ids = (*s.prompt_token_ids, *s.completion_token_ids[:-1])
        input_ids[row, : len(ids)] = torch.tensor(ids)
        predicts[row, prompt - 1 : prompt - 1 + completion] = True
        loss_mask[row, :completion] = True
        greedy = s.temperature < GREEDY
        if s.generation_logprobs and not greedy:
            generation_logprobs[row, :completion] = torch.tensor(s.generation_logprobs)
        targets.extend(s.completion_token_ids)
        temperatures.extend([1.0 if greedy else s.temperature] * completion)
    return SequenceBatch(
        input_ids=input_ids.to(device),
        predicts=predicts.to(device),
        targets=torch.tensor(targets, device=device),
        temperatures=torch.tensor(temperatures, device=device),
        loss_mask=loss_mask.to(device),
        generation_logprobs=generation_logprobs.to(device),
    )
