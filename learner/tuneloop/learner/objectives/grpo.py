"""GRPO and RLOO on groups of scored completions: advantages over each group, then the loss."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tuneloop.learner.losses.grpo import grpo_loss, rloo_loss
from tuneloop.learner.losses.means import Mean, mean_over, total_of
from tuneloop.learner.losses.ppo import importance_weights
from tuneloop.learner.models.batch import collate
from tuneloop.learner.models.packing import send
from tuneloop.learner.models.policy import PolicyModel
from tuneloop.learner.objectives.base import Plan, PolicyPass, cut, restrained
from tuneloop.learner.objectives.off_policy import Rollouts, learned_from, rollouts_of
from tuneloop.learner.samples import ScoredGroup, ScoredSample
from tuneloop.learner.trainer.adaptive import AT_REST, StepControls
from tuneloop.learner.trainer.advantages import group_advantages, leave_one_out_advantages
from tuneloop.learner.trainer.gradient_step import MicroLoss
from tuneloop.learner.trainer.rewards import priced_reward
from tuneloop.learner.trainer.settings import TrainerSettings

NO_ADVANTAGE = 1e-6
"""Where all advantages of a group are below this its rewards are the same: nothing to learn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A group, without the completions that could not be scored."""

    samples: Sequence[ScoredSample]
    rewards: Tensor  # (G,)
    baseline: float | None
    """From outside; None where the group has its own."""
    scale: float | None


@torch.no_grad()
def plan_grpo(
    model: PolicyModel,
    samples: Sequence[ScoredGroup],
    settings: TrainerSettings,
    controls: StepControls = AT_REST,
) -> Plan:
    """Plan GRPO, or RLOO, on a batch of groups.

    Those without spread are not computed, but counted: were the loss divided by the others alone,
    the last group that is not solved would move the policy as far as a full batch does. With
    `restrain_solved_groups` they are computed for their KL to the reference policy.
    """
    groups = [_group(group, settings, controls) for group in samples]
    has_spread = [
        bool((_advantages(g, g.rewards, settings).abs() > NO_ADVANTAGE).any()) for g in groups
    ]
    restrains = settings.restrain_solved_groups and settings.beta_grpo > 0
    taken = [spread or restrains for spread in has_spread]
    kept = [g for g, is_taken in zip(groups, taken, strict=True) if is_taken]
    without = [g for g, is_taken in zip(groups, taken, strict=True) if not is_taken]
    left_out = [sample for group in without for sample in group.samples]
    # Cutting changes the order: a completion is found again by its number.
    flat = [sample for group in kept for sample in group.samples]
    flat = [replace(sample, sample_id=str(number)) for number, sample in enumerate(flat)]
    measured = [
        _measure(model, part, settings, keep=number == 0)
        for number, part in enumerate(cut(flat, settings) if flat else [])
    ]
    rollouts = [rows for rows, _, _ in measured]
    penalties = torch.zeros(len(flat))
    if settings.advantage_estimator == "rloo" and settings.beta_grpo > 0 and rollouts:
        numbers = [number for rows in rollouts for number in _numbers(rows)]
        penalties[numbers] = settings.beta_grpo * _completion_kl(rollouts)
    advantages = torch.zeros(len(flat))
    start = 0
    for group in kept:
        of_group = slice(start, start + len(group.samples))
        rewards = group.rewards - penalties[of_group]
        advantages[of_group] = _advantages(group, rewards, settings)
        start = of_group.stop
    return Plan(
        micro_losses=_micro_losses(
            [(rows, policy) for rows, _, policy in measured],
            settings,
            controls,
            advantages=advantages,
            left_out=left_out,
        ),
        tokens=sum(rows.batch.tokens for rows in rollouts),
        metrics=[_group_metrics(groups, has_spread), *(metrics for _, metrics, _ in measured)],
    )


def _group(group: ScoredGroup, settings: TrainerSettings, controls: StepControls) -> Group:
    priced = [(sample, priced_reward(sample, settings)) for sample in group.samples]
    scored = [(sample, reward) for sample, reward in priced if not math.isnan(reward)]
    baseline, running = group.baseline, controls.grpo_rewards
    if baseline is not None:
        baseline -= group.cut_share * settings.missing_stop_penalty
    if baseline is None and len(scored) == 1 and running is not None:
        baseline = running.mean
    return Group(
        samples=[sample for sample, _ in scored],
        rewards=torch.tensor([reward for _, reward in scored]),
        baseline=baseline,
        scale=None if baseline is None or running is None else running.deviation,
    )


def _advantages(group: Group, rewards: Tensor, settings: TrainerSettings) -> Tensor:
    if settings.advantage_estimator == "rloo":
        return leave_one_out_advantages(rewards, baseline=group.baseline)
    by_spread = settings.scale_rewards == "group"
    advantages = group_advantages(
        rewards, baseline=group.baseline, scale=group.scale, by_spread=by_spread
    )
    if group.scale is None or not by_spread:
        return advantages
    # A scale from outside may be far too small for this prompt.
    return advantages.clamp(-settings.reward_clip, settings.reward_clip)


def _group_metrics(groups: Sequence[Group], has_spread: Sequence[bool]) -> dict[str, Mean]:
    spreads = torch.tensor([g.rewards.std() if len(g.rewards) > 1 else 0.0 for g in groups])
    several = torch.tensor([len(g.rewards) > 1 for g in groups])
    solved = 1.0 - torch.tensor(has_spread, dtype=torch.get_default_dtype())
    return {
        "reward_spread": mean_over(spreads, several),
        "skipped_groups": mean_over(solved, torch.ones_like(several)),
    }


def _measure(
    model: PolicyModel, samples: Sequence[ScoredSample], settings: TrainerSettings, *, keep: bool
) -> tuple[Rollouts, dict[str, Mean], PolicyPass]:
    batch = collate([s.sequence for s in samples], model.device)
    wanted = settings.beta_grpo > 0 or settings.kl_budget is not None
    known = batch.ref_logprobs is not None
    policy = PolicyPass(model, batch, keep=keep)
    rollouts, metrics = rollouts_of(
        samples,
        batch,
        settings,
        old_logprobs=policy.old_logprobs,
        ref_logprobs=model.reference_logprobs(batch) if wanted or known else None,
    )
    return rollouts, metrics, policy


def _completion_kl(rollouts: Sequence[Rollouts]) -> Tensor:
    """Return the k1 of all completions, (N,) on the CPU; one read."""
    parts: list[Tensor] = []
    for rows in rollouts:
        assert rows.ref_logprobs is not None
        parts.append((rows.old_logprobs - rows.ref_logprobs).sum(-1))
    return torch.cat(parts).cpu()


def _numbers(rows: Rollouts) -> list[int]:
    return [int(sample.sample_id) for sample in rows.samples]


def _micro_losses(
    parts: Sequence[tuple[Rollouts, PolicyPass]],
    settings: TrainerSettings,
    controls: StepControls,
    *,
    advantages: Tensor,
    left_out: Sequence[ScoredSample],
) -> list[MicroLoss]:
    counted = [*left_out, *learned_from([rows for rows, _ in parts])]
    lengths = [len(sample.sequence.completion_token_ids) for sample in counted]
    tokens = max(1, sum(lengths))
    by_sequence = settings.advantage_estimator == "rloo"
    actions = [1] * len(counted) if by_sequence else lengths
    total = total_of(s.weight * count for s, count in zip(counted, actions, strict=True))

    def micro_loss(rows: Rollouts, policy: PolicyPass) -> MicroLoss:
        of_rows = send(advantages[_numbers(rows)], rows.loss_mask.device)
        of_rows = of_rows.masked_fill(rows.is_far & (of_rows < 0), 0.0)

        def run() -> tuple[Tensor, dict[str, Mean]]:
            logprobs = policy.logprobs()
            estimate = _rloo if by_sequence else _grpo
            loss, metrics = estimate(rows, logprobs, of_rows, settings, total)
            return restrained(
                loss,
                metrics,
                batch=rows.batch,
                logprobs=logprobs,
                ref_logprobs=rows.ref_logprobs,
                controls=controls,
                total_tokens=tokens,
            )

        return run

    return [micro_loss(rows, policy) for rows, policy in parts]


def _grpo(
    rows: Rollouts, logprobs: Tensor, advantages: Tensor, settings: TrainerSettings, total: float
) -> tuple[Tensor, dict[str, Mean]]:
    return grpo_loss(
        policy_logprobs=logprobs,
        old_logprobs=rows.old_logprobs,
        ref_logprobs=rows.ref_logprobs,
        advantages=advantages,
        weights=rows.weights,
        loss_mask=rows.loss_mask,
        epsilon=settings.epsilon,
        epsilon_high=settings.epsilon_high,
        dual_clip=settings.dual_clip,
        beta=settings.beta_grpo,
        estimator=settings.grpo_kl,
        total_weight=total,
    )


def _rloo(
    rows: Rollouts, logprobs: Tensor, advantages: Tensor, settings: TrainerSettings, total: float
) -> tuple[Tensor, dict[str, Mean]]:
    old_logps = rows.old_logprobs.sum(-1)
    kept = rows.loss_mask.any(-1)
    # One action is one sequence: its importance weight is that of the whole of it.
    generation_logps = rows.generation_logprobs.where(rows.batch.loss_mask, 0.0).sum(-1)
    importance = importance_weights(
        old_logprobs=old_logps.unsqueeze(-1),
        generation_logprobs=generation_logps.unsqueeze(-1),
        loss_mask=kept.unsqueeze(-1),
        cap=settings.importance_cap,
        kind=settings.importance_sampling,
    ).squeeze(-1)
    weights = send(torch.tensor([s.weight * s.trust for s in rows.samples]), logprobs.device)
    return rloo_loss(
        policy_logps=logprobs.sum(-1),
        old_logps=old_logps,
        advantages=advantages,
        weights=importance * weights * kept,
        epsilon=settings.epsilon,
        epsilon_high=settings.epsilon_high,
        dual_clip=settings.dual_clip,
        total_weight=total,
    )
