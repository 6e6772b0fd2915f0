"""Sequences in one row as a tree: every prefix that some of them share stands once.

For log-probs without gradients of many short texts, such as the wrong and right answers to a
question under one system prompt. `packing` shares prompts, turns and long beginnings; here any
common beginning is shared, at the price of a dense mask, so rows are kept short.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from tuneloop.learner.models.batch import SequenceBatch, collate
from tuneloop.learner.models.packing import Repeats, TokenLayout, common_length
from tuneloop.learner.samples import TokenSequence

ROW = 384
"""Tokens in a row: the dense mask makes attention grow with its square."""


def tree_batches(sequences: Sequence[TokenSequence], row_tokens: int = ROW) -> list[list[int]]:
    """Cut sequences into rows of at most `row_tokens` tokens of the tree; return their indices.

    Neighbours in the order of their tokens share most. One sequence that is longer makes a row of
    its own.
    """
    order = sorted(range(len(sequences)), key=lambda index: _inputs(sequences[index]))
    batches: list[list[int]] = []
    before: tuple[int, ...] = ()
    room = 0
    for index in order:
        tokens = _inputs(sequences[index])
        new = len(tokens) - common_length(before, tokens)
        if not batches or new > room:
            batches.append([])
            room, new = row_tokens, len(tokens)
        batches[-1].append(index)
        room -= new
        before = tokens
    return batches


def tree_batch(sequences: Sequence[TokenSequence], device: torch.device) -> SequenceBatch:
    """Make a batch of one row; its order is that of `sequences`."""
    return replace(collate(sequences, device), packed=pack_tree(sequences, device))


def pack_tree(sequences: Sequence[TokenSequence], device: torch.device) -> TokenLayout:
    """Lay sequences out as a tree; a token sees itself and what stands before it on its branch."""
    places: dict[tuple[int, int], int] = {}
    ids: list[int] = []
    positions: list[int] = []
    branches: list[list[int]] = []
    sources: list[int] = []
    predicted: dict[tuple[int, int, float], int] = {}
    first: list[int] = []
    copies: list[int] = []
    for sequence in sequences:
        branch: list[int] = []
        for token in _inputs(sequence):
            parent = branch[-1] if branch else -1
            place = places.setdefault((parent, token), len(ids))
            if place == len(ids):
                ids.append(token)
                positions.append(len(branch))
                branches.append([*branch, place])
            branch.append(place)
        read_last = branch[len(sequence.prompt_token_ids) - 1 :]
        for place, token in zip(read_last, sequence.completion_token_ids, strict=True):
            known = predicted.setdefault((place, token, sequence.temperature), len(first))
            if known == len(first):
                first.append(len(sources))
            copies.append(known)
            sources.append(place)
    visible = torch.zeros((len(ids), len(ids)), dtype=torch.bool)
    for place, branch in enumerate(branches):
        visible[place, branch] = True
    return TokenLayout(
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        sources=torch.tensor(sources, device=device),
        visible=visible[None, None].to(device),
        repeats=Repeats(torch.tensor(first, device=device), torch.tensor(copies, device=device)),
    )


def numbered_rows(
    sequences: Sequence[TokenSequence], device: torch.device
) -> Iterator[tuple[list[int], SequenceBatch]]:
    """Yield each row as a batch, with the indices of its sequences."""
    for indices in tree_batches(sequences):
        yield indices, tree_batch([sequences[index] for index in indices], device)


def _inputs(sequence: TokenSequence) -> tuple[int, ...]:
    """Return what the model reads: the last token predicts nothing."""
    return sequence.prompt_token_ids + sequence.completion_token_ids[:-1]
