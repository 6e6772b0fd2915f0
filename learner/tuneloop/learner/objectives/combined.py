"""All objectives of a step at once: their plans, weighed and summed, to one optimizer step."""

import math
from collections.abc import Mapping
from dataclasses import replace

from tuneloop.learner.losses.means import merge
from tuneloop.learner.objectives.base import Plan
from tuneloop.learner.objectives.evidence import Shares
from tuneloop.learner.samples import SCORED_OBJECTIVES
from tuneloop.learner.trainer.base import StepResult
from tuneloop.learner.trainer.gradient_step import LossTerm, accumulate_and_step
from tuneloop.learner.trainer.optimizer import Optimizer
from tuneloop.learner.trainer.settings import TrainerSettings

Plans = Mapping[str, Plan]
"""By objective."""


def step_on_plans(
    optimizer: Optimizer,
    plans: Plans,
    held: Plan | None,
    shares: Shares,
    settings: TrainerSettings,
) -> StepResult:
    """Take one optimizer step on all plans, or none where `accumulate_and_step` refuses.

    `held` is the anchors' plan, `shares` what each objective's samples weigh.
    """
    measured = [metrics for plan in plans.values() for metrics in plan.metrics]
    evidence = math.fsum(shares[name] * plan.trusted for name, plan in plans.items())
    full_step = settings.full_step is not None
    terms = [
        LossTerm(
            name=f"{name}_loss",
            micro_losses=plan.micro_losses,
            weight=shares[name] / evidence if full_step and evidence > 0 else shares[name],
        )
        for name, plan in plans.items()
        if plan.micro_losses
    ]
    if not terms or (full_step and evidence <= 0):
        optimizer.resume()
        reason = "no_evidence" if terms else "no_spread"
        return StepResult(metrics=merge(measured), skipped=True, reason=reason)
    if held is not None:
        losses = held.micro_losses
        terms.append(
            LossTerm(name="anchor_loss", micro_losses=losses, weight=settings.anchor_weight)
        )
    result = accumulate_and_step(
        optimizer,
        terms,
        measured,
        evidence=evidence if full_step else 1.0,
        closes=not full_step or any(name in SCORED_OBJECTIVES for name in plans),
    )
    tokens = float(sum(plan.tokens for plan in plans.values()))
    figures = {"tokens": tokens, "evidence": min(1.0, evidence) if full_step else 1.0}
    return replace(result, metrics={**result.metrics, **figures})
