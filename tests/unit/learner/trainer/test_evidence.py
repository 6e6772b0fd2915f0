"""The policy moves as far as people have said: in proportion to judgements and to trust."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.policy_samples import SampleMaker
from torch import Tensor

from tuneloop.learner.trainer.adaptive import StepControls
from tuneloop.learner.trainer.algorithms import algorithms
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.settings import TrainerSettings
from tuneloop.policies import WeightsKind

OBJECTIVES = ("kto", "dpo", "sft", "sdft")


def make_trainer(folder: Path, **options: Any) -> PolicyTrainer:
    given = {"learning_rate": 1e-3, "threads": 1, "full_step": 16.0, **options}
    return PolicyTrainer(folder, TrainerSettings(**given))


def judged(objective: str, count: int, seed: int, trust: float = 1.0) -> list[Any]:
    maker = SampleMaker(seed)
    makers: dict[str, Any] = {
        "kto": maker.thumbs,
        "dpo": maker.pairs,
        "sft": maker.demonstrations,
        "sdft": maker.comments,
    }
    made = makers[objective](count)
    return [replace(sample, sample_id=f"{seed}-{sample.sample_id}", trust=trust) for sample in made]


def tensors(trainer: PolicyTrainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.parameters().items()}


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return float(torch.stack([(a[name] - b[name]).square().sum() for name in a]).sum().sqrt())


@pytest.mark.parametrize("honest_steps", [0, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("trust", [0.25, 0.05])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_batch_moves_the_policy_in_proportion_to_its_trust(
    tiny_policy: Path, objective: str, trust: float, honest_steps: int
) -> None:
    moved = {}
    for given in (1.0, trust):
        trainer = make_trainer(tiny_policy)
        for step in range(honest_steps):
            trainer.step({objective: judged(objective, 16, seed=step)})
        before = tensors(trainer)
        trainer.step({objective: judged(objective, 16, seed=1000, trust=given)})
        moved[given] = distance(tensors(trainer), before)
    assert moved[trust] == pytest.approx(trust * moved[1.0], rel=0.1)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_pull_weighs_what_the_judgements_beside_it_weigh(
    tiny_policy: Path, objective: str
) -> None:
    """Half of a batch's trust is half of all its gradient, which is then divided by the trust."""
    trainer = make_trainer(tiny_policy)
    trainer.step({objective: judged(objective, 16, seed=0)})
    plan_of = algorithms[objective].load_plan()

    def gradients(trust: float, pull: float) -> dict[str, Tensor]:
        samples = judged(objective, 4, seed=1, trust=trust)
        controls = StepControls(kl_pull=pull)
        for micro_loss in plan_of(
            trainer.model, samples, TrainerSettings(kl_budget=1.0), controls
        ).micro_losses:
            micro_loss()[0].backward()  # type: ignore[no-untyped-call]
        parameters = trainer.model.parameters()
        found = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
        trainer.model.module.zero_grad()
        return found

    trusted, half = gradients(1.0, pull=5.0), gradients(0.5, pull=5.0)
    size = distance(trusted, {name: torch.zeros_like(value) for name, value in trusted.items()})
    assert distance(trusted, gradients(1.0, pull=0.0)) > 0.01 * size
    assert distance({name: 2 * value for name, value in half.items()}, trusted) < 1e-4 * size


@pytest.mark.parametrize("objective", ["dpo", "sft"])
def test_judgements_one_by_one_end_where_a_full_batch_does(
    tiny_policy: Path, objective: str
) -> None:
    samples = [judged(objective, 4, seed=seed) for seed in range(2)]
    if objective == "sft":
        # The mean is over tokens: answers of one length weigh the same alone and together.
        samples = [
            [replace(s, sequence=SampleMaker(7).sequence()) for s in batch] for batch in samples
        ]
    together, alone = (make_trainer(tiny_policy, full_step=4.0) for _ in range(2))
    for batch in samples:
        together.step({objective: batch})
        for sample in batch:
            alone.step({objective: [sample]})
    assert distance(tensors(alone), tensors(together)) < 1e-3 * distance(
        tensors(together), tensors(make_trainer(tiny_policy))
    )


