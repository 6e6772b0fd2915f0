"""A step says how much memory was needed, and what is done where there is not enough."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.policy_samples import SampleMaker

from tuneloop.learner.models import memory
from tuneloop.learner.models.batch import SequenceBatch
from tuneloop.learner.models.forward import ForwardOutput
from tuneloop.learner.models.memory import halved_token_budget, is_out_of_memory
from tuneloop.learner.models.world import World
from tuneloop.learner.samples import LabelledText
from tuneloop.learner.trainer.base import StepResult, peak_memory_bytes
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.reward_model import RewardTrainer
from tuneloop.learner.trainer.settings import RewardTrainerSettings, TrainerSettings
from tuneloop.models.reward_model import Encoding


def test_the_peak_is_in_bytes_and_at_least_what_the_kernel_counts() -> None:
    held = bytearray(b"x") * 50_000_000
    counted = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert counted is not None
    # The kernel keeps its counts a little behind.
    assert 0.9 * int(counted[1]) * 1024 < peak_memory_bytes() < 1 << 40
    assert len(held) < peak_memory_bytes()


def test_a_result_keeps_the_peak_of_its_step_and_is_not_told_apart_by_it() -> None:
    result = StepResult(metrics={"loss": 1.0})
    assert 10_000_000 < result.peak_memory_bytes <= peak_memory_bytes()
    assert replace(result, peak_memory_bytes=0) == result
    assert replace(result, skipped=True).peak_memory_bytes == result.peak_memory_bytes


def test_running_out_of_memory_is_known_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))


def test_the_token_budget_is_halved_down_to_64() -> None:
    assert [halved_token_budget(n) for n in (1024, 100, 64, 1)] == [512, 64, None, None]


def test_a_step_that_ran_out_of_memory_is_taken_again_in_smaller_passes(
    tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, whole = (PolicyTrainer(tiny_policy, TrainerSettings(threads=1)) for _ in range(2))
    passes = run_out_above(monkeypatch, trainer, tokens=100)
    samples = {"kto": SampleMaker().thumbs(40), "dpo": SampleMaker(1).pairs(20)}
    result, expected = trainer.step(samples), whole.step(samples)
    assert passes[0] > 100 >= max(passes[-3:])
    assert trainer.token_budget == 64
    assert result.metrics["loss"] == pytest.approx(expected.metrics["loss"], rel=1e-5)
    after, as_expected = trainer.state().model, whole.state().model
    assert all(torch.allclose(after[n], as_expected[n], atol=1e-6) for n in after)
    # Remembered: the next step does not run into it again.
    passes.clear()
    trainer.step(samples)
    assert max(passes) <= 100


def run_out_above(
    monkeypatch: pytest.MonkeyPatch, trainer: PolicyTrainer, tokens: int
) -> list[int]:
    """Passes of more tokens fail as on a GPU, after their work; returns the tokens of all."""
    passes: list[int] = []
    forward = trainer.model._forward.forward

    def run(batch: SequenceBatch, **options: bool) -> ForwardOutput:
        passes.append(batch.packed.input_ids.numel())
        output = forward(batch, **options)
        if passes[-1] > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return output

    monkeypatch.setattr(trainer.model._forward, "forward", run)
    return passes


def test_what_does_not_fit_alone_says_so_and_changes_neither_budget_nor_weights(
    tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = PolicyTrainer(tiny_policy, TrainerSettings(threads=1))
    before = trainer.state()
    run_out_above(monkeypatch, trainer, tokens=0)
    monkeypatch.setattr(memory, "free_device_bytes", lambda: (3 << 29, 4 << 30))
    with pytest.raises(MemoryError) as caught:
        trainer.step({"kto": SampleMaker().thumbs(4)})
    said = str(caught.value)
    for part in ("1.5 of 4.0 GiB free", "1024 down to 64", "gradient_checkpointing", "2.00 GiB"):
        assert part in said
    assert is_out_of_memory(caught.value)
    assert trainer.token_budget == 1024
    assert all(torch.equal(trainer.state().model[n], t) for n, t in before.model.items())


def test_reference_passes_run_out_of_memory_alike(
    tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = PolicyTrainer(tiny_policy, TrainerSettings(threads=1))
    sequences = [sample.sequence for sample in SampleMaker().thumbs(40)]
    expected = trainer.reference_logprobs(sequences)
    run_out_above(monkeypatch, trainer, tokens=100)
    found = trainer.reference_logprobs(sequences)
    assert all(f == pytest.approx(e, abs=1e-5) for f, e in zip(found, expected, strict=True))


def test_memory_that_runs_out_in_a_later_epoch_leaves_the_step_taken_once(
    tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken again from the start, its first epoch would count twice."""
    given = {"ppo": SampleMaker().scored(6)}
    once = PolicyTrainer(tiny_policy, TrainerSettings(threads=1))
    twice = PolicyTrainer(tiny_policy, TrainerSettings(threads=1, ppo_epochs=2))
    apply = twice._optimizer.step

    def step(*args: object, **options: object) -> object:
        if twice.optimizer_steps == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return apply(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(twice._optimizer, "step", step)
    once.step(given)
    assert not twice.step(given).skipped
    assert (once.optimizer_steps, twice.optimizer_steps) == (1, 1)
    assert twice.token_budget == 512
    after, expected = twice.state().model, once.state().model
    assert all(torch.allclose(after[n], expected[n], atol=1e-7) for n in after)


def test_a_reward_model_takes_smaller_passes_too(
    tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = RewardTrainer(tiny_policy, RewardTrainerSettings(threads=1))
    scores = trainer._scores.of
    sizes: list[int] = []

    def of(samples: list[tuple[Encoding, ...]]) -> torch.Tensor:
        sizes.append(len(samples))
        if len(samples) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return scores(samples)

    monkeypatch.setattr(trainer._scores, "of", of)
    texts = [
        # Texts that begin alike would be computed once.
        LabelledText(sample_id=f"t{n}", prompt=f"{n}", completion="bcd " * 40, desirable=n % 2 == 0)
        for n in range(8)
    ]
    assert not trainer.step({"reward_model": texts}).skipped
    assert sizes[0] > 2 >= sizes[-1]
    assert trainer.token_budget < 2048


def test_ranks_that_are_started_again_remember(tiny_policy: Path) -> None:
    """With several ranks the others wait in a collective call: all start again, with less."""
    fresh = PolicyTrainer(tiny_policy, TrainerSettings(threads=1))
    again = PolicyTrainer(tiny_policy, TrainerSettings(threads=1), World(shortages=2))
    assert (fresh.token_budget, again.token_budget) == (1024, 256)
