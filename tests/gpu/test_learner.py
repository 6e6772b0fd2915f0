"""The learner on an NVIDIA GPU: the same steps as on a CPU, within bfloat16.

`make test-gpu` runs these, and the contract suite of the engines, which use a GPU if there is one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.policy_samples import SampleMaker, samples_of

from tuneloop.learner.trainer.adaptive import StepControls
from tuneloop.learner.trainer.algorithms import algorithms
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.settings import TrainerSettings
from tuneloop.policies import WeightsKind

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no NVIDIA GPU here"),
]


def trainer_on(device: str, folder: Path, **options: Any) -> PolicyTrainer:
    return PolicyTrainer(folder, TrainerSettings(device=device, learning_rate=1e-3, **options))


@pytest.mark.parametrize("kind", list(WeightsKind))
@pytest.mark.parametrize("objective", ["sft", "kto", "dpo", "sdft", "ppo", "grpo"])
def test_a_step_is_that_of_a_cpu(tiny_policy: Path, objective: str, kind: WeightsKind) -> None:
    samples = {objective: samples_of(objective)}
    expected = trainer_on("cpu", tiny_policy, kind=kind, threads=1)
    found = trainer_on("cuda", tiny_policy, kind=kind)
    for _ in range(3):
        right, ours = expected.step(samples), found.step(samples)
        assert ours.skipped == right.skipped
        assert ours.metrics["loss"] == pytest.approx(right.metrics["loss"], rel=0.05, abs=0.02)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_steps_are_those_that_are_not(tiny_policy: Path, checkpointing: bool) -> None:
    samples = {"sft": samples_of("sft")}
    eager = trainer_on("cuda", tiny_policy, compile=False, gradient_checkpointing=checkpointing)
    compiled = trainer_on("cuda", tiny_policy, compile=True, gradient_checkpointing=checkpointing)
    for _ in range(3):
        right = eager.step(samples).metrics["loss"]
        assert compiled.step(samples).metrics["loss"] == pytest.approx(right, rel=0.02, abs=0.01)


@pytest.mark.parametrize("cap", [None, 30.0])
def test_the_kernel_of_the_heads_softmax_is_torch(cap: float | None) -> None:
    from tuneloop.learner.models.softmax.kernel import run_softmax, runs_on

    assert runs_on(torch.device("cuda"))
    torch.manual_seed(0)
    products = (20 * torch.randn(64, 50_257, device="cuda")).requires_grad_()
    targets = torch.randint(50_257, (64,), device="cuda")
    temperatures = torch.linspace(0.5, 1.5, 64, device="cuda")
    z = products if cap is None else cap * torch.tanh(products / cap)
    logprobs = torch.log_softmax(z / temperatures[:, None], -1)
    expected = logprobs.gather(1, targets[:, None])[:, 0]
    (pull,) = torch.autograd.grad(expected.sum(), products)
    chosen, normalizers, entropies, gradient = run_softmax(
        products.detach(),
        targets=targets,
        temperatures=temperatures,
        scale=1.0,
        cap=cap,
        gradient_dtype=torch.bfloat16,
    )
    assert torch.allclose(chosen - normalizers, expected, rtol=1e-4, atol=1e-4)
    right = -(logprobs.exp() * logprobs).sum(-1)
    assert torch.allclose(entropies, right, rtol=1e-3, atol=1e-3)
    assert gradient is not None
    assert torch.allclose(gradient.float(), pull, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("kind", list(WeightsKind))
def test_varlen_attention_is_flex_attention(tiny_policy: Path, kind: WeightsKind) -> None:
    from tuneloop.learner.models.attention import VARLEN

    flex = trainer_on("cuda", tiny_policy, kind=kind)
    varlen = trainer_on("cuda", tiny_policy, kind=kind, packed_attention="varlen")
    assert flex.model.packs
    assert varlen.model.text_config._attn_implementation == VARLEN
    for objective in ("sft", "grpo"):
        samples = {objective: samples_of(objective)}
        right = flex.step(samples).metrics["loss"]
        assert varlen.step(samples).metrics["loss"] == pytest.approx(right, rel=0.02, abs=0.01)


@pytest.mark.parametrize("attention", ["flex", "varlen"])
def test_no_pass_waits_for_the_gpu(tiny_policy: Path, attention: str) -> None:
    trainer = trainer_on("cuda", tiny_policy, packed_attention=attention)
    samples = samples_of("sft")
    trainer.step({"sft": samples})  # compiles, and asks the kernel whether it runs
    settings = TrainerSettings(device="cuda", token_budget=40)
    plan = algorithms["sft"].load_plan()(trainer.model, samples, settings, StepControls())
    torch.cuda.set_sync_debug_mode("error")
    try:
        for micro_loss in plan.micro_losses:
            micro_loss()[0].backward()  # type: ignore[no-untyped-call]
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Let torch have 256 MiB more than it holds."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    allowed = torch.cuda.memory_reserved() + 256 * 2**20
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("little_memory")
def test_a_step_that_does_not_fit_at_first_is_taken(tiny_policy: Path) -> None:
    trainer = trainer_on("cuda", tiny_policy, kind=WeightsKind.FULL, token_budget=1_000_000)
    maker = SampleMaker(0)
    many = [maker.demonstrations(64)[0] for _ in range(4096)]
    result = trainer.step({"sft": many})
    assert not result.skipped
