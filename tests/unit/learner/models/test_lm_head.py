"""Log-probs of tokens without a logits tensor: values, gradients, chunks, what is kept."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tuneloop.learner.models.lm_head import logprobs_of_logits, token_logprobs
from tuneloop.learner.models.softmax.logits import LogitTransform

TRANSFORMS = {
    "plain": LogitTransform(),
    "scaled": LogitTransform(scale=0.3),
    "capped": LogitTransform(cap=1.5),
    "scaled-and-capped": LogitTransform(scale=2.0, cap=1.5),
}


def make(tokens: int = 7, size: int = 5, vocabulary: int = 11, *, bias: bool = True) -> Any:
    torch.manual_seed(0)
    head = nn.Linear(size, vocabulary, bias=bias, dtype=torch.float64)
    hidden = torch.randn(tokens, size, dtype=torch.float64, requires_grad=True)
    wanted = {
        "targets": torch.randint(vocabulary, (tokens,)),
        "temperatures": torch.linspace(0.5, 1.5, tokens),
    }
    return hidden, head, wanted


def by_full_logits(
    hidden: Tensor,
    head: nn.Linear,
    transform: LogitTransform,
    *,
    targets: Tensor,
    temperatures: Tensor,
) -> tuple[Tensor, Tensor]:
    z = head(hidden) * transform.scale
    if transform.cap is not None:
        z = transform.cap * torch.tanh(z / transform.cap)
    logprobs = torch.log_softmax(z / temperatures.double()[:, None], -1)
    entropies = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(1, targets[:, None])[:, 0], entropies


def test_numbers_computed_by_hand() -> None:
    head = nn.Linear(1, 2, bias=False, dtype=torch.float64)
    head.weight.data = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    logprobs, entropies = token_logprobs(
        torch.tensor([[math.log(3.0)]], dtype=torch.float64),
        head,
        targets=torch.tensor([1]),
        temperatures=torch.tensor([2.0]),
        transform=LogitTransform(),
        entropies=True,
    )
    # Logits ±log 3 over 2: probabilities 3/4 and 1/4.
    assert logprobs.item() == pytest.approx(math.log(1 / 4))
    assert entropies.item() == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_values_and_gradients_are_those_of_the_full_logits(
    name: str, chunk: int, frozen: bool
) -> None:
    hidden, head, wanted = make()
    head.requires_grad_(not frozen)
    trained = [hidden] if frozen else [hidden, head.weight, head.bias]
    mine = token_logprobs(
        hidden, head, transform=TRANSFORMS[name], entropies=True, chunk=chunk, **wanted
    )
    full = by_full_logits(hidden, head, TRANSFORMS[name], **wanted)
    assert torch.allclose(mine[0], full[0], rtol=1e-12, atol=1e-12)
    assert torch.allclose(mine[1], full[1], rtol=1e-12, atol=1e-12)
    assert not mine[1].requires_grad
    weights = torch.linspace(-1, 2, len(hidden), dtype=torch.float64)
    found = torch.autograd.grad((mine[0] * weights).sum(), trained)
    expected = torch.autograd.grad((full[0] * weights).sum(), trained)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("frozen", [False, True])
def test_gradcheck(frozen: bool) -> None:
    hidden, head, wanted = make(tokens=3, size=2, vocabulary=4)
    transform = TRANSFORMS["scaled-and-capped"]

    def logprobs(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        made: Any = type("Head", (), {"weight": weight, "bias": bias})()
        return token_logprobs(hidden, made, transform=transform, chunk=2, **wanted)[0]

    head.requires_grad_(not frozen)
    assert torch.autograd.gradcheck(logprobs, (hidden, head.weight, head.bias))


@pytest.mark.parametrize("frozen", [False, True])
def test_no_tensor_of_all_logits_is_kept(frozen: bool) -> None:
    hidden, head, wanted = make(tokens=40, vocabulary=300)
    head.requires_grad_(not frozen)
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        token_logprobs(hidden, head, transform=LogitTransform(cap=2.0), chunk=8, **wanted)
    assert kept
    assert max(kept) < 40 * 300 / 4


def test_a_frozen_head_gets_no_gradient_and_keeps_nothing_but_what_hidden_needs() -> None:
    hidden, head, wanted = make()
    head.requires_grad_(False)
    logprobs, entropies = token_logprobs(hidden, head, transform=LogitTransform(), **wanted)
    assert entropies.numel() == 0
    logprobs.sum().backward()  # type: ignore[no-untyped-call]
    assert head.weight.grad is None
    assert hidden.grad is not None
    with torch.no_grad():
        again, _ = token_logprobs(hidden, head, transform=LogitTransform(), **wanted)
    assert torch.equal(again, logprobs)
    assert not again.requires_grad


def test_a_graph_that_is_kept_can_be_gone_through_twice() -> None:
    hidden, head, wanted = make()
    logprobs, _ = token_logprobs(hidden, head, transform=LogitTransform(cap=2.0), chunk=4, **wanted)
    trained = [hidden, head.weight, head.bias]
    first = torch.autograd.grad(logprobs.sum(), trained, retain_graph=True)
    again = torch.autograd.grad(logprobs.sum(), trained)
    for one, other in zip(first, again, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-13)


def test_logits_that_are_there_already_give_the_same() -> None:
    hidden, head, wanted = make()
    full = by_full_logits(hidden, head, LogitTransform(), **wanted)
    logprobs, entropies = logprobs_of_logits(head(hidden), **wanted)
    assert torch.allclose(logprobs.double(), full[0], atol=1e-5)
    assert torch.allclose(entropies.double(), full[1], atol=1e-5)


def test_logits_of_half_precision_products_are_not_rounded() -> None:
    """Logits of up to about 25, which bfloat16 knows to 0.06."""
    torch.manual_seed(0)
    head = nn.Linear(64, 500).to(torch.bfloat16).requires_grad_(False)
    hidden = (50 * torch.randn(40, 64)).to(torch.bfloat16)
    targets = torch.randint(500, (40,))
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = token_logprobs(
            hidden,
            head,
            targets=targets,
            temperatures=torch.ones(40),
            transform=LogitTransform(),
            chunk=16,
        )
    z = hidden.double() @ head.weight.double().t() + head.bias.double()
    exact = torch.log_softmax(z, -1).gather(1, targets[:, None])[:, 0]
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 1e-4
