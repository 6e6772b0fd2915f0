"""Samples to tensors: what is refused, how batches are cut, where things land."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.policy_samples import VOCAB_SIZE, SampleMaker

from tuneloop.errors import InvalidRequest
from tuneloop.learner.models.batch import check_sample, collate, micro_batches
from tuneloop.learner.samples import ScoredGroup, TokenSequence

CPU = torch.device("cpu")


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 100), st.sampled_from([1, 2]))
def test_micro_batches_keep_every_item_once_within_the_budget(
    lengths: list[int], budget: int, rows: int
) -> None:
    items = list(enumerate(lengths))
    batches = micro_batches(items, length=lambda i: i[1], rows=rows, token_budget=budget)
    assert sorted(item for batch in batches for item in batch) == items
    for batch in batches:
        padded = len(batch) * rows * max(length for _, length in batch)
        assert padded <= budget or len(batch) == 1
    order = [length for batch in batches for _, length in batch]
    assert order == sorted(lengths, reverse=True)


def test_collate_lines_targets_up_with_the_positions_that_predict_them() -> None:
    batch = collate(
        [
            TokenSequence(
                prompt_token_ids=(1, 2, 3),
                completion_token_ids=(4, 5),
                generation_logprobs=(-0.5, -0.25),
                temperature=0.5,
            ),
            TokenSequence(
                prompt_token_ids=(6,),
                completion_token_ids=(7, 8, 9),
                generation_logprobs=(),
                temperature=1.0,
            ),
        ],
        CPU,
    )
    assert batch.packed.input_ids.tolist() == [[1, 2, 3, 4, 6, 7, 8]]
    assert batch.packed.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert batch.packed.sources.tolist() == [2, 3, 4, 5, 6]
    assert batch.padded().input_ids.tolist() == [[1, 2, 3, 4], [6, 7, 8, 0]]
    assert batch.padded().sources.tolist() == [2, 3, 4, 5, 6]
    assert batch.targets.tolist() == [4, 5, 7, 8, 9]
    assert batch.temperatures.tolist() == [0.5, 0.5, 1.0, 1.0, 1.0]
    assert batch.loss_mask.int().tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.generation_logprobs[0, :2].tolist() == [-0.5, -0.25]
    assert batch.generation_logprobs[0, 2:].isnan().all()
    assert batch.generation_logprobs[1].isnan().all()
    assert batch.scatter(batch.targets).tolist() == [[4, 5, 0], [7, 8, 9]]
    assert batch.tokens == 5


def test_greedy_completions_have_no_sampler_to_correct_for() -> None:
    sequence = SampleMaker().sequence(temperature=0.0)
    batch = collate([sequence], CPU)
    assert batch.temperatures.tolist() == [1.0] * 4
    assert batch.generation_logprobs.isnan().all()


GOOD = SampleMaker().scored(1)[0]


def changed(**changes: object) -> TokenSequence:
    return replace(GOOD.sequence, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (replace(GOOD, sequence=changed(prompt_token_ids=())), "the prompt is empty"),
        (replace(GOOD, sequence=changed(completion_token_ids=())), "the completion is empty"),
        (replace(GOOD, sequence=changed(prompt_token_ids=(1,) * 99)), "more than the 64 that fit"),
        (replace(GOOD, sequence=changed(prompt_token_ids=(VOCAB_SIZE,))), "outside the vocabulary"),
        (replace(GOOD, sequence=changed(prompt_token_ids=(-1,))), "outside the vocabulary"),
        (
            replace(GOOD, sequence=changed(generation_logprobs=(-1.0,) * 30)),
            "30 generation log-probs for",
        ),
        (replace(GOOD, sequence=changed(temperature=math.nan)), "temperature nan"),
        (replace(GOOD, sequence=changed(temperature=-0.5)), "temperature -0.5"),
        (replace(GOOD, reward=math.nan), "reward nan"),
        (replace(GOOD, reward=math.inf), "reward inf"),
        (replace(GOOD, weight=-1.0), "weight -1.0"),
    ],
)
def test_a_sample_that_cannot_be_learned_from_is_named(sample: object, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        check_sample(sample, max_length=64, vocab_size=VOCAB_SIZE)  # type: ignore[arg-type]
    assert caught.value.param == "scored-0"
    assert "scored-0" in caught.value.message


def test_the_member_of_a_group_that_cannot_be_learned_from_is_named() -> None:
    unscored = replace(GOOD, sample_id="unscored", reward=math.nan)
    bad = replace(unscored, sample_id="bad", sequence=changed(prompt_token_ids=(1,) * 99))

    def check(group: ScoredGroup) -> None:
        check_sample(group, max_length=64, vocab_size=VOCAB_SIZE)

    check(ScoredGroup(sample_id="g", samples=(GOOD, unscored)))
    with pytest.raises(InvalidRequest, match=r"sample bad: .*more than the 64") as caught:
        check(ScoredGroup(sample_id="g", samples=(GOOD, bad)))
    assert caught.value.param == "bad"
    for group, message in (
        (ScoredGroup(sample_id="g", samples=()), "sample g: a group without"),
        (ScoredGroup(sample_id="g", samples=(GOOD,), baseline=math.nan), "sample g: baseline nan"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            check(group)


@pytest.mark.parametrize("logprob", [math.nan, -math.inf, 0.5])
def test_a_log_prob_that_is_none_is_refused(logprob: float) -> None:
    tokens = len(GOOD.sequence.completion_token_ids)
    sample = replace(GOOD, sequence=changed(generation_logprobs=(logprob,) * tokens))
    with pytest.raises(InvalidRequest, match="generation log-prob"):
        check_sample(sample, max_length=64, vocab_size=VOCAB_SIZE)


def test_a_good_sample_passes() -> None:
    check_sample(GOOD, max_length=64, vocab_size=VOCAB_SIZE)
