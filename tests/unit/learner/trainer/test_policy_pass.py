"""One pass gives the old policy's log-probs and the gradients: nothing is computed twice."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.policy_samples import SampleMaker
from torch import Tensor

from tuneloop.learner.models.batch import SequenceBatch
from tuneloop.learner.objectives import grpo
from tuneloop.learner.objectives.base import PolicyPass
from tuneloop.learner.samples import ScoredGroup
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.settings import TrainerSettings


def make_groups() -> list[ScoredGroup]:
    """Two prompts with four completions each: 40 tokens, prompts counted once."""
    groups = []
    for number in range(2):
        scored = SampleMaker(number).scored(4)
        prompt = scored[0].sequence.prompt_token_ids[:2]
        samples = tuple(
            replace(s, sequence=replace(s.sequence, prompt_token_ids=prompt)) for s in scored
        )
        groups.append(ScoredGroup(sample_id=f"group-{number}", samples=samples))
    return groups


def step(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[int, Any, Any]:
    """Passes of the policy, metrics and moments of a step on two groups."""
    trainer = PolicyTrainer(
        folder, TrainerSettings(threads=1, learning_rate=1e-3, beta_grpo=0.0, **options)
    )
    passes: list[SequenceBatch] = []
    logprobs = trainer.model.logprobs

    def counted(batch: SequenceBatch) -> Tensor:
        passes.append(batch)
        return logprobs(batch)

    monkeypatch.setattr(trainer.model, "logprobs", counted)
    result = trainer.step({"grpo": make_groups()})
    return len(passes), dict(result.metrics), trainer.state().optimizer


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"token_budget": 10_000}, 1),
        ({"token_budget": 10_000, "grpo_epochs": 3}, 3),
        # Two micro-batches: one is kept, the other computed again.
        ({"token_budget": 40}, 3),
    ],
)
def test_the_first_micro_batch_is_passed_once(
    tiny_policy: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], expected: int
) -> None:
    passes, metrics, moments = step(tiny_policy, monkeypatch, **options)
    assert passes == expected

    class Unkept(PolicyPass):
        def __init__(self, model: Any, batch: SequenceBatch, *, keep: bool) -> None:
            super().__init__(model, batch, keep=False)

    monkeypatch.setattr(grpo, "PolicyPass", Unkept)
    more, same_metrics, same_moments = step(tiny_policy, monkeypatch, **options)
    assert more == expected + 1
    assert same_metrics == metrics
    assert all(torch.equal(same_moments[name], moment) for name, moment in moments.items())
