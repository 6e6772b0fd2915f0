"""The losses against numbers worked out by hand, and against their own gradients."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tuneloop.learner.losses.dpo import HIGHEST_FLIP_RATE, DpoLossType, dpo_loss
from tuneloop.learner.losses.grpo import grpo_loss, rloo_loss
from tuneloop.learner.losses.kl import KlEstimator, pull_loss
from tuneloop.learner.losses.kto import class_weights, kto_loss, reference_point, two_sidedness
from tuneloop.learner.losses.means import Mean, log_ratio_kl, mean_over, merge
from tuneloop.learner.losses.ppo import (
    importance_weights,
    is_far_off_policy,
    ppo_policy_loss,
    sequence_gate,
    value_loss,
)
from tuneloop.learner.losses.reward_model import bradley_terry_loss, thumb_loss
from tuneloop.learner.losses.sdft import sdft_loss
from tuneloop.learner.losses.sft import sft_loss


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_kto_of_a_thumb_up_and_a_thumb_down_by_hand() -> None:
    loss, metrics = kto_loss(
        policy_logps=vector(-4.0, -3.0),
        ref_logps=vector(-6.0, -4.0),
        desirable=torch.tensor([True, False]),
        weights=vector(1.0, 0.5),
        z=vector(0.5)[0],
        beta=0.1,
        total_weight=2,
    )
    up = 1.0 * (1 - logistic(0.1 * (2.0 - 0.5)))
    down = 0.5 * (1 - logistic(0.1 * (0.5 - 1.0)))
    assert float(loss) == pytest.approx((up + down) / 2, abs=1e-12)
    margins = merge([metrics])
    assert margins["desirable_margin"] == pytest.approx(0.2)
    assert margins["undesirable_margin"] == pytest.approx(0.1)
    assert margins["desirable_fraction"] == 0.5


def test_kto_moves_thumbs_up_up_and_thumbs_down_down() -> None:
    policy = vector(-4.0, -3.0).requires_grad_()
    loss, _ = kto_loss(
        policy_logps=policy,
        ref_logps=vector(-4.0, -3.0),
        desirable=torch.tensor([True, False]),
        weights=vector(1.0, 1.0),
        z=vector(0.0)[0],
        beta=0.1,
        total_weight=2,
    )
    loss.backward()
    assert policy.grad is not None
    # d/dr of 1 − σ(βr) at 0 is −β/4.
    assert policy.grad.tolist() == pytest.approx([-0.1 / 4 / 2, 0.1 / 4 / 2])


def test_kto_takes_no_gradient_through_the_reference_point() -> None:
    z = vector(0.7)[0].requires_grad_()
    loss, _ = kto_loss(
        policy_logps=vector(-1.0).requires_grad_(),
        ref_logps=vector(-1.0),
        desirable=torch.tensor([True]),
        weights=vector(1.0),
        z=z,
        beta=0.1,
        total_weight=1,
    )
    loss.backward()
    assert z.grad is None


@pytest.mark.parametrize(
    ("log_ratios", "z"), [([1.0, 2.0], 1.5), ([-1.0, -2.0], 0.0), ([3.0], 0.0), ([], 0.0)]
)
def test_reference_point_is_the_mean_never_negative_and_zero_below_two(
    log_ratios: list[float], z: float
) -> None:
    assert float(reference_point(vector(*log_ratios))) == z


def test_class_weights_give_either_class_of_a_stream_half_up_to_a_limit() -> None:
    desirable = torch.tensor([True, False, True])
    assert class_weights(desirable, 0.8, limit=4.0).tolist() == pytest.approx([0.625, 2.5, 0.625])
    assert class_weights(desirable, 0.99, limit=4.0).tolist() == pytest.approx(
        [50 / 99, 4, 50 / 99]
    )
    assert class_weights(desirable, 0.0, limit=4.0).tolist() == [4.0, 0.5, 4.0]
    assert class_weights(desirable, 1.0, limit=4.0).tolist() == [0.5, 4.0, 0.5]


@pytest.mark.parametrize(
    ("up", "factor"),
    [
        (0.0, 0.5),
        (1 / 64, 0.75),
        (1 / 32, 1.0),
        (0.5, 1.0),
        (3 / 4, 1.0),
        (7 / 8, 0.5),
        (1.0, 0.125),
    ],
)
def test_thumbs_of_one_kind_count_less(up: float, factor: float) -> None:
    assert two_sidedness(up) == factor


def plain_dpo(**arguments: Any) -> tuple[Tensor, dict[str, Mean]]:
    nothing = torch.ones_like(arguments["weights"])
    return dpo_loss(
        chosen_lengths=nothing,
        rejected_lengths=nothing,
        flip_rates=nothing,
        loss_type="sigmoid",
        **arguments,
    )


def test_dpo_by_hand_and_ln_2_where_policy_is_reference() -> None:
    arguments = {
        "policy_chosen_logps": vector(-4.0),
        "policy_rejected_logps": vector(-5.0),
        "ref_chosen_logps": vector(-6.0),
        "ref_rejected_logps": vector(-4.0),
    }
    loss, metrics = plain_dpo(**arguments, weights=vector(2.0), beta=0.1, total_weight=4)
    assert float(loss) == pytest.approx(-2 * math.log(logistic(0.1 * (2.0 + 1.0))) / 4, abs=1e-12)
    assert merge([metrics]) == pytest.approx({"dpo_margin": 0.3, "dpo_accuracy": 1.0})
    same = dict.fromkeys(arguments, vector(-3.0))
    loss, _ = plain_dpo(**same, weights=vector(1.0), beta=0.1, total_weight=1)
    assert float(loss) == pytest.approx(math.log(2), abs=1e-12)


def test_dpo_variants_by_hand() -> None:
    arguments: dict[str, Any] = {
        "policy_chosen_logps": vector(-4.0),
        "policy_rejected_logps": vector(-5.0),
        "ref_chosen_logps": vector(-6.0),
        "ref_rejected_logps": vector(-4.0),
        "chosen_lengths": torch.tensor([4]),
        "rejected_lengths": torch.tensor([2]),
        "weights": vector(1.0),
        "beta": 0.5,
        "total_weight": 1,
    }

    def loss(loss_type: DpoLossType, flip_rate: float = 0.0) -> float:
        return float(dpo_loss(loss_type=loss_type, flip_rates=vector(flip_rate), **arguments)[0])

    # Log-ratios 2 and −1, by token ½ and −½.
    assert loss("sigmoid") == pytest.approx(-math.log(logistic(1.5)))
    assert loss("sigmoid_norm") == pytest.approx(-math.log(logistic(0.5)))
    assert loss("ipo") == pytest.approx((1.0 - 1.0) ** 2)
    right, wrong = -math.log(logistic(1.5)), -math.log(logistic(-1.5))
    assert loss("robust", 0.2) == pytest.approx((0.8 * right - 0.2 * wrong) / 0.6)
    assert loss("robust", 0.0) == loss("sigmoid") == loss("sigmoid", 0.3)
    assert loss("robust", 0.499) == loss("robust", HIGHEST_FLIP_RATE)


def test_robust_dpo_saturates() -> None:
    """ε = 0.2: c = 0.2/0.6 = 1/3 and M = log(9/c − 1) = log 26 = 3.258."""
    bound = math.log(26)

    def gradient(margin: float, flip_rate: float) -> float:
        policy = vector(margin).requires_grad_()
        loss, _ = dpo_loss(
            policy_chosen_logps=policy,
            policy_rejected_logps=vector(0.0),
            ref_chosen_logps=vector(0.0),
            ref_rejected_logps=vector(0.0),
            chosen_lengths=torch.tensor([1]),
            rejected_lengths=torch.tensor([1]),
            flip_rates=vector(flip_rate),
            weights=vector(1.0),
            beta=1.0,
            loss_type="robust",
            total_weight=1,
        )
        loss.backward()  # type: ignore[no-untyped-call]
        assert policy.grad is not None
        return float(policy.grad)

    # Within the bound it is that of the paper: −(0.8·σ(−m) + 0.2·σ(m)) / 0.6.
    for margin in (-3.0, 0.0, 1.5, 3.25):
        paper = -(0.8 * logistic(-margin) + 0.2 * logistic(margin)) / 0.6
        assert gradient(margin, 0.2) == pytest.approx(paper)
        assert gradient(margin, 0.2) == pytest.approx(-logistic(-margin) - 1 / 3)
    # At the bound nine tenths of it no longer depend on the margin.
    assert logistic(-bound) / (logistic(-bound) + 1 / 3) == pytest.approx(0.1)
    # Beyond, it is the sigmoid's: it comes to nothing, where the paper's stays at −1/3.
    for margin in (3.27, 6.0, 20.0, -3.27, -20.0):
        assert gradient(margin, 0.2) == pytest.approx(-logistic(-margin))
    assert abs(gradient(20.0, 0.2)) < 1e-8
    # The less is flipped, the later: 9·0.98/0.01 − 1 = 881.
    assert gradient(math.log(880), 0.01) < -0.01
    assert gradient(math.log(882), 0.01) > -0.002
    assert gradient(30.0, 0.0) == pytest.approx(-logistic(-30.0))


def test_grpo_at_the_old_policy_has_ratio_1_and_clips_nothing() -> None:
    policy = torch.log(torch.rand(2, 3, dtype=torch.float64)).requires_grad_()
    mask = torch.tensor([[True, True, True], [True, False, False]])
    loss, metrics = grpo_loss(
        policy_logprobs=policy,
        old_logprobs=policy.detach(),
        ref_logprobs=None,
        advantages=vector(1.0, -2.0),
        weights=torch.ones(2, 3, dtype=torch.float64),
        loss_mask=mask,
        epsilon=0.2,
        epsilon_high=0.28,
        dual_clip=3.0,
        beta=0.0,
        estimator="k3",
        total_weight=4,
    )
    assert merge([metrics]) == {"clip_fraction": 0.0, "importance_ratio": 1.0}
    assert float(loss.detach()) == pytest.approx(-(3 * 1.0 - 2.0) / 4)
    loss.backward()  # type: ignore[no-untyped-call]
    assert policy.grad is not None
    assert policy.grad.tolist() == [[-0.25, -0.25, -0.25], [0.5, 0.0, 0.0]]


def test_grpo_clips_higher_above_than_below() -> None:
    for ratio, advantage, expected in (
        (1.27, 1.0, -1.27),
        (1.4, 1.0, -1.28),
        (0.7, -1.0, 0.8),
        (0.85, -1.0, 0.85),
    ):
        loss, _ = grpo_loss(
            policy_logprobs=vector(math.log(ratio)).reshape(1, 1),
            old_logprobs=vector(0.0).reshape(1, 1),
            ref_logprobs=None,
            advantages=vector(advantage),
            weights=vector(1.0).reshape(1, 1),
            loss_mask=torch.ones(1, 1, dtype=torch.bool),
            epsilon=0.2,
            epsilon_high=0.28,
            dual_clip=3.0,
            beta=0.0,
            estimator="k3",
            total_weight=1,
        )
        assert float(loss) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, 0.0),
        (1.1, 2.0, -2.2, 0.0),
        (1.5, 2.0, -2.4, 1.0),  # gains no more past 1 + ε
        (0.5, 2.0, -1.0, 0.0),  # but loses in full
        (0.5, -2.0, 1.6, 1.0),  # gains no more past 1 − ε
        (1.5, -2.0, 3.0, 0.0),
        (5.0, -2.0, 6.0, 0.0),  # dual clip: at most c·|A|
    ],
)
def test_ppo_clip_and_dual_clip_by_hand(
    ratio: float, advantage: float, loss: float, clipped: float
) -> None:
    result, metrics = ppo_policy_loss(
        policy_logprobs=vector(math.log(ratio) - 1.0).reshape(1, 1),
        old_logprobs=vector(-1.0).reshape(1, 1),
        advantages=vector(advantage).reshape(1, 1),
        weights=vector(1.0).reshape(1, 1),
        loss_mask=torch.ones(1, 1, dtype=torch.bool),
        clip=0.2,
        dual_clip=3.0,
        total_weight=1,
    )
    assert float(result) == pytest.approx(loss, abs=1e-12)
    assert merge([metrics]) == pytest.approx({"clip_fraction": clipped, "importance_ratio": ratio})


def test_ppo_ignores_masked_tokens_even_where_they_are_not_numbers() -> None:
    policy = vector(-1.0, -2.0).reshape(1, 2).requires_grad_()
    loss, _ = ppo_policy_loss(
        policy_logprobs=policy,
        old_logprobs=vector(-1.0, -2.0).reshape(1, 2),
        advantages=vector(1.0, math.nan).reshape(1, 2),
        weights=torch.ones(1, 2, dtype=torch.float64),
        loss_mask=torch.tensor([[True, False]]),
        clip=0.2,
        dual_clip=3.0,
        total_weight=1,
    )
    assert float(loss.detach()) == -1.0


def test_importance_weights_are_truncated_and_one_where_masked() -> None:
    weights = importance_weights(
        old_logprobs=torch.log(vector(0.5, 0.1, 0.9)).reshape(1, 3),
        generation_logprobs=torch.log(vector(0.1, 0.4, 0.1)).reshape(1, 3),
        loss_mask=torch.tensor([[True, True, False]]),
        cap=2.0,
    )
    assert weights.tolist()[0] == pytest.approx([2.0, 0.25, 1.0])


def test_a_sequence_is_masked_whole_where_its_ratio_is_above_the_cap() -> None:
    """By hand: the ratios of the tokens multiply to 1.5 · 0.8 = 1.2 and to 1.5 · 1.5 = 2.25."""
    weights = importance_weights(
        old_logprobs=torch.log(vector(0.3, 0.4, 0.9, 0.3, 0.3, 0.9)).reshape(2, 3),
        generation_logprobs=torch.log(vector(0.2, 0.5, 0.1, 0.2, 0.2, 0.1)).reshape(2, 3),
        loss_mask=torch.tensor([[True, True, False]] * 2),
        cap=2.0,
        kind="sequence_mask",
    )
    assert weights[0].tolist() == pytest.approx([1.2, 1.2, 1.0])
    assert weights[1].tolist() == [0.0, 0.0, 1.0]


def test_a_sequence_is_far_off_policy_by_the_mean_of_its_tokens() -> None:
    generation = vector(-1.0, -1.0, -1.0, -1.0).reshape(2, 2)
    old = vector(-1.2, -1.9, -1.2, -1.7).reshape(2, 2)  # 0.55 and 0.45 less on average
    everything = torch.ones(2, 2, dtype=torch.bool)
    far = is_far_off_policy(
        old_logprobs=old, generation_logprobs=generation, loss_mask=everything, threshold=0.5
    )
    assert far.tolist() == [True, False]
    # What the policy finds likelier than the sampler did is never far in this sense.
    back = is_far_off_policy(
        old_logprobs=generation, generation_logprobs=old, loss_mask=everything, threshold=0.5
    )
    assert not back.any()


def test_sequence_gate_uses_the_geometric_mean_so_length_does_not_matter() -> None:
    for tokens in (1, 50):
        old = torch.full((3, tokens), -1.0, dtype=torch.float64)
        generation = old - vector(0.6, 0.8, -0.8).reshape(3, 1)
        mask = torch.ones(3, tokens, dtype=torch.bool)
        kept = sequence_gate(
            old_logprobs=old, generation_logprobs=generation, loss_mask=mask, limit=2.0
        )
        assert kept.tolist() == [True, False, False]  # ln 2 is 0.693


def test_value_loss_by_hand() -> None:
    loss, _ = value_loss(
        values=vector(1.0, 1.0).reshape(1, 2),
        old_values=vector(1.0, 0.0).reshape(1, 2),
        returns=vector(3.0, 1.0).reshape(1, 2),
        loss_mask=torch.ones(1, 2, dtype=torch.bool),
        value_clip=0.2,
        total_tokens=2,
    )
    # The second value reached its return, but by a jump past the clip: (0.2 − 1)² counts.
    assert float(loss) == pytest.approx((0.5 * 4.0 + 0.5 * 0.64) / 2, abs=1e-12)


def test_bradley_terry_by_hand() -> None:
    loss, metrics = bradley_terry_loss(
        chosen_scores=vector(1.0),
        rejected_scores=vector(-0.5),
        margins=vector(0.25),
        weights=vector(1.0),
        total_weight=1,
    )
    assert float(loss) == pytest.approx(-math.log(logistic(1.25)) + 0.01 * 0.25, abs=1e-12)
    measured = merge([metrics])
    assert measured["pair_accuracy"] == 1.0
    assert measured["pair_margin"] == pytest.approx(1.5)


def test_thumb_loss_is_binary_cross_entropy() -> None:
    scores, desirable = vector(2.0, -1.0, 0.5), torch.tensor([True, True, False])
    loss, metrics = thumb_loss(
        scores=scores, desirable=desirable, weights=torch.ones(3).double(), total_weight=3
    )
    expected = torch.nn.functional.binary_cross_entropy_with_logits(scores, desirable.double())
    assert float(loss) == pytest.approx(float(expected), abs=1e-12)
    assert merge([metrics])["label_accuracy"] == pytest.approx(1 / 3)


def test_gradients_agree_with_finite_differences() -> None:
    torch.manual_seed(0)
    ones = torch.ones(3, dtype=torch.float64)
    rows = [torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    grids = [torch.randn(2, 3, dtype=torch.float64) for _ in range(3)]
    moving = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, False, False]])

    def kto(policy: Tensor) -> Tensor:
        return kto_loss(
            policy_logps=policy,
            ref_logps=grids[0][0],
            desirable=torch.tensor([True, False, True]),
            weights=ones,
            z=ones[0] * 0.1,
            beta=0.5,
            total_weight=3,
        )[0]

    def dpo(chosen: Tensor, rejected: Tensor) -> Tensor:
        return plain_dpo(
            policy_chosen_logps=chosen,
            policy_rejected_logps=rejected,
            ref_chosen_logps=grids[0][0],
            ref_rejected_logps=grids[0][1],
            weights=ones,
            beta=0.5,
            total_weight=3,
        )[0]

    def variant(loss_type: DpoLossType) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda chosen, rejected: dpo_loss(
            policy_chosen_logps=chosen,
            policy_rejected_logps=rejected,
            ref_chosen_logps=grids[0][0],
            ref_rejected_logps=grids[0][1],
            chosen_lengths=torch.tensor([3, 1, 2]),
            rejected_lengths=torch.tensor([1, 4, 2]),
            flip_rates=torch.tensor([0.0, 0.2, 0.45], dtype=torch.float64),
            weights=ones,
            beta=0.5,
            loss_type=loss_type,
            total_weight=3,
        )[0]

    def sft(policy: Tensor) -> Tensor:
        return sft_loss(
            policy_logprobs=policy, weights=vector(1.0, 0.5), loss_mask=mask, total_weight=4
        )[0]

    def grpo(estimator: KlEstimator) -> Callable[[Tensor], Tensor]:
        return lambda policy: grpo_loss(
            policy_logprobs=policy,
            old_logprobs=grids[0],
            ref_logprobs=grids[1],
            advantages=vector(1.0, -0.5),
            weights=grids[2].abs(),
            loss_mask=mask,
            epsilon=0.2,
            epsilon_high=0.28,
            dual_clip=3.0,
            beta=0.3,
            estimator=estimator,
            total_weight=4,
        )[0]

    def rloo(policy: Tensor) -> Tensor:
        return rloo_loss(
            policy_logps=policy,
            old_logps=grids[0][0],
            advantages=grids[1][0],
            weights=ones,
            epsilon=0.2,
            epsilon_high=0.28,
            dual_clip=3.0,
            total_weight=3,
        )[0]

    def pull(policy: Tensor) -> Tensor:
        return pull_loss(
            policy_logprobs=policy, ref_logprobs=grids[0], loss_mask=mask, total_tokens=4
        )

    def ppo(policy: Tensor) -> Tensor:
        return ppo_policy_loss(
            policy_logprobs=policy,
            old_logprobs=grids[0],
            advantages=grids[1],
            weights=grids[2].abs(),
            loss_mask=mask,
            clip=0.2,
            dual_clip=3.0,
            total_weight=4,
        )[0]

    def value(values: Tensor) -> Tensor:
        return value_loss(
            values=values,
            old_values=grids[0],
            returns=grids[1],
            loss_mask=mask,
            value_clip=0.2,
            total_tokens=4,
        )[0]

    def pairs(chosen: Tensor, rejected: Tensor) -> Tensor:
        return bradley_terry_loss(
            chosen_scores=chosen,
            rejected_scores=rejected,
            margins=ones * 0.1,
            weights=ones,
            total_weight=3,
        )[0]

    assert torch.autograd.gradcheck(kto, rows[0])
    assert torch.autograd.gradcheck(dpo, tuple(rows))
    for loss_type in ("sigmoid_norm", "ipo", "robust"):
        assert torch.autograd.gradcheck(variant(loss_type), tuple(rows))
    assert torch.autograd.gradcheck(sft, moving)
    assert torch.autograd.gradcheck(grpo("k3"), moving)
    assert torch.autograd.gradcheck(grpo("k2"), moving)
    assert torch.autograd.gradcheck(rloo, rows[0])
    assert torch.autograd.gradcheck(pull, moving)
    assert torch.autograd.gradcheck(ppo, moving)
    assert torch.autograd.gradcheck(value, moving)
    assert torch.autograd.gradcheck(pairs, tuple(rows))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=1, max_size=12), st.data())
def test_means_merge_to_the_mean_of_all_however_they_are_cut(
    rows: list[tuple[float, bool]], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(rows)))
    parts: list[dict[str, Mean]] = []
    for part in (rows[:cut], rows[cut:]):
        values = torch.tensor([value for value, _ in part], dtype=torch.float64)
        mask = torch.tensor([kept for _, kept in part], dtype=torch.bool)
        parts.append({"x": mean_over(values, mask)})
    kept_values = [value for value, kept in rows if kept]
    expected = {"x": sum(kept_values) / len(kept_values)} if kept_values else {}
    assert merge(parts) == pytest.approx(expected, abs=1e-9)


def test_kl_metric_is_zero_at_the_reference_and_never_negative() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    ref = torch.tensor([[-1.0, -2.0], [-3.0, 99.0]])
    same = merge([{"kl": log_ratio_kl(ref.clone(), ref, mask)}])
    assert same == {"kl": 0.0}
    moved = merge([{"kl": log_ratio_kl(ref - 0.3, ref, mask)}])
    assert moved["kl"] == pytest.approx(0.5 * 0.3**2, rel=1e-5)
    # A token that was unlikely and is likely now: k2 would count 8.
    surer = merge([{"kl": log_ratio_kl(ref + 4.0, ref, mask)}])
    assert surer["kl"] == pytest.approx(math.exp(-4) + 3, rel=1e-5)


def test_kl_metric_is_close_to_the_kl_on_answers_of_the_policy() -> None:
    policy = torch.tensor([0.6, 0.3, 0.1]).log()
    ref = torch.tensor([0.05, 0.55, 0.4]).log()
    # Ten tokens in the policy's own proportions.
    sampled = torch.tensor([0] * 6 + [1] * 3 + [2])
    mask = torch.ones(1, 10, dtype=torch.bool)
    found = merge([{"kl": log_ratio_kl(policy[sampled][None], ref[sampled][None], mask)}])
    exact = float((policy.exp() * (policy - ref)).sum())
    assert found["kl"] == pytest.approx(exact, rel=0.15)


def test_sdft_by_hand() -> None:
    """Two answers of two and three tokens; of the tokens of 4 and of 8 nats 2 count."""
    divergences = torch.tensor(
        [[0.5, 4.0, 9.0], [0.0, 1.0, 8.0]], dtype=torch.float64, requires_grad=True
    )
    loss, metrics = sdft_loss(
        divergences=divergences,
        weights=vector(1.0, 0.5),
        loss_mask=torch.tensor([[True, True, False], [True, True, True]]),
        clip=2.0,
        total_weight=2.0,
    )
    first, second = (0.5 + 2.0) / 2, (0.0 + 1.0 + 2.0) / 3
    assert float(loss) == pytest.approx((first + 0.5 * second) / 2)
    loss.backward()  # type: ignore[no-untyped-call]
    assert divergences.grad is not None
    # A token past the clip keeps its direction, at a part of its size.
    expected = [[1 / 4, 2 / 4 / 4, 0.0], [1 / 12, 1 / 12, 2 / 8 / 12]]
    assert divergences.grad.tolist() == [pytest.approx(row) for row in expected]
    found = merge([metrics])
    assert found["hint_divergence"] == pytest.approx((0.5 + 4.0 + 0.0 + 1.0 + 8.0) / 5)
    assert found["hint_clipped"] == pytest.approx(2 / 5)
