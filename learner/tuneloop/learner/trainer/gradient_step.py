"""Gradient descent on a sum of losses, each given in micro-batches: one optimizer step or none."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from tuneloop.learner.losses.means import Mean, merge, read_numbers
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
    largest. Losses and metrics are read when all passes are queued: a GPU would come to a halt at
    each.
    """
    optimization.zero_grad()
    parts: list[tuple[str, Tensor]] = []
    means = list(measured)
    for term in terms:
        for micro_loss in term.micro_losses:
            loss, metrics = micro_loss()
            (term.weight * loss).backward()  # type: ignore[no-untyped-call]
            parts.append((term.name, loss.detach()))
            means.append(metrics)
    losses = {term.name: 0.0 for term in terms}
    for (name, _), value in zip(parts, read_numbers([part for _, part in parts]), strict=True):
        losses[name] += value
    if not all(map(math.isfinite, losses.values())):
        optimization.zero_grad()
        optimization.resume()
        return StepResult(metrics={}, skipped=True, reason="non_finite_loss")
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
