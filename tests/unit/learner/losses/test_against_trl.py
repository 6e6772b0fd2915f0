"""Every loss and its gradient against TRL's own code, fed the same log-probs in float64."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support import trl_reference
from support.trl_reference import lengths_mask, random_logprobs
from torch import Tensor

from tuneloop.learner.losses.dpo import DpoLossType, dpo_loss
from tuneloop.learner.losses.grpo import grpo_loss, rloo_loss
from tuneloop.learner.losses.kto import kto_loss, reference_point
from tuneloop.learner.losses.ppo import importance_weights
from tuneloop.learner.losses.sft import sft_loss
from tuneloop.learner.trainer.advantages import group_advantages, leave_one_out_advantages

EXACT = {"rtol": 0.0, "atol": 1e-9}


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    """TRL makes some tensors in the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def agree(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], at: Tensor) -> None:
    """Value and gradient are the same, and the gradient is not nothing."""
    gradients, values = [], []
    for loss in (ours, theirs):
        leaf = at.clone().requires_grad_()
        value = loss(leaf)
        value.backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        gradients.append(leaf.grad)
        values.append(value.detach())
    torch.testing.assert_close(*values, **EXACT)
    torch.testing.assert_close(*gradients, **EXACT)
    assert gradients[0].abs().max() > 1e-4


def test_sft() -> None:
    mask = lengths_mask([5, 2, 7])
    logprobs = random_logprobs(mask, 0)

    def ours(policy: Tensor) -> Tensor:
        return sft_loss(
            policy_logprobs=policy, weights=torch.ones(3), loss_mask=mask, total_weight=20
        )[0]

    # TRL's model gives 0 where masked; 20 tokens of which these 14 are one micro-batch.
    agree(ours, lambda policy: trl_reference.sft(policy * mask, mask, 20), logprobs)


@pytest.mark.parametrize("flip_rate", [0.0, 0.15])
@pytest.mark.parametrize("loss_type", ["sigmoid", "sigmoid_norm", "ipo", "robust"])
def test_dpo(loss_type: DpoLossType, flip_rate: float) -> None:
    # `robust` is TRL's up to the margin where its second term ends.
    beta = 0.05 if loss_type == "robust" else 0.3
    mask = lengths_mask([5, 2, 7, 3, 6, 1])
    logprobs, ref = random_logprobs(mask, 0), random_logprobs(mask, 1)
    ref_chosen, ref_rejected = ref.sum(-1).chunk(2)
    chosen_lengths, rejected_lengths = mask.sum(-1).chunk(2)

    def ours(policy: Tensor) -> Tensor:
        chosen, rejected = (policy * mask).sum(-1).chunk(2)
        return dpo_loss(
            policy_chosen_logps=chosen,
            policy_rejected_logps=rejected,
            ref_chosen_logps=ref_chosen,
            ref_rejected_logps=ref_rejected,
            chosen_lengths=chosen_lengths,
            rejected_lengths=rejected_lengths,
            flip_rates=torch.full((3,), flip_rate),
            weights=torch.ones(3),
            beta=beta,
            loss_type=loss_type,
            total_weight=3,
        )[0]

    def theirs(policy: Tensor) -> Tensor:
        return trl_reference.dpo(
            policy * mask, mask, ref, loss_type=loss_type, beta=beta, label_smoothing=flip_rate
        )

    agree(ours, theirs, logprobs)


@pytest.mark.parametrize("mismatch", [False, True])
@pytest.mark.parametrize("thumbs", [[True, False, False, True], [True] * 4, [False] * 4])
def test_kto(thumbs: list[bool], mismatch: bool) -> None:
    mask = lengths_mask([5, 2, 7, 3])
    logprobs, ref = random_logprobs(mask, 0), random_logprobs(mask, 1)
    mismatched = (0.5 * random_logprobs(mask, 2), random_logprobs(mask, 3))
    desirable = torch.tensor(thumbs)
    z = reference_point((mismatched[0] - mismatched[1]).sum(-1)) if mismatch else torch.zeros(())
    assert (float(z) > 0) is mismatch

    def ours(policy: Tensor) -> Tensor:
        return kto_loss(
            policy_logps=(policy * mask).sum(-1),
            ref_logps=ref.sum(-1),
            desirable=desirable,
            weights=torch.where(desirable, 1.5, 0.8),
            z=z,
            beta=0.2,
            total_weight=4,
        )[0]

    def theirs(policy: Tensor) -> Tensor:
        return trl_reference.kto(
            policy * mask,
            mask,
            ref,
            mismatched=mismatched if mismatch else None,
            desirable=desirable,
            beta=0.2,
            weights=(1.5, 0.8),
        )

    agree(ours, theirs, logprobs)


