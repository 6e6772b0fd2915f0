"""Nothing is read from a GPU while passes are queued; shown on torch's device `meta`.

Its tensors have shapes and no values: whatever would wait for a GPU (`item`, `tolist`, `nonzero`, a
mask as an index, a branch on a tensor) is an error there.
"""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.policy_samples import SampleMaker, samples_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils

from tuneloop.learner.losses import means
from tuneloop.learner.models.policy import PolicyModel
from tuneloop.learner.objectives import grpo, off_policy, ppo
from tuneloop.learner.objectives.anchors import plan_anchors
from tuneloop.learner.objectives.base import Plan
from tuneloop.learner.samples import ScoredSample
from tuneloop.learner.trainer import gradient_step
from tuneloop.learner.trainer.adaptive import StepControls
from tuneloop.learner.trainer.algorithms import algorithms
from tuneloop.learner.trainer.gradient_step import LossTerm, accumulate_and_step
from tuneloop.learner.trainer.optimizer import Optimizer
from tuneloop.learner.trainer.settings import OptimizerSettings, TrainerSettings
from tuneloop.policies import WeightsKind

META = torch.device("meta")
OBJECTIVES = ["sft", "kto", "dpo", "sdft", "ppo", "grpo"]


@pytest.fixture
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast does not know the device."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The reads that plans of scored completions may have, once all their passes are queued."""
    done: list[str] = []

    def learned_from(parts: Sequence[off_policy.Rollouts]) -> list[ScoredSample]:
        done.append("gate")
        return [sample for rows in parts for sample in rows.samples]

    def completion_kl(parts: Sequence[off_policy.Rollouts]) -> Tensor:
        done.append("kl")
        return torch.zeros(sum(len(rows.samples) for rows in parts))

    for module in (ppo, grpo):
        monkeypatch.setattr(module, "learned_from", learned_from)
    monkeypatch.setattr(grpo, "_completion_kl", completion_kl)
    return done


def on_meta(folder: Path, kind: WeightsKind, *, packing: bool) -> PolicyModel:
    """A policy that was loaded on a CPU, then put on `meta`, its reference with it."""
    model = PolicyModel(folder, kind=kind, packing=packing)
    sample = SampleMaker(9).demonstrations(1)[0]
    model.compute_references([sample.sequence], token_budget=1024)
    for module in (model._model, model.value_head, model._reference):
        if module is not None:
            module.to(META)
    model.device = META
    return model


def run_passes(plan: Plan) -> None:
    """All passes of a plan with gradients."""
    assert len(plan.micro_losses) > 1
    for micro_loss in plan.micro_losses:
        loss, measured = micro_loss()
        assert loss.device == META
        loss.backward()  # type: ignore[no-untyped-call]
        assert measured


class Transfers(TorchDispatchMode):
    """Copies from main memory to the device that `send` did not make."""

    def __init__(self) -> None:
        super().__init__()
        self.sent, self.others = 0, list[str]()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), named: Any = None
    ) -> Any:
        named = named or {}
        if named.get("device") == META and args and getattr(args[0], "device", META) != META:
            frame, names = sys._getframe(1), list[str]()
            while frame is not None and len(names) < 8:
                names.append(frame.f_code.co_name)
                frame = frame.f_back  # type: ignore[assignment]
            if "send" in names:
                self.sent += 1
            else:
                self.others.append(" < ".join(names))
        return function(*args, **named)


@pytest.mark.usefixtures("no_autocast")
@pytest.mark.parametrize("kind", list(WeightsKind))
@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_pass_of_a_step_waits(
    tiny_policy: Path,
    reads: list[str],
    monkeypatch: pytest.MonkeyPatch,
    objective: str,
    packing: bool,
    kind: WeightsKind,
) -> None:
    if not packing:
        # Of padded rows transformers itself asks once a pass whether they are packed.
        monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda positions: None)
    model = on_meta(tiny_policy, kind, packing=packing)
    settings = TrainerSettings(
        kind=kind, token_budget=40, packing=packing, off_policy_mask_threshold=0.1
    )
    plan_of = algorithms[objective].load_plan()
    with Transfers() as transfers:
        plan = plan_of(model, samples_of(objective), settings, StepControls(kl_pull=0.1))
        assert reads == (["gate"] if objective in {"ppo", "grpo"} else [])
        run_passes(plan)
    assert transfers.sent > 0
    assert not transfers.others
    assert len(reads) <= 1


@pytest.mark.usefixtures("no_autocast")
@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ("kto", {"kto_z": "mismatched"}),
        ("ppo", {"whiten_rewards": True}),
        ("grpo", {"advantage_estimator": "rloo"}),
        ("grpo", {"importance_sampling": "sequence_mask"}),
        ("dpo", {"dpo_loss_type": "ipo"}),
    ],
)
def test_no_pass_of_a_variant_waits(
    tiny_policy: Path, reads: list[str], objective: str, options: dict[str, Any]
) -> None:
    model = on_meta(tiny_policy, WeightsKind.LORA, packing=True)
    settings = TrainerSettings(token_budget=40, **options)
    run_passes(
        algorithms[objective].load_plan()(model, samples_of(objective), settings, StepControls())
    )
    assert set(reads) <= {"gate", "kl"}
    assert len(reads) <= 2


@pytest.mark.usefixtures("no_autocast")
def test_anchors_do_not_wait(tiny_policy: Path) -> None:
    model = on_meta(tiny_policy, WeightsKind.LORA, packing=True)
    sequences = [sample.sequence for sample in SampleMaker(0).demonstrations(4)]
    with Transfers() as transfers:
        run_passes(plan_anchors(model, sequences, TrainerSettings(token_budget=20)))
    assert not transfers.others


@pytest.mark.usefixtures("no_autocast")
def test_what_waits_is_found(tiny_policy: Path) -> None:
    """The test above could fail."""
    model = on_meta(tiny_policy, WeightsKind.LORA, packing=True)
    with pytest.raises((RuntimeError, NotImplementedError)):
        algorithms["ppo"].load_plan()(model, samples_of("ppo"), TrainerSettings(), StepControls())


def test_losses_and_metrics_are_read_after_the_last_backward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    happened: list[str] = []

    def reading(scalars: Sequence[Tensor]) -> list[float]:
        happened.append(f"read {len(scalars)}")
        return read_numbers(scalars)

    read_numbers = means.read_numbers
    for module in (means, gradient_step):
        monkeypatch.setattr(module, "read_numbers", reading)
    weight = nn.Parameter(torch.ones(2))
    weight.register_hook(lambda _: happened.append("backward"))

    def micro_loss() -> tuple[Tensor, dict[str, means.Mean]]:
        loss = 3 * weight.sum()
        return loss, {"size": means.mean_over(weight, torch.tensor([True, False]))}

    result = accumulate_and_step(
        Optimizer([({"weight": weight}, 0.1)], OptimizerSettings(learning_rate=0.1)),
        [LossTerm(name="sft_loss", micro_losses=[micro_loss] * 3)],
    )
    assert happened == ["backward"] * 3 + ["read 3", "read 6"]
    assert result.metrics["sft_loss"] == pytest.approx(18.0)
    assert result.metrics["size"] == pytest.approx(1.0)
