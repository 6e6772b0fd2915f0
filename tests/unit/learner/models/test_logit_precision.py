"""Logits in half precision: what a family does to them is found, and they are not rounded."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
)

from tuneloop.learner.models.architecture import find_logit_transform, run_whole
from tuneloop.learner.models.batch import collate
from tuneloop.learner.models.forward import Forward
from tuneloop.learner.models.lm_head import float32_logits
from tuneloop.learner.models.packing import pad
from tuneloop.learner.models.softmax.logits import LogitTransform
from tuneloop.learner.samples import TokenSequence

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
FAMILIES: dict[str, tuple[Any, LogitTransform]] = {
    "llama": (LlamaConfig(**SMALL), LogitTransform()),
    "gemma2": (Gemma2Config(**SMALL), LogitTransform(cap=30.0)),
    "gemma3": (Gemma3TextConfig(**SMALL, final_logit_softcapping=20.0), LogitTransform(cap=20.0)),
    "gemma3-plain": (Gemma3TextConfig(**SMALL), LogitTransform()),
    "granite": (GraniteConfig(**SMALL, logits_scaling=4.0), LogitTransform(scale=0.25)),
}
ROW = TokenSequence(
    prompt_token_ids=(1, 5, 9, 2),
    completion_token_ids=tuple(range(10, 50)),
    generation_logprobs=(),
    temperature=1.0,
)


def make(name: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(FAMILIES[name][0]).to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_transform_is_found(name: str, dtype: torch.dtype) -> None:
    """As it comes, untrained: logits near 0, of which a cap takes less than a rounding error."""
    model = make(name, dtype)
    expected = FAMILIES[name][1]
    found = find_logit_transform(model)
    assert found is not None
    assert found.scale == pytest.approx(expected.scale)
    assert found.cap == expected.cap
    assert not model.get_output_embeddings()._forward_hooks


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
@pytest.mark.parametrize("known", [True, False])
def test_logprobs_are_those_of_float32_logits(name: str, known: bool) -> None:
    """The body in bfloat16; from its states on, float32: within 1e-4 nats. Rounded: 0.01 and up."""
    model = make(name, torch.bfloat16)
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_(std=2.0)
    transform = FAMILIES[name][1]
    batch = collate([ROW], CPU)
    layout = pad([ROW], CPU)
    with torch.no_grad():
        states = run_whole(model, layout)[1]
        found = Forward(model, transform if known else None, packs=False)(batch).logprobs
    weight = model.get_output_embeddings().weight
    cap = transform.cap
    assert cap is not None
    exact = by_hand(states, weight, cap, batch.targets)
    assert (found - exact).abs().max() < 1e-4
    rounded = torch.tanh((states @ weight.t()) / cap) * cap
    rough = torch.log_softmax(rounded.float(), -1).gather(1, batch.targets[:, None])[:, 0]
    assert (rough - exact).abs().max() > 1e-2


def by_hand(states: Tensor, weight: Tensor, cap: float, targets: Tensor) -> Tensor:
    z = cap * torch.tanh(states.double() @ weight.double().t() / cap)
    return torch.log_softmax(z, -1).gather(1, targets[:, None])[:, 0].detach()


def test_gradients_of_float32_logits() -> None:
    torch.manual_seed(0)
    head = nn.Linear(16, 30).to(torch.bfloat16)
    hidden = torch.randn(2, 5, 16).to(torch.bfloat16).requires_grad_()
    logits = float32_logits(head, hidden)
    assert logits.dtype == torch.float32
    pull = torch.randn(2, 5, 30)
    found = torch.autograd.grad((logits * pull).sum(), [hidden, head.weight, head.bias])
    wide, weight = hidden.detach().double().requires_grad_(), head.weight.detach().double()
    weight.requires_grad_()
    expected = torch.autograd.grad((wide @ weight.t() * pull).sum(), [wide, weight])
    for one, other in zip(found, expected, strict=False):
        assert torch.allclose(one.double(), other, rtol=0.05, atol=0.1)
    assert torch.allclose(found[2].float(), pull.sum((0, 1)), rtol=0.02, atol=0.02)
