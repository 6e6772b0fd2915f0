"""Log-probs of given tokens without a logits tensor: the LM head on them only, chunk by chunk."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tuneloop.learner.models.softmax.logits import Logits, LogitTransform, float32_product

CHUNK_ELEMENTS = {"cpu": 1 << 25, "cuda": 1 << 27}
"""Logits held at once; in float32 a chunk is four bytes times this."""


def token_logprobs(
    hidden: Tensor,
    head: nn.Module,
    *,
    targets: Tensor,
    temperatures: Tensor,
    transform: LogitTransform,
    entropies: bool = False,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return log π of each target, (N,), with a gradient, and the entropies there, without one.

    Args:
        hidden: (N, H) states that predict the targets.
        head: has a `weight` (V, H) and perhaps a `bias` (V,).
        targets: (N,) int64.
        temperatures: (N,), what the logits are divided by.
        transform: what comes between head and temperature.
        entropies: whether they are wanted; else (0,).
        chunk: tokens at once; None is what `CHUNK_ELEMENTS` allows. Never changes the result.

    Everything is float32, or float64 where `hidden` is; under autocast hidden states and weight are
    in its dtype, but logits are float32: rounded to bfloat16 they moved log-probs by 0.03 nats
    (see `float32_product`). The gradient of the weight is summed up over the chunks in float32.

    """
    weight: Any = head.weight
    kind = hidden.device.type
    if chunk is None:
        chunk = max(1, CHUNK_ELEMENTS.get(kind, CHUNK_ELEMENTS["cuda"]) // weight.shape[0])
        # A multiple, so that all chunks begin where kernels can read several numbers at once.
        chunk -= chunk % 16 if chunk > 16 else 0
    if torch.is_autocast_enabled(kind):
        hidden = hidden.to(torch.get_autocast_dtype(kind))
    results: tuple[Tensor, Tensor] = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden,
        weight,
        getattr(head, "bias", None),
        targets,
        temperatures,
        transform,
        entropies,
        chunk,
        torch.is_grad_enabled(),
    )
    return results


def float32_logits(head: nn.Module, hidden: Tensor) -> Tensor:
    """Return the head's logits (…, V), in float32 though its factors are in half precision."""
    weight: Any = head.weight
    bias: Any = getattr(head, "bias", None)
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        hidden = hidden.to(torch.get_autocast_dtype(kind))
    if hidden.dtype in (torch.float32, torch.float64):
        return nn.functional.linear(hidden, weight, bias)
    flat = hidden.flatten(0, -2)
    z: Tensor = _Float32Product.apply(flat, weight)  # type: ignore[no-untyped-call]
    z = z.view(*hidden.shape[:-1], len(weight))
    return z if bias is None else z + bias


@contextlib.contextmanager
def float32_head(head: nn.Module) -> Iterator[None]:
    """Have a model's head give logits in float32 inside the block."""
    if not isinstance(head, nn.Linear):
        yield
        return
    head.forward = functools.partial(float32_logits, head)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del head.forward


class _Float32Product(torch.autograd.Function):
    """hidden · weightᵀ, not rounded; gradients in the precision of the factors."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        return float32_product(hidden, weight.to(hidden.dtype).t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        narrow = gradient.to(hidden.dtype)
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = narrow.t() @ hidden
        return narrow @ weight.to(hidden.dtype), of_weight


def logprobs_of_logits(
    logits: Tensor, *, targets: Tensor, temperatures: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the same from given logits (N, V), for families with a head of their own."""
    z = logits.float() / temperatures[:, None]
    logprobs = -nn.functional.cross_entropy(z, targets, reduction="none")
    with torch.no_grad():
        entropies = torch.logsumexp(z, -1) - (torch.softmax(z, -1) * z).sum(-1)
    return logprobs, entropies


class _TokenLogprobs(torch.autograd.Function):
    """The softmax at the targets, with its gradient written out.

    With z the transformed logits of one token over its temperature and p = softmax(z):
    log π = z[target] − log Σ exp z, so d log π / d logits = (onehot(target) − p) · dz / d logits.

    A frozen head (LoRA) has only the gradient of `hidden` to give: a vector for each token, which
    does not depend on what the loss makes of it. It is computed on the way forward, while the
    logits are there, and nothing is computed twice. Else each chunk is computed again, but for the
    last, whose memory is still there.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes them by position
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperatures: Tensor,
        transform: LogitTransform,
        with_entropies: bool,
        chunk: int,
        differentiate: bool,
    ) -> tuple[Tensor, Tensor]:
        moves_head = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        ahead = differentiate and not moves_head
        logits = Logits(
            hidden, weight, bias, temperatures=temperatures, transform=transform, chunk=chunk
        )
        normalizers = logits.new_vector()
        chosen = torch.empty_like(normalizers)
        entropies = torch.empty_like(normalizers[: len(targets) if with_entropies else 0])
        pulls = torch.empty_like(hidden) if ahead else None
        for part in logits.parts:
            sums = logits.sums(part, targets[part], entropies=with_entropies, gradient=ahead)
            chosen[part], normalizers[part] = sums.chosen, sums.normalizers
            if with_entropies:
                entropies[part] = sums.entropies
            if pulls is not None:
                pulls[part] = sums.gradient @ logits.weight
        saved = (pulls,) if ahead else (hidden, weight, bias, targets, temperatures, normalizers)
        ctx.save_for_backward(*(saved if differentiate else ()))
        ctx.transform, ctx.chunk, ctx.ahead = transform, chunk, ahead
        ctx.last = None if ahead or not differentiate else logits.last
        ctx.mark_non_differentiable(entropies)
        return chosen - normalizers, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.ahead:
            (pulls,) = ctx.saved_tensors
            return ((pulls * gradient[:, None]).to(pulls.dtype), *(None,) * 8)
        hidden, weight, bias, targets, temperatures, normalizers = ctx.saved_tensors
        logits = Logits(
            hidden,
            weight,
            bias,
            temperatures=temperatures,
            transform=ctx.transform,
            chunk=ctx.chunk,
        )
        logits.last, ctx.last = ctx.last, None
        hidden_gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        weight_gradient = bias_gradient = None
        if ctx.needs_input_grad[1]:
            weight_gradient = torch.zeros(weight.shape, dtype=gradient.dtype, device=weight.device)
        if bias is not None and ctx.needs_input_grad[2]:
            bias_gradient = torch.zeros(bias.shape, dtype=gradient.dtype, device=bias.device)
        for part in reversed(logits.parts):
            slopes = logits.gradient(part, targets[part], normalizers[part], gradient[part])
            if hidden_gradient is not None:
                hidden_gradient[part] = slopes @ logits.weight
            if weight_gradient is not None:
                _add_product(weight_gradient, slopes, hidden[part])
            if bias_gradient is not None:
                bias_gradient += slopes.sum(0, dtype=bias_gradient.dtype)
        # Autograd casts them to what the parameters take: float32 where they have masters.
        return hidden_gradient, weight_gradient, bias_gradient, *(None,) * 6


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add leftᵀ · right to `total`, in its precision."""
    if total.dtype == left.dtype:
        total.addmm_(left.t(), right)
    else:
        total += left.t() @ right
