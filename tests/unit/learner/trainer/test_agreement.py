"""Steps are as large as judgements agree: noise moves the policy little, whatever its rate."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.policy_samples import SampleMaker
from torch import nn

from tuneloop.errors import CorruptData, SettingsError
from tuneloop.learner.trainer.gradient_history import (
    DECAY,
    LEAST_FACTOR,
    GradientAgreement,
    cosine_with_moment,
)
from tuneloop.learner.trainer.optimizer import Optimizer
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.settings import OptimizerSettings, TrainerSettings

ALONG = (3.0, 4.0)
ACROSS = (-4.0, 3.0)
RATE = 0.01
TASTE = torch.Generator().manual_seed(1)


def make_optimizer(**options: Any) -> tuple[nn.Parameter, Optimizer]:
    weights = nn.Parameter(torch.zeros(2))
    given = {"learning_rate": RATE, "full_agreement": 0.1, "max_grad_norm": 100.0, **options}
    return weights, Optimizer([({"w": weights}, RATE)], OptimizerSettings(**given))


def step(
    weights: nn.Parameter, optimizer: Optimizer, gradient: tuple[float, float], **options: Any
) -> tuple[float, float]:
    """Take a step; return how far it went and the agreement with it."""
    evidence = options.get("evidence", 1.0)
    optimizer.rewind(evidence)
    before = weights.detach().clone()
    weights.grad = torch.tensor(gradient)
    applied = optimizer.step(**{"closes": False, **options})
    return float((weights.detach() - before).norm()), applied.agreement


def test_the_mean_cosine_by_hand() -> None:
    agreement = GradientAgreement().after(1.0)
    assert agreement.mean == pytest.approx(1 - DECAY)
    assert agreement.after(-1.0).mean == pytest.approx(DECAY * (1 - DECAY) - (1 - DECAY))
    assert agreement.factor(0.6) == pytest.approx((1 - DECAY) / 0.6)
    assert agreement.factor(0.1) == 1.0
    assert GradientAgreement(mean=-0.5).factor(0.1) == LEAST_FACTOR


def test_the_cosine_is_with_the_mean_of_the_gradients_before() -> None:
    weights = nn.Parameter(torch.zeros(2))
    adamw = torch.optim.AdamW([weights])
    assert cosine_with_moment(adamw) is None
    weights.grad = torch.tensor(ALONG)
    assert cosine_with_moment(adamw) is None
    adamw.step()
    assert cosine_with_moment(adamw) == pytest.approx(1.0)
    weights.grad = torch.tensor(ACROSS)
    assert cosine_with_moment(adamw) == pytest.approx(0.0, abs=1e-6)
    weights.grad = torch.zeros(2)
    assert cosine_with_moment(adamw) is None


def test_steps_grow_while_gradients_agree() -> None:
    weights, optimizer = make_optimizer()
    moved = [step(weights, optimizer, ALONG) for _ in range(3)]
    # Of equal gradients Adam's step is the rate in every weight.
    full = RATE * math.sqrt(2)
    assert [agreement for _, agreement in moved] == pytest.approx([0.0, 0.3, 0.51])
    assert [length for length, _ in moved] == pytest.approx([LEAST_FACTOR * full, full, full], 1e-3)


def test_steps_stay_small_while_gradients_do_not() -> None:
    weights, optimizer = make_optimizer()
    plain, usual = make_optimizer(full_agreement=None)
    for n in range(8):
        gradient = (ALONG, ACROSS)[n % 2]
        sign = 1.0 if n % 4 < 2 else -1.0
        turned = (sign * gradient[0], sign * gradient[1])
        length, agreement = step(weights, optimizer, turned)
        assert agreement <= 1e-6
        assert length == pytest.approx(LEAST_FACTOR * step(plain, usual, turned)[0], rel=1e-3)


def test_what_is_scored_is_not_asked_to_agree() -> None:
    weights, optimizer = make_optimizer(warmup_steps=4)
    length, _ = step(weights, optimizer, ALONG, closes=True)
    assert length == pytest.approx(RATE * math.sqrt(2) / 4, rel=1e-3)
    # Judgements start small as it is, and need no warm-up.
    assert optimizer.learning_rate(closes=False) == pytest.approx(RATE)
    assert optimizer.learning_rate(closes=True) == pytest.approx(RATE / 2)


def test_a_batch_in_parts_agrees_like_the_whole() -> None:
    whole, together = make_optimizer()
    parts, alone = make_optimizer()
    for first, second in ((ALONG, ALONG), (ALONG, ACROSS), (ACROSS, ALONG)):
        mean = (0.5 * (first[0] + second[0]), 0.5 * (first[1] + second[1]))
        _, agreement = step(whole, together, mean)
        step(parts, alone, first, evidence=0.5)
        _, in_parts = step(parts, alone, second, evidence=0.5)
        assert in_parts == pytest.approx(agreement, abs=1e-6)
        assert parts.detach().tolist() == pytest.approx(whole.detach().tolist(), abs=1e-7)


def test_the_agreement_is_resumed() -> None:
    weights, going = make_optimizer()
    for _ in range(2):
        step(weights, going, ALONG)
    step(weights, going, ALONG, evidence=0.5)
    restored, resumed = make_optimizer()
    resumed.load_state(going.state())
    assert restored.detach().tolist() == pytest.approx(weights.detach().tolist())
    for gradient in (ACROSS, ALONG):
        expected = step(weights, going, gradient, evidence=0.5)
        assert step(restored, resumed, gradient, evidence=0.5) == pytest.approx(expected)


@pytest.mark.parametrize("agreement", [2.0, float("nan"), "high"])
def test_a_checkpoint_with_another_agreement_is_refused(agreement: Any) -> None:
    _, optimizer = make_optimizer()
    state = optimizer.state()
    broken = replace(state, scheduler={**state.scheduler, "agreement": agreement})
    with pytest.raises(CorruptData, match="agreement"):
        optimizer.load_state(broken)


@pytest.mark.parametrize("name", ["full_agreement", "scored_rate"])
def test_the_settings_are_checked(name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        TrainerSettings(**{name: 0.0})


def test_coin_flips_agree_less_than_a_taste(tiny_policy: Path) -> None:
    """On the same answers: of each the same is said again, or chance decides."""

    def agreement(labels: torch.Generator) -> float:
        settings = TrainerSettings(
            learning_rate=1e-4, threads=1, full_step=16.0, full_agreement=0.08
        )
        trainer = PolicyTrainer(tiny_policy, settings)
        fixed, found = labels.get_state(), 0.0
        for number in range(8):
            if labels is TASTE:
                labels.set_state(fixed)
            thumbs = [
                replace(
                    thumb,
                    sample_id=f"{number}-{thumb.sample_id}",
                    desirable=bool(torch.rand(1, generator=labels) < 0.5),
                )
                for thumb in SampleMaker(0).thumbs(16)
            ]
            found = trainer.step({"kto": thumbs}).metrics["agreement"]
        return found

    assert agreement(TASTE) > 0.5
    assert abs(agreement(torch.Generator().manual_seed(2))) < 0.3
