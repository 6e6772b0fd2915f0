"""A tree of sequences in one row: what stands once, who sees whom, the model's own log-probs."""

from pathlib import Path

import pytest
import torch

from tuneloop.learner.models.policy import PolicyModel
from tuneloop.learner.models.prefix_tree import pack_tree, tree_batches
from tuneloop.learner.samples import TokenSequence

CPU = torch.device("cpu")


def sequence(prompt: tuple[int, ...], completion: tuple[int, ...]) -> TokenSequence:
    return TokenSequence(
        prompt_token_ids=prompt,
        completion_token_ids=completion,
        generation_logprobs=(),
        temperature=1.0,
    )


ROWS = [
    sequence((1, 2, 3), (4, 5, 6)),
    sequence((1, 2, 3), (4, 7, 6)),
    sequence((1, 9), (4, 5)),
    sequence((8,), (2,)),
]


def test_every_shared_beginning_stands_once() -> None:
    layout = pack_tree(ROWS, CPU)
    # The last token of a sequence predicts nothing.
    assert layout.input_ids.tolist() == [[1, 2, 3, 4, 5, 7, 9, 4, 8]]
    assert layout.position_ids.tolist() == [[0, 1, 2, 3, 4, 4, 1, 2, 0]]
    assert layout.sources.tolist() == [2, 3, 4, 2, 3, 5, 6, 7, 8]
    # 4 after (1, 2, 3) is predicted twice, and computed once.
    assert layout.repeats is not None
    assert layout.repeats.first.tolist() == [0, 1, 2, 4, 5, 6, 7, 8]
    assert layout.repeats.copies.tolist() == [0, 1, 2, 0, 3, 4, 5, 6, 7]
    assert layout.visible is not None
    seen = [row.nonzero().flatten().tolist() for row in layout.visible[0, 0]]
    assert seen[5] == [0, 1, 2, 3, 5]
    assert seen[7] == [0, 6, 7]
    assert seen[8] == [8]


def test_a_row_is_cut_where_its_tokens_are_full() -> None:
    # In order of tokens: 0 (5 tokens), 1 (one more), 2 (two more), 3 (one more).
    assert tree_batches(ROWS, 9) == [[0, 1, 2, 3]]
    assert tree_batches(ROWS, 8) == [[0, 1, 2], [3]]
    assert tree_batches(ROWS, 6) == [[0, 1], [2, 3]]
    assert tree_batches(ROWS, 1) == [[0], [1], [2], [3]]


@pytest.mark.parametrize("packing", [True, False])
def test_logprobs_are_those_of_each_sequence_alone(tiny_policy: Path, packing: bool) -> None:
    model = PolicyModel(tiny_policy, packing=packing)
    with torch.no_grad():
        for name, parameter in model.parameters().items():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    found = model.compute_logprobs(ROWS)
    for row, logprobs in zip(ROWS, found, strict=True):
        ids = torch.tensor([[*row.prompt_token_ids, *row.completion_token_ids]])
        with torch.no_grad():
            logits = model.module(ids, use_cache=False).logits[0]
        each = torch.log_softmax(logits, -1)[len(row.prompt_token_ids) - 1 : -1]
        targets = ids[0, len(row.prompt_token_ids) :, None]
        expected = each.gather(-1, targets).squeeze(-1)
        torch.testing.assert_close(torch.tensor(logprobs), expected, rtol=0, atol=1e-5)
