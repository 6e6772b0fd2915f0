"""The reward model's losses: by hand, against TRL's own code, and their gradients."""

import itertools
import math
from collections import defaultdict
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tuneloop.learner.losses.means import merge
from tuneloop.learner.losses.reward_model import (
    bradley_terry_loss,
    plackett_luce_losses,
    ranking_loss,
    rating_loss,
    signal_loss,
    thumb_loss,
)


def tensor(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_plackett_luce_by_hand() -> None:
    # e^r = 6, 3, 1: 6/10 to be first, then 3/4, then 1.
    scores = tensor([6.0, 3.0, 1.0]).log()
    assert float(plackett_luce_losses(scores)) == pytest.approx(-math.log(0.6 * 0.75))
    loss, _ = ranking_loss(scores=scores, weights=tensor(1.0), total_weight=1, kind="plackett_luce")
    mean = math.log(18.0) / 3
    assert float(loss) == pytest.approx(-math.log(0.45) / 2 + 0.01 * (2 * mean) ** 2)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=5))
def test_plackett_luce_is_a_distribution_over_orders(scores: list[float]) -> None:
    orders = torch.tensor(list(itertools.permutations(scores)), dtype=torch.float64)
    assert float((-plackett_luce_losses(orders)).exp().sum()) == pytest.approx(1.0)


def test_all_pairs_by_hand() -> None:
    scores = tensor([2.0, 1.0, 0.5])
    loss, metrics = ranking_loss(scores=scores, weights=tensor(3.0), total_weight=2, kind="pairs")
    pairs = [(2.0, 1.0), (2.0, 0.5), (1.0, 0.5)]
    expected = sum(softplus(b - a) + 0.01 * (a + b) ** 2 for a, b in pairs) / 3
    assert float(loss) == pytest.approx(3.0 * expected / 2)
    assert merge([metrics]) == pytest.approx(
        {"pair_accuracy": 1.0, "accuracy": 1.0, "pair_margin": 1.0}
    )


@pytest.mark.parametrize("kind", ["pairs", "plackett_luce"])
@given(a=st.floats(-20, 20), b=st.floats(-20, 20))
def test_a_ranking_of_two_is_a_pair(kind: Any, a: float, b: float) -> None:
    ranked, _ = ranking_loss(scores=tensor([a, b]), weights=tensor(1.0), total_weight=1, kind=kind)
    paired, _ = bradley_terry_loss(
        chosen_scores=tensor(a),
        rejected_scores=tensor(b),
        margins=tensor(0.0),
        weights=tensor(1.0),
        total_weight=1,
    )
    assert float(ranked) == pytest.approx(float(paired), abs=1e-12)


def test_ratings_by_hand() -> None:
    given_ = {"scores": tensor(0.5, 3.0), "ratings": tensor(0.0, 1.0), "weights": tensor(1.0, 2.0)}
    huber, metrics = rating_loss(**given_, total_weight=2, kind="huber")
    assert float(huber) == pytest.approx((0.125 + 2 * 1.5) / 2)
    assert merge([metrics])["rating_error"] == pytest.approx(1.25)
    squared, _ = rating_loss(**given_, total_weight=2, kind="mse")
    assert float(squared) == pytest.approx((0.125 + 2 * 2.0) / 2)


def trl_loss(scores: Tensor, margins: Tensor | None) -> Tensor:
    """What TRL's `RewardTrainer.compute_loss` makes of given scores, chosen first."""
    from types import SimpleNamespace

    from trl.trainer.reward_trainer import RewardTrainer

    trainer = RewardTrainer.__new__(RewardTrainer)
    trainer.model = SimpleNamespace(training=False)
    trainer.args = SimpleNamespace(center_rewards_coefficient=0.01)
    trainer.accelerator = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer._metrics = {"eval": defaultdict(list)}
    trainer._total_train_tokens = 0
    inputs = {} if margins is None else {"margin": margins}
    loss: Tensor = trainer.compute_loss(
        lambda **_: SimpleNamespace(logits=scores.unsqueeze(-1)), inputs
    )
    return loss


