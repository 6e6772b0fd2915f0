"""The head's Triton kernel, on a CPU by Triton's interpreter: numbers, gradients, bytes moved.

Functions named `check_…` are tests of a process of their own: Triton interprets its kernels only if
it is told so before it is imported.
"""

import functools
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tuneloop.learner.models.lm_head import token_logprobs
from tuneloop.learner.models.softmax import logits
from tuneloop.learner.models.softmax.logits import LogitTransform

pytest.importorskip("triton")
from tuneloop.learner.models.softmax import kernel

CPU = torch.device("cpu")
TRANSFORMS = {
    "plain": LogitTransform(),
    "scaled": LogitTransform(scale=0.3),
    "capped": LogitTransform(cap=1.5),
    "scaled-and-capped": LogitTransform(scale=2.0, cap=1.5),
}
TOKENS, SIZE = 7, 5
FACTORS = torch.tensor([-1.0, 0.0, 0.5, 2.0, 0.0, 1.0, -0.3])
"""What a loss makes of each log-prob; 0 where it masks one."""


def test_the_kernel_by_tritons_interpreter() -> None:
    root = Path(__file__).parents[4]
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-o", "python_functions=check_*"],
        cwd=root,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]


def test_a_kernel_that_does_not_run_is_an_error_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing is interpreted here, and Triton has no driver for a CPU."""
    kernel.runs_on.cache_clear()
    with caplog.at_level(logging.ERROR):
        assert not kernel.runs_on(CPU)
    assert "the softmax of the LM head runs in torch" in caplog.text
    assert "TRITON_CACHE_DIR" in caplog.text


@pytest.fixture
def by_kernel(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The kernel instead of torch, in blocks of 8 logits."""
    monkeypatch.setattr(kernel, "BLOCK", 8)
    monkeypatch.setattr(logits, "softmax_kernel", lambda device: kernel.run_softmax)
    return monkeypatch


def make(vocabulary: int, dtype: torch.dtype, *, bias: bool = False) -> tuple[Tensor, nn.Linear]:
    torch.manual_seed(0)
    head = nn.Linear(SIZE, vocabulary, bias=bias).to(dtype)
    return torch.randn(TOKENS, SIZE).to(dtype).requires_grad_(), head


def run(
    hidden: Tensor, head: nn.Linear, transform: LogitTransform, *, chunk: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Log-probs, entropies, and gradients of what takes some."""
    with torch.autocast("cpu", torch.bfloat16, enabled=hidden.dtype == torch.bfloat16):
        logprobs, entropies = token_logprobs(
            hidden,
            head,
            targets=torch.arange(TOKENS) * 3 % len(head.weight),
            temperatures=torch.linspace(0.5, 1.5, TOKENS),
            transform=transform,
            entropies=True,
            chunk=chunk,
        )
    trained = [t for t in (hidden, head.weight, head.bias) if t is not None and t.requires_grad]
    return logprobs, entropies, list(torch.autograd.grad((FACTORS * logprobs).sum(), trained))


def check_numbers_computed_by_hand(by_kernel: pytest.MonkeyPatch) -> None:
    """Logits ±log 3 over 2: probabilities ¾ and ¼."""
    chosen, normalizers, entropies, gradient = kernel.run_softmax(
        torch.tensor([[math.log(3.0), -math.log(3.0)]]),
        targets=torch.tensor([1]),
        temperatures=torch.tensor([2.0]),
        scale=1.0,
        cap=None,
        factors=torch.tensor([4.0]),
        gradient_dtype=torch.float32,
    )
    assert (chosen - normalizers).item() == pytest.approx(math.log(1 / 4))
    assert entropies.item() == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert gradient is not None
    # 4 · (onehot − p) / 2
    assert gradient[0].tolist() == pytest.approx([-1.5, 1.5])


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("chunk", [3, 100])
@pytest.mark.parametrize("vocabulary", [5, 16, 19])
@pytest.mark.parametrize("name", TRANSFORMS)
def check_it_is_torch(
    request: pytest.FixtureRequest, name: str, vocabulary: int, chunk: int, frozen: bool
) -> None:
    hidden, head = make(vocabulary, torch.float32, bias=not frozen)
    head.requires_grad_(not frozen)
    expected = run(hidden, head, TRANSFORMS[name], chunk=chunk)
    request.getfixturevalue("by_kernel")
    found = run(hidden, head, TRANSFORMS[name], chunk=chunk)
    assert torch.allclose(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert torch.allclose(found[1], expected[1], rtol=1e-5, atol=1e-5)
    assert len(found[2]) == (1 if frozen else 3)
    for one, other in zip(found[2], expected[2], strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)
    assert found[2][0][1].abs().max() == 0


def check_the_gradient_of_a_plain_sum(request: pytest.FixtureRequest) -> None:
    """It comes as one number with a stride of 0."""
    hidden, head = make(19, torch.float32)
    found: list[Tensor] = []
    for fixture in (None, "by_kernel"):
        if fixture:
            request.getfixturevalue(fixture)
        logprobs, _ = token_logprobs(
            hidden,
            head,
            targets=torch.arange(TOKENS),
            temperatures=torch.ones(1).expand(TOKENS),
            transform=LogitTransform(),
            chunk=3,
        )
        found += torch.autograd.grad(logprobs.sum(), [head.weight])
    assert torch.allclose(found[0], found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["plain", "capped"])
def check_logits_of_bfloat16_factors_are_float32(
    request: pytest.FixtureRequest, name: str, frozen: bool
) -> None:
    hidden, head = make(19, torch.bfloat16)
    head.requires_grad_(not frozen)
    expected = run(hidden, head, TRANSFORMS[name], chunk=3)
    request.getfixturevalue("by_kernel")
    found = run(hidden, head, TRANSFORMS[name], chunk=3)
    assert found[0].dtype == torch.float32
    assert torch.allclose(found[0], expected[0], rtol=1e-5, atol=1e-5)
    for one, other in zip(found[2], expected[2], strict=True):
        assert one.dtype == torch.bfloat16
        assert torch.allclose(one.float(), other.float(), rtol=0.02, atol=0.01)


def check_logits_far_from_zero_neither_overflow_nor_vanish(by_kernel: pytest.MonkeyPatch) -> None:
    products = torch.tensor([[-5000.0] * 10 + [4000.0] * 3, [-5000.0] * 13])
    chosen, normalizers, entropies, gradient = kernel.run_softmax(
        products,
        targets=torch.tensor([12, 0]),
        temperatures=torch.tensor([1.0, 1.0]),
        scale=1.0,
        cap=None,
        gradient_dtype=torch.float32,
    )
    expected = [-math.log(3), -math.log(13)]
    assert (chosen - normalizers).tolist() == pytest.approx(expected, abs=1e-3)
    assert entropies.tolist() == pytest.approx([-x for x in expected], abs=1e-3)
    assert gradient is not None
    assert torch.allclose(gradient.sum(-1), torch.zeros(2), atol=1e-3)


class LogitBytes(TorchDispatchMode):
    """Bytes of tensors of the logits' size that operations read and write."""

    NOT_PASSES = ("aten.empty", "aten.gather", "aten.scatter_add", "aten.detach")

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.bytes = size, 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), named: Any = None
    ) -> Any:
        result = function(*args, **(named or {}))
        if not function.is_view and not str(function).startswith(self.NOT_PASSES):
            for tensor in (*args, *(result if isinstance(result, tuple) else (result,))):
                if isinstance(tensor, Tensor) and tensor.numel() == self.size:
                    self.bytes += tensor.numel() * tensor.element_size()
        return result


