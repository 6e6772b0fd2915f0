"""Which tokens of a sample are learned, and what the losses make of that, by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.given_model import GivenModel, total_loss

from tuneloop.errors import InvalidRequest
from tuneloop.learner.losses.means import merge
from tuneloop.learner.models.batch import check_sample
from tuneloop.learner.models.packing import packed_length
from tuneloop.learner.objectives.dpo import plan_dpo
from tuneloop.learner.objectives.grpo import plan_grpo
from tuneloop.learner.objectives.kto import plan_kto
from tuneloop.learner.objectives.sft import plan_sft
from tuneloop.learner.samples import (
    CommentedSample,
    DemonstrationSample,
    LabelledText,
    PairSample,
    ScoredGroup,
    ScoredSample,
    ThumbSample,
    TokenSequence,
    sequences_of,
)
from tuneloop.learner.samples.learned_tokens import LearnThoughts, after_thought, as_learned
from tuneloop.learner.trainer.adaptive import StepControls
from tuneloop.learner.trainer.settings import TrainerSettings

THOUGHT = (7, 8, 9)


def thought_of(answer: Sequence[int], thought: Sequence[int] = THOUGHT) -> TokenSequence:
    """An answer to the prompt 1, 2 after a thought, as it was sampled."""
    completion = (*thought, *answer)
    return TokenSequence(
        prompt_token_ids=(1, 2),
        completion_token_ids=completion,
        generation_logprobs=tuple(-0.1 * (i + 1) for i in range(len(completion))),
        temperature=1.0,
        ref_logprobs=tuple(-0.2 * (i + 1) for i in range(len(completion))),
        reasoning_tokens=len(thought),
    )


ANSWERED = thought_of((4, 5))
PAIR = PairSample(sample_id="p", chosen=ANSWERED, rejected=thought_of((6,), (3,)))
SCORED = ScoredSample(sample_id="s", sequence=ANSWERED, reward=1.0, policy_version=0, stopped=True)


def test_a_thought_that_is_not_learned_ends_the_prompt() -> None:
    assert after_thought(ANSWERED) == TokenSequence(
        prompt_token_ids=(1, 2, 7, 8, 9),
        completion_token_ids=(4, 5),
        generation_logprobs=(-0.4, -0.5),
        temperature=1.0,
        ref_logprobs=(-0.8, -1.0),
        thought_read=3,
    )
    plain = replace(ANSWERED, reasoning_tokens=0)
    assert after_thought(plain) is plain


@pytest.mark.parametrize(
    ("learn_thoughts", "judged", "shown", "scored"),
    [("policy_gradient", 2, 5, 5), ("always", 5, 5, 5), ("never", 2, 2, 2)],
)
def test_the_setting_says_which_samples_teach_their_thoughts(
    learn_thoughts: LearnThoughts, judged: int, shown: int, scored: int
) -> None:
    """Of 3 tokens of thought and 2 of answer; a demonstration may show its thought as well."""
    judgements = [
        PAIR,
        ThumbSample(sample_id="t", sequence=ANSWERED, desirable=True),
        DemonstrationSample(sample_id="d", sequence=ANSWERED),
        CommentedSample(sample_id="c", sequence=ANSWERED, hinted_prompt_token_ids=(1, 2, 50)),
    ]
    for count, sample in (
        *((judged, sample) for sample in judgements),
        (shown, DemonstrationSample(sample_id="d", sequence=ANSWERED, shows_thought=True)),
        (scored, SCORED),
        (scored, ScoredGroup(sample_id="g", samples=(SCORED, SCORED))),
    ):
        learned = as_learned(sample, learn_thoughts)
        assert as_learned(learned, learn_thoughts) == learned
        assert len(sequences_of(learned)[0].completion_token_ids) == count
        # Every token is read, whatever is learned of it.
        before, after = (
            [s.prompt_token_ids + s.completion_token_ids for s in sequences_of(one)]
            for one in (sample, learned)
        )
        assert before == after


def test_the_teacher_of_a_commented_answer_reads_its_thought_too() -> None:
    sample = CommentedSample(
        sample_id="c", sequence=ANSWERED, hinted_prompt_token_ids=(1, 2, 50, 51)
    )
    hinted = as_learned(sample, "policy_gradient").hinted
    assert hinted.prompt_token_ids == (1, 2, 50, 51, 7, 8, 9)
    assert hinted.completion_token_ids == (4, 5)
    assert as_learned(sample, "always").hinted.completion_token_ids == (7, 8, 9, 4, 5)


def test_a_reward_models_sample_is_text_without_a_thought() -> None:
    label = LabelledText(sample_id="l", prompt="Hi", completion="Hello.", desirable=True)
    assert as_learned(label, "policy_gradient") is label


def test_an_answer_that_was_cut_off_in_its_thought_is_refused() -> None:
    thumb = ThumbSample(sample_id="t", sequence=thought_of(()), desirable=False)
    with pytest.raises(InvalidRequest, match="cut off in its thought: there is no answer") as found:
        check_sample(as_learned(thumb, "policy_gradient"), max_length=99, vocab_size=99)
    assert found.value.param == "t"
    check_sample(as_learned(thumb, "always"), max_length=99, vocab_size=99)
    empty = replace(thumb, sequence=replace(thumb.sequence, completion_token_ids=()))
    with pytest.raises(InvalidRequest, match="the completion is empty"):
        check_sample(
            replace(
                empty,
                sequence=replace(
                    empty.sequence, reasoning_tokens=0, generation_logprobs=(), ref_logprobs=()
                ),
            ),
            max_length=99,
            vocab_size=99,
        )


def test_answers_of_one_prompt_share_it_although_their_thoughts_differ() -> None:
    """1, 2 once; then 7, 8, 9, 4 and 3: the last token of a completion is not read."""
    learned = as_learned(PAIR, "policy_gradient")
    assert packed_length([learned.chosen, learned.rejected]) == 2 + 4 + 1


def model_of(
    samples: Sequence[Any], policy: list[list[float]], reference: list[list[float]]
) -> Any:
    table = torch.tensor(policy)
    sequences = [s for sample in samples for s in sequences_of(sample)]
    # Log-probs of the reference come from the model here.
    return GivenModel(
        [replace(s, ref_logprobs=()) for s in sequences],
        old=table,
        policy=table,
        reference=torch.tensor(reference),
    )


def learned_without_reference(sample: Any) -> Any:
    learned = as_learned(sample, "policy_gradient")
    match learned:
        case PairSample(chosen=chosen, rejected=rejected):
            return replace(
                learned,
                chosen=replace(chosen, ref_logprobs=()),
                rejected=replace(rejected, ref_logprobs=()),
            )
    return replace(learned, sequence=replace(learned.sequence, ref_logprobs=()))


def test_dpo_compares_the_answers_alone_and_divides_by_their_lengths() -> None:
    """Chosen: two tokens, log-ratios 0.5 and 0.1; rejected: one, -0.3. β is 0.5.

    Length-normalised: 0.5 · ((0.5 + 0.1)/2 − (−0.3)/1) = 0.3, loss −log σ(0.3).
    """
    pair = learned_without_reference(PAIR)
    model = model_of([pair], [[-1.0, -2.0], [-1.5, 0.0]], [[-1.5, -2.1], [-1.2, 0.0]])
    settings = TrainerSettings(beta_dpo=0.5, dpo_loss_type="sigmoid_norm", kl_budget=0.8)
    plan = plan_dpo(model, [pair], settings)
    assert plan.tokens == 3
    assert total_loss(plan).item() == pytest.approx(-math.log(1 / (1 + math.exp(-0.3))))
    assert model.policy.grad is not None
    assert (model.policy.grad != 0).tolist() == [[True, True], [True, False]]


def test_kto_and_its_kl_count_the_answer_alone() -> None:
    """Log-ratios 0.5 and 0.1: loss 1 − σ(0.5 · 0.6); KL is the mean over two tokens.

    Each token's estimate is k3, e^−r − 1 + r: 0.106531 and 0.004837.
    """
    thumb = learned_without_reference(ThumbSample(sample_id="t", sequence=ANSWERED, desirable=True))
    model = model_of([thumb], [[-1.0, -2.0]], [[-1.5, -2.1]])
    plan = plan_kto(model, [thumb], TrainerSettings(beta_kto=0.5))
    (micro_loss,) = plan.micro_losses
    loss, metrics = micro_loss()
    assert plan.tokens == 2
    assert loss.item() == pytest.approx(1 - 1 / (1 + math.exp(-0.3)), abs=1e-6)
    assert merge([metrics])["kl"] == pytest.approx((0.106531 + 0.004837) / 2, abs=1e-6)


def test_a_pull_to_the_reference_acts_on_the_answer_alone() -> None:
    """k2 over the answer's two tokens, halved: gradient log-ratio/2 on each, times the pull."""
    thumb = learned_without_reference(ThumbSample(sample_id="t", sequence=ANSWERED, desirable=True))
    model = model_of([thumb], [[-1.0, -2.0]], [[-1.5, -2.1]])
    # What the thumb itself says is left out.
    settings = TrainerSettings(desirable_weight=0.0)
    total_loss(plan_kto(model, [thumb], settings, StepControls(kl_pull=1.0)))
    torch.testing.assert_close(model.policy.grad, torch.tensor([[0.25, 0.05]]))