def test_a_single_judgement_takes_a_sixteenth_of_a_step(tiny_policy: Path) -> None:
    full, small = make_trainer(tiny_policy, full_step=1.0), make_trainer(tiny_policy)
    start = tensors(full)
    for trainer in (full, small):
        trainer.step({"dpo": judged("dpo", 1, seed=0)})
    whole = distance(tensors(full), start)
    assert distance(tensors(small), start) == pytest.approx(whole / 16, rel=0.01)


def test_rates_are_per_objective(tiny_policy: Path) -> None:
    full = make_trainer(tiny_policy)
    slow = make_trainer(tiny_policy, objective_weights={"dpo": 0.5})
    start = tensors(full)
    for trainer in (full, slow):
        trainer.step({"dpo": judged("dpo", 16, seed=0)})
    whole = distance(tensors(full), start)
    assert distance(tensors(slow), start) == pytest.approx(whole / 2, rel=0.01)


def test_an_open_batch_survives_a_checkpoint(tiny_policy: Path, tmp_path: Path) -> None:
    going, resumed = make_trainer(tiny_policy), make_trainer(tiny_policy)
    going.step({"dpo": judged("dpo", 16, seed=0)})
    going.step({"dpo": judged("dpo", 5, seed=1)})
    going.stage_checkpoint({})(tmp_path / "checkpoint")
    resumed.load_checkpoint(tmp_path / "checkpoint")
    assert distance(tensors(resumed), tensors(going)) < 1e-6
    for trainer in (going, resumed):
        trainer.step({"dpo": judged("dpo", 11, seed=2)})
    assert distance(tensors(resumed), tensors(going)) < 1e-6


def test_a_refused_gradient_leaves_an_open_batch_as_it_was(tiny_policy: Path) -> None:
    trainer = make_trainer(tiny_policy)
    trainer.step({"dpo": judged("dpo", 5, seed=1)})
    before = tensors(trainer)
    head = trainer.model.module.get_output_embeddings()
    kept = head.weight.detach().clone()
    with torch.no_grad():
        head.weight[:] = float("inf")
    assert trainer.step({"dpo": judged("dpo", 5, seed=2)}).skipped
    with torch.no_grad():
        head.weight.copy_(kept)
    assert distance(tensors(trainer), before) < 1e-6


def test_a_batch_that_nobody_trusts_moves_nothing(tiny_policy: Path) -> None:
    trainer = make_trainer(tiny_policy)
    trainer.step({"dpo": judged("dpo", 16, seed=0)})
    before = tensors(trainer)
    result = trainer.step({"dpo": judged("dpo", 16, seed=1, trust=0.0)})
    assert result.skipped
    assert result.reason == "no_evidence"
    assert distance(tensors(trainer), before) == 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_temperature_of_a_request_does_not_weigh(tiny_policy: Path, objective: str) -> None:
    def at(temperature: float) -> list[Any]:
        def cooled(sequence: Any) -> Any:
            return replace(sequence, temperature=temperature)

        return [
            replace(s, chosen=cooled(s.chosen), rejected=cooled(s.rejected))
            if objective == "dpo"
            else replace(s, sequence=cooled(s.sequence))
            for s in judged(objective, 4, seed=0)
        ]

    norms = [
        make_trainer(tiny_policy).step({objective: at(temperature)}).metrics["gradient_norm"]
        for temperature in (1.0, 0.02)
    ]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(WeightsKind))
def test_anchors_hold_the_policy_where_nobody_judged(tiny_policy: Path, kind: WeightsKind) -> None:
    moved = []
    for weight in (1e-9, 10.0):
        trainer = make_trainer(tiny_policy, kind=kind, anchor_weight=weight, anchor_batch=99)
        for step in range(8):
            metrics = trainer.step({"sft": judged("sft", 16, seed=step)}).metrics
        moved.append(metrics["anchor_kl"])
    assert 0 < moved[1] < 0.5 * moved[0]
