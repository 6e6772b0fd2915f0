"""Where the tokens of a batch stand in the model: in one row without padding, or padded.

The packed row holds every sequence once, one after the other, and a prompt that several of them
share only once: its completions continue it, each at the positions it would have had alone. Who
may attend to whom is said by the segments; `attention` keeps to it.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tuneloop.learner.samples import TokenSequence

ALONE = -1
"""The `goes_on_from` of a segment that attends to itself only."""
BLOCK = 128
"""On a GPU rows are filled up to a multiple of it: attention kernels work in blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Neighbouring tokens that attend causally to each other, and to all of one earlier segment."""

    length: int
    goes_on_from: int = ALONE
    """Index of the segment that holds the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenLayout:
    """What the model is given for B sequences, in R rows of T tokens."""

    input_ids: Tensor  # (R, T) int64
    position_ids: Tensor  # (R, T) int64
    sources: Tensor  # (N,) int64
    """For each completion token, row after row, the place in R·T whose state predicts it."""
    segments: tuple[Segment, ...] = ()
    """Of the one row, R = 1; empty when the sequences are padded, one to a row."""
    visible: Tensor | None = None  # (1, 1, T, T) bool
    """Of a row that is a tree (`prefix_tree`): whether the token at one place sees another's."""
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


def packed_length(sequences: Sequence[TokenSequence]) -> int:
    """Tokens of a packed row, at most: prompts counted once, completions each."""
    prompts = {sequence.prompt_token_ids for sequence in sequences}
    return sum(map(len, prompts)) + sum(len(s.completion_token_ids) for s in sequences)


def pack(sequences: Sequence[TokenSequence], device: torch.device) -> TokenLayout:
    """Lay sequences out in one row; a completion's last token predicts nothing and is left out."""
    rows_by_prompt: dict[tuple[int, ...], list[int]] = {}
    for row, sequence in enumerate(sequences):
        rows_by_prompt.setdefault(sequence.prompt_token_ids, []).append(row)
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    sources: list[range | list[int]] = [[]] * len(sequences)
    for prompt, rows in rows_by_prompt.items():
        last_of_prompt = len(ids) + len(prompt) - 1
        at = len(segments)
        ids.extend(prompt)
        positions.extend(range(len(prompt)))
        segments.append(Segment(length=len(prompt)))
        for row in rows:
            start, inputs = len(ids), sequences[row].completion_token_ids[:-1]
            ids.extend(inputs)
            positions.extend(range(len(prompt), len(prompt) + len(inputs)))
            sources[row] = [last_of_prompt, *range(start, start + len(inputs))]
            if len(rows) == 1:
                segments[at] = Segment(length=len(prompt) + len(inputs))
            elif inputs:
                segments.append(Segment(length=len(inputs), goes_on_from=at))
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