def test_sft_learns_the_edited_answer_after_the_thought() -> None:
    """Mean over 2 tokens, not over 5."""
    edit = learned_without_reference(DemonstrationSample(sample_id="d", sequence=ANSWERED))
    model = model_of([edit], [[-1.0, -3.0]], [[0.0, 0.0]])
    assert total_loss(plan_sft(model, [edit], TrainerSettings())).item() == pytest.approx(2.0)


@pytest.mark.parametrize(("learn_thoughts", "tokens"), [("policy_gradient", 9), ("never", 3)])
def test_grpo_credits_thoughts_too_unless_they_are_never_learned(
    learn_thoughts: LearnThoughts, tokens: int
) -> None:
    """Two of a group, answers of 2 and 1 tokens after thoughts of 3: 5 + 4 = 9, or 2 + 1 = 3.

    Rewards 1 and 0 have the mean 0.5 and the deviation 1/√2, advantages ±0.5/(0.707107 + 1e-4).
    """
    members = [
        replace(SCORED, sample_id=str(i), reward=reward, sequence=replace(s, ref_logprobs=()))
        for i, (s, reward) in enumerate([(ANSWERED, 1.0), (thought_of((6,), (3, 3, 3)), 0.0)])
    ]
    group = as_learned(ScoredGroup(sample_id="g", samples=tuple(members)), learn_thoughts)
    width = max(len(s.completion_token_ids) for s in sequences_of(group))
    table = [
        [*s.generation_logprobs, *[0.0] * (width - len(s.generation_logprobs))]
        for s in sequences_of(group)
    ]
    model = model_of([group], table, table)
    plan = plan_grpo(model, [group], TrainerSettings(beta_grpo=0.0))
    total_loss(plan)
    assert plan.tokens == tokens
    advantage = 0.5 / (math.sqrt(0.5) + 1e-4)
    expected = torch.tensor(
        [
            [
                sign * advantage / tokens if i < len(s.completion_token_ids) else 0.0
                for i in range(width)
            ]
            for sign, s in zip((-1, 1), sequences_of(group), strict=True)
        ]
    )
    torch.testing.assert_close(model.policy.grad, expected, rtol=1e-4, atol=1e-6)
