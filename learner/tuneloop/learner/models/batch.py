"""Samples to tensors: checked, cut into micro-batches by a token budget, collated.

Where the tokens stand in the model is private to `packing` and `models`: a loss sees (B, C)
log-probs and a `loss_mask` and cannot tell a padded batch from a packed one.
"""

import bisect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from tuneloop.errors import InvalidRequest
from tuneloop.learner.models.packing import TokenLayout, pack, packed_length, pad, send, trees
from tuneloop.learner.samples import (
    CommentedSample,
    JudgedSample,
    PairSample,
    PolicySample,
    ScoredGroup,
    ScoredSample,
    TokenSequence,
    sequences_of,
)

T = TypeVar("T")

GREEDY = 1e-5
"""A temperature below this means greedy decoding, as in vLLM."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SequenceBatch:
    """B prompts with one completion each; C is the length of the longest completion."""

    sequences: Sequence[TokenSequence]
    packed: TokenLayout
    """The sequences in one row."""
    targets: Tensor  # (N,) int64
    """The completion tokens, row after row; N is the number of completion tokens."""
    temperatures: Tensor  # (N,) float32
    loss_mask: Tensor  # (B, C) bool
    """True on completion tokens; its true places, in row order, are the N targets."""
    places: Tensor  # (N,) int64
    """Those places, counted in B·C: a GPU that had to find them would be waited for."""
    generation_logprobs: Tensor  # (B, C) float32
    """NaN where the sampler's log-prob is not known."""
    ref_logprobs: Tensor | None  # (B, C) float32
    """The reference policy's, 0 where masked; None unless every row has them."""

    def padded(self) -> TokenLayout:
        """Return the sequences one to a row, for models that cannot be given a packed row."""
        return pad(self.sequences, self.targets.device)

    @property
    def tokens(self) -> int:
        """Completion tokens."""
        return self.targets.numel()

    def scatter(self, flat: Tensor) -> Tensor:
        """Put a value for each target, (N,), into place, (B, C); 0 where masked."""
        padded = torch.zeros(self.loss_mask.numel(), dtype=flat.dtype, device=flat.device)
        return padded.scatter(0, self.places, flat).view(self.loss_mask.shape)


def sequence_length(sequence: TokenSequence) -> int:
    """Tokens in prompt and completion."""
    return len(sequence.prompt_token_ids) + len(sequence.completion_token_ids)


def check_sample(sample: PolicySample, *, max_length: int, vocab_size: int) -> None:
    """Raise `InvalidRequest` if it cannot be learned from.

    `param` is the id of the sample, or of the member of a group that is at fault.
    """
    if isinstance(sample, ScoredGroup):
        if problem := _problem_of_group(sample):
            raise _refused(sample, problem)
        for member in sample.samples:
            # NaN is the reward of a completion that could not be scored.
            known = replace(member, reward=0.0) if math.isnan(member.reward) else member
            check_sample(known, max_length=max_length, vocab_size=vocab_size)
        return
    hinted = (sample.hinted,) if isinstance(sample, CommentedSample) else ()
    for sequence in (*sequences_of(sample), *hinted):
        problem = _problem_of(sequence, max_length=max_length, vocab_size=vocab_size)
        if problem:
            raise _refused(sample, problem)
    if problem := _problem_of_numbers(sample):
        raise _refused(sample, problem)


def _refused(sample: PolicySample, problem: str) -> InvalidRequest:
    return InvalidRequest(f"sample {sample.sample_id}: {problem}", param=sample.sample_id)


def _problem_of_group(group: ScoredGroup) -> str:
    if not group.samples:
        return "a group without completions"
    if group.baseline is not None and not math.isfinite(group.baseline):
        return f"baseline {group.baseline} is not finite"
    return ""


def _problem_of_numbers(sample: JudgedSample | ScoredSample) -> str:
    match sample:
        case ScoredSample(reward=reward) if not math.isfinite(reward):
            return f"reward {reward} is not finite"
        case PairSample(flip_rate=rate) if not 0 <= rate < 0.5:
            return f"flip rate {rate} is not in [0, 0.5)"
    if not 0 <= sample.trust <= 1:
        return f"trust {sample.trust} is not between 0 and 1"
    usable = math.isfinite(sample.weight) and sample.weight >= 0
    return "" if usable else f"weight {sample.weight} is not a number from 0 up"


def _problem_of(sequence: TokenSequence, *, max_length: int, vocab_size: int) -> str:
    prompt, completion = sequence.prompt_token_ids, sequence.completion_token_ids
    if not prompt:
        return "the prompt is empty"
    if not completion:
        thought = "it was cut off in its thought: there is no answer to learn from"
        return thought if sequence.thought_read else "the completion is empty"
    if (length := sequence_length(sequence)) > max_length:
        return f"{length} tokens, more than the {max_length} that fit"
    if min(*prompt, *completion) < 0 or max(*prompt, *completion) >= vocab_size:
        return f"a token id is outside the vocabulary of {vocab_size}"
    if not (math.isfinite(sequence.temperature) and sequence.temperature >= 0):
        return f"temperature {sequence.temperature} is not a number from 0 up"
    known = {"generation": sequence.generation_logprobs, "reference": sequence.ref_logprobs}
    problems = (
        _problem_of_logprobs(name, logprobs, len(completion)) for name, logprobs in known.items()
    )
    return next(filter(None, problems), "")


