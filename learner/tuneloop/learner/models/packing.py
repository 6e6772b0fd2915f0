"""Where the tokens of a batch stand in the model: in one row without padding, or padded.

The packed row holds what several sequences share only once: a system prompt, a prompt with several
completions, the turns of a conversation that the next turn's prompt repeats. Attention is causal,
so the states there are the same for all of them. What a sequence has for itself stands where it
would have stood alone. Who may attend to whom is said by the segments; `attention` keeps to it.
"""

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from tuneloop.learner.samples import TokenSequence

ALONE = -1
"""The `goes_on_from` of a segment that attends to itself only."""
WORTH = 8
"""Tokens from which on a common beginning that is no whole prompt, such as a system prompt, gets a
segment of its own: on a CPU attention takes as long for a segment as all layers for a few tokens.
"""
BLOCK = 128
"""On a GPU rows are filled up to a multiple of it: attention kernels work in blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Neighbouring tokens that attend causally to each other, and to all that they go on from."""

    length: int
    goes_on_from: int = ALONE
    """Index of the earlier segment whose last token comes before the first of these; they also see
    what that one goes on from."""


class Repeats(NamedTuple):
    """Which of N completion tokens are D different ones: what is computed once for all alike."""

    first: Tensor  # (D,) int64
    """The first of each."""
    copies: Tensor  # (N,) int64
    """Which of the D each one is."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenLayout:
    """What the model is given for B sequences, in R rows of T tokens."""

    input_ids: Tensor  # (R, T) int64
    position_ids: Tensor  # (R, T) int64
    sources: Tensor  # (N,) int64
    """For each completion token, row after row, the place in R·T whose state predicts it."""
    segments: tuple[Segment, ...] = ()
    """Of the one row, R = 1; empty when the sequences are padded, one to a row. All that goes on
    from a segment, directly or not, comes after it and before anything else."""
    visible: Tensor | None = None  # (1, 1, T, T) bool
    """Of a row that is a tree (`prefix_tree`): whether the token at one place sees another's."""
    repeats: Repeats | None = None
    """Of such a row: which completion tokens are one token of the tree."""
    masks: dict[Hashable, object] = field(default_factory=dict)
    """What attention made of the segments, kept from one layer to the next."""
    windows: set[int | None] = field(default_factory=set)
    """How far back the layers looked; None is all the way."""


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on `device`.

    The copy to a GPU takes its turn behind what runs there, from pinned memory: another one would
    wait for all of that.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


TokenIds: TypeAlias = tuple[int, ...]


class Branch(NamedTuple):
    """Tokens that the model reads, as a branch of a tree."""

    tokens: TokenIds
    shared: int
    """How many of them, from the first on, are also those of the branch before."""
    row: int | None
    """The sequence that reads them; None where they are a prompt."""


def branches(sequences: Sequence[TokenSequence], *, beginnings: bool = True) -> list[Branch]:
    """Return prompts and sequences as branches of a tree, in the order of their tokens.

    A branch shares what it begins with if that is all of another: a prompt, all that a sequence
    reads, or, with `beginnings`, what several of them begin with.
    """
    prompts = {sequence.prompt_token_ids for sequence in sequences}
    # Answers of one prompt have thoughts of their own.
    prompts |= {s.prompt_token_ids[: -s.thought_read] for s in sequences if s.thought_read}
    # A completion's last token predicts nothing, so it is not read.
    read = [s.prompt_token_ids + s.completion_token_ids[:-1] for s in sequences]
    if beginnings:
        prompts |= common_beginnings(sorted(prompts))
    tokens_and_rows = [*((prompt, None) for prompt in prompts), *zip(read, itertools.count())]
    found: list[Branch] = []
    begun: list[tuple[int, ...]] = []
    for tokens, row in sorted(tokens_and_rows, key=lambda item: item[0]):
        while begun and tokens[: len(begun[-1])] != begun[-1]:
            begun.pop()
        found.append(Branch(tokens, len(begun[-1]) if begun else 0, row))
        begun.append(tokens)
    return found