@pytest.mark.parametrize("with_margins", [False, True])
def test_pairs_are_trls(with_margins: bool) -> None:
    pytest.importorskip("trl")
    generator = torch.Generator().manual_seed(0)
    scores = 4 * torch.randn(12, dtype=torch.float64, generator=generator)
    margins = torch.rand(6, dtype=torch.float64, generator=generator)
    ours, theirs = (scores.clone().requires_grad_() for _ in range(2))
    loss, _ = bradley_terry_loss(
        chosen_scores=ours[:6],
        rejected_scores=ours[6:],
        margins=margins if with_margins else torch.zeros_like(margins),
        weights=torch.ones_like(margins),
        total_weight=6,
    )
    expected = trl_loss(theirs, margins if with_margins else None)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    loss.backward()
    expected.backward()
    assert torch.allclose(ours.grad, theirs.grad, rtol=0, atol=1e-12)


def losses(scores: Tensor) -> dict[str, Tensor]:
    """Every loss on 4 × 3 scores."""
    weights = tensor(1.0, 0.5, 2.0, 0.0)
    first, second = scores[:, 0], scores[:, 1]
    ratings, margins = tensor(0.3, -0.2, 4.0, 1.0), tensor(0.0, 0.5, 1.0, 2.0)
    made = {
        "pairs": bradley_terry_loss(
            chosen_scores=first,
            rejected_scores=second,
            margins=margins,
            weights=weights,
            total_weight=4,
        ),
        "thumbs": thumb_loss(
            scores=first,
            desirable=torch.tensor([True, False, True, False]),
            weights=weights,
            total_weight=4,
        ),
    }
    for ranking in ("pairs", "plackett_luce"):
        made[f"ranking {ranking}"] = ranking_loss(
            scores=scores, weights=weights, total_weight=4, kind=ranking
        )
    for rating in ("huber", "mse"):
        made[f"rating {rating}"] = rating_loss(
            scores=first, ratings=ratings, weights=weights, total_weight=4, kind=rating
        )
    return {name: loss for name, (loss, _) in made.items()}


SCORES = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", sorted(losses(SCORES)))
def test_gradients_are_right(name: str) -> None:
    scores = (2 * SCORES).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: losses(s)[name], (scores,))
    losses(scores)[name].backward()
    assert scores.grad is not None
    assert not scores.grad[3].any(), "weight 0"
    assert scores.grad[0].any()


@pytest.mark.parametrize("kind", ["pairs", "plackett_luce"])
def test_extreme_scores_stay_finite(kind: Any) -> None:
    scores = torch.tensor([[-1e4, 0.0, 1e4]], requires_grad=True)
    loss, _ = ranking_loss(scores=scores, weights=torch.ones(1), total_weight=1, kind=kind)
    loss.backward()
    assert torch.isfinite(loss)
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()


def test_a_signal_loses_what_its_thumb_is_expected_to() -> None:
    """By hand: at score 1 a thumb up loses softplus(−1), a thumb down softplus(1)."""
    scores = tensor(1.0, -2.0)
    loss, metrics = signal_loss(
        scores=scores,
        chances=tensor(0.8, 0.5),
        weights=tensor(0.6, 1.0),
        class_weights=(tensor(0.75, 0.75), tensor(1.5, 1.5)),
        total_weight=2.0,
    )
    first = 0.8 * 0.75 * softplus(-1.0) + 0.2 * 1.5 * softplus(1.0)
    second = 0.5 * 0.75 * softplus(2.0) + 0.5 * 1.5 * softplus(-2.0)
    assert float(loss) == pytest.approx((0.6 * first + second) / 2)
    assert merge([metrics]) == pytest.approx({"signal_chance": 0.65})


@given(st.floats(-5, 5), st.booleans())
def test_a_signal_that_is_certain_is_a_thumb(score: float, up: bool) -> None:
    one = torch.ones(1, dtype=torch.float64)
    told, _ = signal_loss(
        scores=score * one,
        chances=float(up) * one,
        weights=one,
        class_weights=(one, one),
        total_weight=1.0,
    )
    said, _ = thumb_loss(
        scores=score * one, desirable=torch.tensor([up]), weights=one, total_weight=1.0
    )
    assert float(told) == pytest.approx(float(said))
