"""Sequences in one row: where tokens land, who sees whom, how batches are cut."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tuneloop.learner.models.attention import packed_attention, visibility
from tuneloop.learner.models.batch import packed_batches
from tuneloop.learner.models.packing import Segment, pack, packed_length, pad
from tuneloop.learner.samples import TokenSequence

CPU = torch.device("cpu")


def sequence(prompt: tuple[int, ...], completion: tuple[int, ...]) -> TokenSequence:
    return TokenSequence(
        prompt_token_ids=prompt,
        completion_token_ids=completion,
        generation_logprobs=(),
        temperature=1.0,
    )


def test_a_shared_prompt_stands_once_and_its_completions_go_on_from_it() -> None:
    layout = pack(
        [
            sequence((1, 2, 3), (4, 5, 6)),
            sequence((9,), (8, 7)),
            sequence((1, 2, 3), (6, 5)),
            sequence((1, 2, 3), (4,)),
        ],
        CPU,
    )
    assert layout.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 9, 8]]
    assert layout.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 0, 1]]
    assert layout.segments == (
        Segment(length=3),
        Segment(length=2, goes_on_from=0),
        Segment(length=1, goes_on_from=0),
        Segment(length=2),
    )
    # Row after row: the first token of a completion is predicted by the prompt's last.
    assert layout.sources.tolist() == [2, 3, 4, 6, 7, 2, 5, 2]
    # A completion's last token is not read.
    assert packed_length([sequence((1, 2, 3), (4, 5)), sequence((1, 2, 3), (6,))]) == 4


tokens = st.integers(0, 3)
sequences = st.lists(
    st.builds(
        sequence,
        st.lists(tokens, min_size=1, max_size=3).map(tuple),
        st.lists(tokens, min_size=1, max_size=4).map(tuple),
    ),
    min_size=1,
    max_size=8,
)


@given(sequences)
def test_in_either_layout_a_token_is_predicted_from_all_that_is_before_it(
    rows: list[TokenSequence],
) -> None:
    targets = [
        (*s.prompt_token_ids, *s.completion_token_ids[:i])
        for s in rows
        for i in range(len(s.completion_token_ids))
    ]
    for layout in (pack(rows, CPU), pad(rows, CPU)):
        ids = layout.input_ids.flatten()
        if layout.segments:
            seen = dense(layout)
        else:
            width = layout.input_ids.shape[1]
            each = torch.ones(width, width, dtype=torch.bool).tril()
            seen = torch.kron(torch.eye(len(rows)), each.float()).bool()
        assert len(layout.sources) == len(targets)
        for source, before in zip(layout.sources.tolist(), targets, strict=True):
            context = ids[seen[source]].tolist()
            assert context == list(before)
            assert layout.position_ids.flatten()[source] == len(before) - 1


def dense(layout: Any, window: int | None = None) -> Tensor:
    """Who sees whom, (T, T), as flex attention is told."""
    places = torch.arange(layout.input_ids.numel())
    sees = visibility(layout, window)
    seen: Tensor = sees(None, None, places[:, None], places[None, :])
    return seen


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("heads", [4, 2])
def test_attention_by_segment_is_attention_under_the_dense_mask(
    window: int | None, heads: int
) -> None:
    rows = [
        sequence((1, 2, 3, 4), (4, 5, 6)),
        sequence((9,), (8, 7, 6, 5, 4)),
        sequence((1, 2, 3, 4), (6, 5, 4, 3, 2)),
        sequence((1, 2, 3, 4), (4,)),
        sequence((9, 9), (4,)),
    ]
    layout = pack(rows, CPU)
    torch.manual_seed(0)
    length = layout.input_ids.numel()
    shapes = [(1, 4, length, 8), (1, heads, length, 8), (1, heads, length, 8)]
    q, k, v = inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    weights = torch.randn(1, length, 4, 8, dtype=torch.float64)

    def with_gradients(output: Tensor) -> list[Tensor]:
        return [output, *torch.autograd.grad((output * weights).sum(), inputs)]

    found, _ = packed_attention(
        None, q, k, v, None, layout=layout, sliding_window=window, scaling=0.3
    )
    expected = scaled_dot_product_attention(
        q, k, v, attn_mask=dense(layout, window), scale=0.3, enable_gqa=True
    )
    pairs = zip(with_gradients(found), with_gradients(expected.transpose(1, 2)), strict=True)
    for one, other in pairs:
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-12)


def test_attention_that_has_no_equivalent_is_refused() -> None:
    layout = pack([sequence((1, 2), (3,))], CPU)
    query = torch.zeros(1, 1, 2, 4)
    with pytest.raises(NotImplementedError, match="softcap"):
        packed_attention(None, query, query, query, None, layout=layout, softcap=50.0)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9)), max_size=30),
    st.integers(1, 60),
    st.booleans(),
)
def test_packed_batches_keep_every_item_once_within_the_budget(
    drawn: list[tuple[int, int]], budget: int, paired: bool
) -> None:
    rows = [sequence((prompt,) * (prompt + 1), (1,) * length) for prompt, length in drawn]
    items = [(i, (row, row) if paired else (row,)) for i, row in enumerate(rows)]
    batches = packed_batches(items, sequences=lambda item: item[1], token_budget=budget)
    assert sorted(i for batch in batches for i, _ in batch) == list(range(len(rows)))
    for batch in batches:
        length = packed_length([row for _, pair in batch for row in pair])
        assert length <= max(budget, *(packed_length(pair) for _, pair in batch))


def test_what_shares_a_prompt_stays_together() -> None:
    groups = [[sequence((p,) * 10, (i + 1,) * 2) for i in range(4)] for p in range(3)]
    interleaved = [group[i] for i in range(4) for group in groups]
    batches = packed_batches(interleaved, sequences=lambda s: (s,), token_budget=20)
    found = sorted(batches, key=lambda batch: batch[0].prompt_token_ids)
    assert [batch[::-1] for batch in found] == groups
