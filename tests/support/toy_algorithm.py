"""An algorithm as somebody would add it: this module, and one entry in the registry.

What users like becomes likelier and what they dislike less likely, a mean over thumbs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tuneloop.learner.losses.means import Mean, mean_over, total_of
from tuneloop.learner.models.batch import collate
from tuneloop.learner.models.policy import PolicyModel
from tuneloop.learner.objectives.base import Plan, cut
from tuneloop.learner.samples import Objective, ThumbSample
from tuneloop.learner.trainer.adaptive import StepControls
from tuneloop.learner.trainer.algorithms import Algorithm
from tuneloop.learner.trainer.gradient_step import MicroLoss
from tuneloop.learner.trainer.settings import TrainerSettings

TOY = Algorithm(objective=Objective.KTO, plan="support.toy_algorithm:plan_toy")
"""The line in the registry."""


def plan_toy(
    model: PolicyModel,
    samples: Sequence[ThumbSample],
    settings: TrainerSettings,
    controls: StepControls,
) -> Plan:
    total = total_of(sample.weight for sample in samples)
    return Plan(
        micro_losses=[micro_loss(model, group, total) for group in cut(samples, settings)],
        tokens=sum(len(sample.sequence.completion_token_ids) for sample in samples),
    )


def micro_loss(model: PolicyModel, samples: Sequence[ThumbSample], total: float) -> MicroLoss:
    batch = collate([sample.sequence for sample in samples], model.device)
    signs = torch.tensor([1.0 if sample.desirable else -1.0 for sample in samples])
    weights = torch.tensor([sample.weight * sample.trust for sample in samples])

    def run() -> tuple[Tensor, dict[str, Mean]]:
        likings = signs * model.logprobs(batch).sum(-1)
        everything = torch.ones_like(likings, dtype=torch.bool)
        return -(weights * likings).sum() / total, {"toy_liking": mean_over(likings, everything)}

    return run