def _problem_of_logprobs(name: str, logprobs: Sequence[float], tokens: int) -> str:
    if logprobs and len(logprobs) != tokens:
        return f"{len(logprobs)} {name} log-probs for {tokens} completion tokens"
    # The sampler rounds: a certain token may come out a little above 0.
    if not all(math.isfinite(logprob) and logprob <= 1e-3 for logprob in logprobs):
        return f"a {name} log-prob is not a finite number below 0"
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


def packed_batches(
    items: Sequence[T],
    *,
    sequences: Callable[[T], Sequence[TokenSequence]],
    token_budget: int,
) -> list[list[T]]:
    """Cut items into batches of at most `token_budget` packed tokens; shared ones count once.

    Items with one prompt, and turns of one conversation, stay together as far as the budget allows,
    and the largest such groups are placed first, each where there is room. One item that is larger
    than the budget makes a batch of its own, with those whose tokens are all among its own.
    """

    def length(group: Sequence[T]) -> int:
        return packed_length([s for item in group for s in sequences(item)])

    pieces: list[list[T]] = []
    for rows in trees([sequences(item)[0] for item in items]):
        # Last turns first: what they begin with costs nothing.
        group = [items[row] for row in reversed(rows)]
        while group:
            count = _fitting(group, length, token_budget)
            pieces.append(group[:count])
            group = group[count:]
    costs = [length(piece) for piece in pieces]
    batches: list[list[T]] = []
    rooms: list[int] = []
    for index in sorted(range(len(pieces)), key=lambda index: -costs[index]):
        place = next((i for i, room in enumerate(rooms) if room >= costs[index]), len(batches))
        if place == len(batches):
            batches.append([])
            rooms.append(token_budget)
        batches[place].extend(pieces[index])
        rooms[place] -= costs[index]
    return batches


def _fitting(group: Sequence[T], length: Callable[[Sequence[T]], int], token_budget: int) -> int:
    """Return how many of the first have no more tokens than the budget, or than the first alone."""
    most = max(token_budget, length(group[:1]))
    fits, limit = 1, 2
    while limit <= len(group) and length(group[:limit]) <= most:
        fits, limit = limit, 2 * limit
    between = range(fits + 1, min(limit, len(group) + 1))
    return fits + bisect.bisect(between, most, key=lambda count: length(group[:count]))


def collate(sequences: Sequence[TokenSequence], device: torch.device) -> SequenceBatch:
    """Make a batch on `device`; the sequences must have passed `check_sample`."""
    shape = (len(sequences), max(len(s.completion_token_ids) for s in sequences))
    loss_mask = torch.zeros(shape, dtype=torch.bool)
    generation_logprobs = torch.full(shape, math.nan)
    known = all(s.ref_logprobs for s in sequences)
    ref_logprobs = torch.zeros(shape) if known else None
    targets: list[int] = []
    temperatures: list[float] = []
    for row, s in enumerate(sequences):
        tokens = len(s.completion_token_ids)
        loss_mask[row, :tokens] = True
        greedy = s.temperature < GREEDY
        if s.generation_logprobs and not greedy:
            generation_logprobs[row, :tokens] = torch.tensor(s.generation_logprobs)
        if ref_logprobs is not None:
            ref_logprobs[row, :tokens] = torch.tensor(s.ref_logprobs)
        targets.extend(s.completion_token_ids)
        temperatures.extend([1.0 if greedy else s.temperature] * tokens)
    return SequenceBatch(
        sequences=tuple(sequences),
        packed=pack(sequences, device),
        targets=send(torch.tensor(targets), device),
        temperatures=send(torch.tensor(temperatures), device),
        loss_mask=send(loss_mask, device),
        places=send(loss_mask.flatten().nonzero()[:, 0], device),
        generation_logprobs=send(generation_logprobs, device),
        ref_logprobs=None if ref_logprobs is None else send(ref_logprobs, device),
    )


def numbered_batches(
    sequences: Sequence[TokenSequence], device: torch.device, *, packs: bool, token_budget: int
) -> Iterator[tuple[list[int], SequenceBatch]]:
    """Yield batches on `device` with the numbers of their sequences; `packs` makes packed rows."""
    numbered = list(enumerate(sequences))
    if packs:
        groups = packed_batches(
            numbered, sequences=lambda item: (item[1],), token_budget=token_budget
        )
    else:
        groups = micro_batches(
            numbered,
            length=lambda item: sequence_length(item[1]),
            rows=1,
            token_budget=token_budget,
        )
    for group in groups:
        yield [number for number, _ in group], collate([s for _, s in group], device)