def common_beginnings(prompts: Sequence[TokenIds], known: int = 0) -> set[TokenIds]:
    """Return what several of the sorted prompts begin with, `WORTH` tokens longer than `known`."""
    found: set[TokenIds] = set()
    group: list[TokenIds] = []
    shared = 0
    for prompt in (*prompts, ()):
        common = common_length(group[-1], prompt) if group else 0
        if group and common >= known + WORTH:
            shared = min(shared, common) if len(group) > 1 else common
            group.append(prompt)
            continue
        if len(group) > 1:
            found |= {group[0][:shared]} | common_beginnings(group, shared)
        group = [prompt]
    return found


def common_length(one: TokenIds, other: TokenIds) -> int:
    """Return how many tokens both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def trees(sequences: Sequence[TokenSequence]) -> list[list[int]]:
    """Return the rows of sequences that share a prompt or turns, neighbours sharing most.

    They are worth keeping together; a system prompt, which all may share, is not.
    """
    found: list[list[int]] = []
    for branch in branches(sequences, beginnings=False):
        if not branch.shared:
            found.append([])
        if branch.row is not None:
            found[-1].append(branch.row)
    return found


def packed_length(sequences: Sequence[TokenSequence]) -> int:
    """Tokens of a packed row: those that several sequences share are counted once.

    Rows put together never have more than the sum of theirs.
    """
    return sum(len(branch.tokens) - branch.shared for branch in branches(sequences))


def pack(sequences: Sequence[TokenSequence], device: torch.device) -> TokenLayout:
    """Lay sequences out in one row, branch by branch."""
    ids: list[int] = []
    positions: list[int] = []
    sources: list[list[int]] = [[]] * len(sequences)
    path: list[int] = []
    places_before: dict[int, int] = {}
    for tokens, shared, row in branches(sequences):
        start = len(ids)
        path = [*path[:shared], *range(start, start + len(tokens) - shared)]
        if not shared or path[shared - 1] != start - 1:
            places_before[start] = path[shared - 1] if shared else ALONE
        ids.extend(tokens[shared:])
        positions.extend(range(shared, len(tokens)))
        if row is not None:
            sources[row] = path[len(sequences[row].prompt_token_ids) - 1 :]
    segments = _segments(places_before, len(ids))
    if device.type == "cuda" and (filler := -len(ids) % BLOCK):
        ids.extend([0] * filler)
        positions.extend([0] * filler)
        segments.append(Segment(length=filler))
    return TokenLayout(
        input_ids=send(torch.tensor([ids]), device),
        position_ids=send(torch.tensor([positions]), device),
        sources=send(torch.tensor([place for row in sources for place in row]), device),
        segments=tuple(segments),
    )


def _segments(places_before: Mapping[int, int], length: int) -> list[Segment]:
    """Cut a row where a branch starts, and where one is left.

    `places_before` has for the place at which a branch starts the place that it goes on from.
    """
    starts = sorted({*places_before, *(place + 1 for place in places_before.values())})
    numbers = {start: number for number, start in enumerate(starts)}
    # The segment that ends with a place is the one before that which starts after it; ALONE stands
    # before all of them, and comes out as itself.
    return [
        Segment(
            length=end - start, goes_on_from=numbers[places_before.get(start, start - 1) + 1] - 1
        )
        for start, end in itertools.pairwise([*starts, length])
    ]


def pad(sequences: Sequence[TokenSequence], device: torch.device) -> TokenLayout:
    """Lay sequences out one to a row, padded on the right.

    Attention is causal, so what stands to the right of a sequence cannot reach it: no attention
    mask is needed.
    """
    lengths = [len(s.prompt_token_ids) + len(s.completion_token_ids) - 1 for s in sequences]
    width = max(lengths)
    input_ids = torch.zeros((len(sequences), width), dtype=torch.int64)
    sources: list[int] = []
    for row, (s, length) in enumerate(zip(sequences, lengths, strict=True)):
        ids = (*s.prompt_token_ids, *s.completion_token_ids[:-1])
        input_ids[row, :length] = torch.tensor(ids)
        first = row * width + len(s.prompt_token_ids) - 1
        sources.extend(range(first, first + len(s.completion_token_ids)))
    return TokenLayout(
        input_ids=send(input_ids, device),
        position_ids=torch.arange(width, device=device).expand(len(sequences), width),
        sources=send(torch.tensor(sources), device),
    )
