"""A step says how much memory was needed, and what is done where there is not enough."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.policy_samples import SampleMaker

from tuneloop.learner.trainer.base import (
    StepResult,
    halved_token_budget,
    is_out_of_memory,
    peak_memory_bytes,
)
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.settings import TrainerSettings


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


def test_the_token_budget_is_halved_down_to_64_and_holds() -> None:
    assert [halved_token_budget(n) for n in (1024, 100, 64, 1)] == [512, 64, None, None]


def test_a_trainer_that_ran_out_of_memory_takes_the_same_step_in_smaller_pieces(
    tiny_policy: Path,
) -> None:
    trainer, whole = (PolicyTrainer(tiny_policy, TrainerSettings(threads=1)) for _ in range(2))
    halvings = 0
    while trainer.halve_token_budget():
        halvings += 1
    assert halvings == 4  # from 1024 on a CPU
    assert trainer._settings.tokens_at_once == 64
    samples = {"kto": SampleMaker().thumbs(8), "dpo": SampleMaker(1).pairs(4)}
    metrics, expected = trainer.step(samples).metrics, whole.step(samples).metrics
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-5)