GROUPED = lengths_mask([5, 2, 7, 3, 6, 1])
OLD = random_logprobs(GROUPED, 0)
MOVED = random_logprobs(GROUPED, 1, near=OLD)
GENERATION = random_logprobs(GROUPED, 2, near=OLD)
REFERENCE = random_logprobs(GROUPED, 3, near=OLD)
REWARDS = [0.3, -1.0, 2.0, 0.5, 0.4, 0.1]
UNSCORED = [0.3, -1.0, 2.0, 0.5, float("nan"), 0.1]


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.0},
        {"beta": 0.0, "delta": 1.5},
        {"beta": 0.0, "scale_rewards": "none"},
        {"beta": 0.0, "loss_type": "dr_grpo", "scale_rewards": "none", "max_completion_length": 9},
        {"beta": 0.0, "loss_type": "bnpo"},
        {"beta": 0.1},
        {"beta": 0.1, "scored": UNSCORED},
    ],
    ids=str,
)
def test_grpo(options: dict[str, Any]) -> None:
    scored = torch.tensor(options.pop("scored", REWARDS))
    beta = options["beta"]
    # TRL weighs the KL term only by the ratio to the old policy; so does ours if old sampled.
    generation = GENERATION if beta == 0 else OLD
    importance = importance_weights(
        old_logprobs=OLD, generation_logprobs=generation, loss_mask=GROUPED, cap=1.3
    )
    by_spread = options.get("scale_rewards") != "none"
    advantages = torch.cat([group_advantages(g, by_spread=by_spread) for g in scored.split(3)])
    total = int(GROUPED.sum())
    if options.get("loss_type") == "dr_grpo":
        total = 6 * options["max_completion_length"]

    def ours(policy: Tensor) -> Tensor:
        return grpo_loss(
            policy_logprobs=policy,
            old_logprobs=OLD,
            ref_logprobs=REFERENCE,
            advantages=advantages,
            weights=importance,
            loss_mask=GROUPED,
            epsilon=0.2,
            epsilon_high=0.28,
            dual_clip=options.get("delta"),
            beta=beta,
            estimator="k3",
            total_weight=total,
        )[0]

    def theirs(policy: Tensor) -> Tensor:
        loss, given = trl_reference.grpo(
            policy,
            GROUPED,
            old=OLD,
            generation=generation,
            reference=REFERENCE,
            rewards=scored,
            group_size=3,
            cap=1.3,
            **options,
        )
        torch.testing.assert_close(given, advantages, **EXACT)
        return loss

    agree(ours, theirs, MOVED)


@pytest.mark.parametrize("rewards", [REWARDS, UNSCORED])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_rloo(beta: float, rewards: list[float]) -> None:
    penalties = beta * ((OLD - REFERENCE) * GROUPED).sum(-1)
    scored = torch.tensor(rewards)
    advantages = torch.cat([leave_one_out_advantages(g) for g in (scored - penalties).split(3)])

    def ours(policy: Tensor) -> Tensor:
        return rloo_loss(
            policy_logps=(policy * GROUPED).sum(-1),
            old_logps=OLD.sum(-1),
            advantages=advantages,
            weights=torch.ones(6),
            epsilon=0.2,
            epsilon_high=0.28,
            dual_clip=None,
            total_weight=6,
        )[0]

    def theirs(policy: Tensor) -> Tensor:
        loss, given = trl_reference.rloo(
            policy,
            GROUPED,
            old=OLD,
            reference=REFERENCE,
            rewards=scored,
            group_size=3,
            beta=beta,
        )
        torch.testing.assert_close(given, advantages, **EXACT)
        return loss

    near = OLD + 0.02 * (MOVED - OLD)
    agree(ours, theirs, near)
