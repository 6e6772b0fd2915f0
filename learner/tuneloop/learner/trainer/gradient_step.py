"""Gradient descent on a sum of losses, each given in micro-batches: one optimizer step or none."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from tuneloop.learner.losses.means import Mean, merge
from tuneloop.learner.trainer.base import StepResult
from tuneloop.learner.trainer.optimizer import Optimizer

MicroLoss = Callable[[], tuple[Tensor, dict[str, Mean]]]
"""Runs the model on one micro-batch; returns its share of the loss, with a graph, and metrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerm:
    """One loss of the sum."""

    name: str
    """Of its metric: `kto_loss`."""
    micro_losses: Sequence[MicroLoss]
    """They sum to the loss."""
    weight: float = 1.0


def accumulate_and_step(
    optimization: Optimizer,
    terms: Sequence[LossTerm],
    measured: Sequence[Mapping[str, Mean]] = (),
    *,
    evidence: float = 1.0,
    closes: bool = True,
) -> StepResult:
    """Take one optimizer step down the weighted sum of `terms`; see `Optimizer.step`.

    The step is skipped, and nothing changes, when a loss or a gradient is not finite, or a gradient
    is a spike. Each micro-batch's graph is freed before the next is built: memory is that of the
    largest.
    """
    optimization.zero_grad()
    losses: dict[str, float] = {}
    means = list(measured)
    for term in terms:
        losses[term.name] = 0.0
        for micro_loss in term.micro_losses:
            loss, metrics = micro_loss()
            losses[term.name] += float(loss.detach())
            if not math.isfinite(losses[term.name]):
                optimization.zero_grad()
                optimization.resume()
                return StepResult(metrics={}, skipped=True, reason="non_finite_loss")
            (term.weight * loss).backward()  # type: ignore[no-untyped-call]
            means.append(metrics)
    results = {
        **losses,
        "loss": sum(term.weight * losses[term.name] for term in terms),
        "learning_rate": optimization.learning_rate,
        **merge(means),
    }
    applied = optimization.step(kind="+".join(sorted(losses)), evidence=evidence, closes=closes)
    if applied.refusal != "non_finite_gradient":
        results["gradient_norm"] = applied.norm
    return StepResult(metrics=results, skipped=bool(applied.refusal), reason=applied.refusal)
