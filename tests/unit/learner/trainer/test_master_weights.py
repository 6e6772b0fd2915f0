"""Weights in bfloat16 whose steps add up in float32: by hand, and on a tiny model as on a GPU."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.policy_samples import SampleMaker
from torch import nn

from tuneloop.learner.models import policy
from tuneloop.learner.models.batch import collate
from tuneloop.learner.models.world import ALONE
from tuneloop.learner.trainer import checkpoint
from tuneloop.learner.trainer.master_weights import MasterWeights
from tuneloop.learner.trainer.optimizer import Optimizer
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.settings import OptimizerSettings, TrainerSettings
from tuneloop.policies import WeightsKind

SETTINGS = TrainerSettings(kind=WeightsKind.FULL, learning_rate=1e-5, threads=1)


def half(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.bfloat16))


def test_steps_below_a_bfloat16_add_up() -> None:
    """Of a weight of 1 the next bfloat16 above is 1 + 1/128; below it is 1 - 1/256."""
    weight = half(1.0)
    # At the first steps of a constant gradient Adam moves a weight by the rate: 1e-4 of it.
    optimizer = Optimizer([({"w": weight}, 1e-4)], OptimizerSettings(learning_rate=1e-4))
    lost = weight.detach().clone()
    seen = []
    for _ in range(100):
        weight.grad = torch.tensor([1.0])
        optimizer.step()
        lost -= 1e-4
        seen.append(float(weight.detach()))
    assert float(optimizer.state().model["w"]) == pytest.approx(0.99, abs=1e-5)
    # 0.99 lies between 253/256 and 254/256, nearer to the first.
    assert seen[-1] == 253 / 256
    # The first step to be seen is that past the middle of 1 and 255/256, at 1 - 1/512.
    assert seen.index(255 / 256) + 1 == 20
    assert float(lost) == 1.0


def test_gradients_too_small_for_the_sum_add_up() -> None:
    """256 + 1 is 256 in bfloat16, however often 1 is added."""
    weight = half(1.0)
    masters = MasterWeights({"w": weight})
    for gradient in (256.0, *[1.0] * 100):
        (weight * gradient).sum().backward()
    masters.take_gradients()
    assert weight.grad is None
    assert masters.tensors["w"].grad is not None
    assert float(masters.tensors["w"].grad) == 356.0


def test_only_what_is_in_half_precision_has_a_master() -> None:
    whole, narrow = nn.Parameter(torch.ones(2)), half(1.0, 2.0)
    masters = MasterWeights({"whole": whole, "narrow": narrow})
    assert masters.tensors["whole"] is whole
    assert masters.tensors["narrow"].dtype == torch.float32
    masters.put({"whole": torch.zeros(2), "narrow": torch.tensor([1.001, 2.0])})
    assert masters.tensors["narrow"].tolist() == pytest.approx([1.001, 2.0], abs=1e-7)
    assert narrow.tolist() == [1.0, 2.0]
    assert whole.tolist() == [0.0, 0.0]
    masters.reset()
    assert masters.tensors["narrow"].tolist() == [1.0, 2.0]
    assert masters.finite(ALONE)
    # The largest float32 is nearer to what would be 2 to the 128th than to a bfloat16.
    masters.put({"whole": torch.zeros(2), "narrow": torch.tensor([torch.finfo().max, 0.0])})
    assert not masters.finite(ALONE)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setattr(policy, "HALF_ON", {"cpu"})
        yield


def samples(seed: int) -> dict[str, Any]:
    maker = SampleMaker(seed)
    return {"kto": maker.thumbs(4), "dpo": maker.pairs(2)}


def moved(trainer: PolicyTrainer, start: dict[str, torch.Tensor]) -> torch.Tensor:
    model = trainer.state().model
    return torch.cat([(model[name] - start[name]).flatten() for name in start])


def test_twenty_steps_follow_those_in_float32(
    tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = PolicyTrainer(tiny_policy, SETTINGS)
    monkeypatch.setattr(policy, "HALF_ON", {"cpu"})
    narrow = PolicyTrainer(tiny_policy, SETTINGS)
    names = narrow.model.parameters()
    assert {p.dtype for p in names.values()} == {torch.bfloat16}
    starts = [dict(t.state().model) for t in (single, narrow)]
    losses = [[t.step(samples(n)).metrics["loss"] for n in range(20)] for t in (single, narrow)]
    assert losses[1] == pytest.approx(losses[0], rel=0.005)
    moves = [moved(t, start) for t, start in zip((single, narrow), starts, strict=True)]
    assert torch.cosine_similarity(*moves, dim=0) > 0.99
    assert float(moves[1].norm() / moves[0].norm()) == pytest.approx(1, abs=0.01)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_without_masters_most_of_those_steps_would_be_lost(tiny_policy: Path) -> None:
    trainer = PolicyTrainer(tiny_policy, SETTINGS)
    start = {name: p.detach().clone() for name, p in trainer.model.parameters().items()}
    trainer.step(samples(0))
    kept = trainer.state().model
    changed = {name: (kept[name] != start[name].float()) for name in start}
    seen = {name: (p.detach() != start[name]) for name, p in trainer.model.parameters().items()}
    # One step at 1e-5 moves nearly every master, and few of the weights that it is rounded to.
    total = sum(tensor.numel() for tensor in start.values())
    assert sum(int(c.sum()) for c in changed.values()) > 0.9 * total
    assert sum(int(s.sum()) for s in seen.values()) < 0.2 * total
    for name, parameter in trainer.model.parameters().items():
        assert torch.equal(parameter.detach(), kept[name].bfloat16())


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("full_step", [None, 12.0])
def test_a_checkpoint_continues_bit_for_bit(
    tiny_policy: Path, tmp_path: Path, full_step: float | None
) -> None:
    """With a full step of 12 judgements the batch of 4 thumbs and 2 pairs is open."""
    settings = replace(SETTINGS, full_step=full_step)
    straight, first, second = (PolicyTrainer(tiny_policy, settings) for _ in range(3))
    for seed in range(4):
        straight.step(samples(seed))
    for seed in range(2):
        first.step(samples(seed))
    first.stage_checkpoint({})(tmp_path / "c")
    # Weights that would show if anything were kept of them.
    second.step(samples(9))
    second.load_checkpoint(tmp_path / "c")
    for seed in range(2, 4):
        second.step(samples(seed))
    assert_same(straight, second)
    stored = checkpoint.load(tmp_path / "c").folder / "policy"
    dtypes = {t.dtype for file in stored.glob("*.safetensors") for t in load_file(file).values()}
    assert dtypes == {torch.float32}


@pytest.mark.usefixtures("as_on_a_gpu")
def test_going_back_leaves_nothing_of_the_steps_since(tiny_policy: Path, tmp_path: Path) -> None:
    trainer, fresh = PolicyTrainer(tiny_policy, SETTINGS), PolicyTrainer(tiny_policy, SETTINGS)
    trainer.stage_checkpoint({"step": 0})(tmp_path / "beginning")
    for seed in range(3):
        trainer.step(samples(seed))
    trainer.load_checkpoint(tmp_path / "beginning")
    assert_same(trainer, fresh)
    for each in (trainer, fresh):
        each.step(samples(5))
    assert_same(trainer, fresh)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_version_that_is_loaded_replaces_the_masters(tiny_policy: Path, tmp_path: Path) -> None:
    trainer = PolicyTrainer(tiny_policy, SETTINGS)
    trainer.save_weights(tmp_path / "0")
    trainer.step(samples(0))
    trainer.load_weights(tmp_path / "0")
    version = load_file(tmp_path / "0" / "model.safetensors")
    for name, tensor in trainer.state().model.items():
        if name in version:
            assert torch.equal(tensor, version[name].float())
    trainer.step(samples(1))
    # Masters of before would have brought back the first step.
    other = PolicyTrainer(tiny_policy, SETTINGS)
    furthest = max(
        float((trainer.state().model[n] - other.state().model[n]).abs().max()) for n in version
    )
    assert furthest < 1.5e-5


@pytest.mark.usefixtures("as_on_a_gpu")
def test_policy_and_reference_begin_as_one(tiny_policy: Path) -> None:
    """A KL divergence of rounding alone would pull the policy from the first step on."""
    trainer = PolicyTrainer(tiny_policy, SETTINGS)
    sequences = [sample.sequence for sample in SampleMaker(0).thumbs(4)]
    batch = collate(sequences, torch.device("cpu"))
    assert torch.equal(
        trainer.model.logprobs(batch).detach(), trainer.model.reference_logprobs(batch)
    )


def assert_same(one: PolicyTrainer, other: PolicyTrainer) -> None:
    states = one.state(), other.state()
    for tensors in ((states[0].model, states[1].model), (states[0].optimizer, states[1].optimizer)):
        assert tensors[0].keys() == tensors[1].keys()
        assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    named = [trainer.model.parameters() for trainer in (one, other)]
    assert all(torch.equal(p, named[1][name]) for name, p in named[0].items())