@pytest.mark.parametrize(("frozen", "by_torch", "most"), [(True, 52, 16), (False, 82, 22)])
def check_bytes_a_logit(
    request: pytest.FixtureRequest, frozen: bool, by_torch: int, most: int
) -> None:
    """Of every operation, and of every load and store of the kernel."""
    hidden, head = make(2048, torch.bfloat16)
    head.requires_grad_(not frozen)
    assert bytes_a_logit(hidden, head) == by_torch
    patch = request.getfixturevalue("by_kernel")
    patch.setattr(kernel, "BLOCK", 1024)
    patch.setattr(logits, "softmax_kernel", lambda device: run_uncounted)
    from triton.runtime.interpreter import interpreter_builder as builder

    moved: list[float] = []

    def counting(access: Callable[..., Any], pointers: Any, *rest: Any) -> Any:
        moved.append(pointers.data.size * pointers.get_element_ty().primitive_bitwidth / 8)
        return access(pointers, *rest)

    for name in ("create_masked_load", "create_masked_store"):
        patch.setattr(builder, name, functools.partial(counting, getattr(builder, name)))
    outside = bytes_a_logit(hidden, head)
    inside = sum(moved) / (TOKENS * 2048)
    if not frozen:
        # `bytes_a_logit` takes the gradient twice, and leaves out the first time.
        inside -= 4 + 2
    assert outside + inside == pytest.approx(most, abs=0.1)


def run_uncounted(*arguments: Any, **named: Any) -> Any:
    """The interpreter copies what it is given: that is not the kernel's."""
    with _disable_current_modes():
        return kernel.run_softmax(*arguments, **named)


def bytes_a_logit(hidden: Tensor, head: nn.Linear) -> float:
    """Of a forward pass, and a backward pass that finds nothing of it left."""
    with LogitBytes(TOKENS * len(head.weight)) as forward, torch.autocast("cpu", torch.bfloat16):
        logprobs, _ = token_logprobs(
            hidden,
            head,
            targets=torch.arange(TOKENS),
            temperatures=torch.linspace(0.5, 1.5, TOKENS),
            transform=LogitTransform(),
        )
    logprobs.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
    with LogitBytes(TOKENS * len(head.weight)) as backward:
        logprobs.sum().backward()  # type: ignore[no-untyped-call]
    return (forward.bytes + backward.bytes) / (TOKENS * len(head.weight))
