"""The logits of given tokens, chunk by chunk: their sums, and the gradient of log-probs in them."""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger("tuneloop.learner.models")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitTransform:
    """What a family does to its logits after the head: z = cap·tanh(scale·logits / cap)."""

    scale: float = 1.0
    cap: float | None = None


def transformed(logits: Tensor, transform: LogitTransform) -> Tensor:
    """Return logits as a family's softmax takes them, in float32."""
    scaled = transform.scale * logits.float()
    if transform.cap is None:
        return scaled
    return transform.cap * torch.tanh(scaled / transform.cap)


class Sums(NamedTuple):
    """What there is to know of n tokens' logits."""

    chosen: Tensor  # (n,), the targets' logits
    normalizers: Tensor  # (n,), log Σ exp
    entropies: Any  # (n,) if they are wanted
    gradient: Any  # (n, V) d (chosen − normalizer) / d product if wanted, in the factors' dtype


class Logits:
    """The logits of one chunk after the other, in the same memory."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *,
        temperatures: Tensor,
        transform: LogitTransform,
        chunk: int,
    ) -> None:
        self.weight = weight.to(hidden.dtype)
        self.parts = [slice(start, start + chunk) for start in range(0, len(hidden), chunk)]
        self._hidden, self._transform = hidden, transform
        self._bias = None if bias is None else bias.to(hidden.dtype)
        self._wide = torch.promote_types(hidden.dtype, torch.float32)
        self._slopes = transform.scale / temperatures.to(self._wide)[:, None]
        # Asked on a CPU only: a GPU would have to be waited for.
        self._at_one = hidden.device.type == "cpu" and bool((self._slopes == 1).all())
        self._temperatures = temperatures.to(self._wide)
        self._caps = (transform.cap or 0.0) / self._temperatures[:, None]
        self._buffer: Tensor | None = None
        self._kernel = softmax_kernel(hidden.device) if self._wide == torch.float32 else None
        self.last: tuple[Tensor, ...] | None = None
        """Of the last chunk that was summed up: its memory is still there."""

    def new_vector(self) -> Tensor:
        """(N,), not filled, in the precision of the softmax."""
        return torch.empty(len(self._hidden), dtype=self._wide, device=self._hidden.device)

    def sums(self, part: slice, targets: Tensor, *, entropies: bool, gradient: bool) -> Sums:
        """Return the sums of a chunk, and its `gradient` if it is wanted."""
        if self._kernel is not None:
            products = self._products(self._hidden[part])
            self.last = (products,)
            return Sums(
                *self._kernel(
                    products,
                    targets=targets,
                    temperatures=self._temperatures[part],
                    scale=self._transform.scale,
                    cap=self._transform.cap,
                    gradient_dtype=self._hidden.dtype if gradient else None,
                )
            )
        z, slopes = self._transformed(part)
        chosen = z.gather(1, targets[:, None])[:, 0]
        measured = None
        if entropies:
            p = torch.softmax(z, dim=-1)
            measured = torch.logsumexp(z, dim=-1) - p.mul_(z).sum(-1)
        largest = z.amax(-1)
        # In place: a pass over the logits costs as much as a fresh tensor's pages.
        p = z.sub_(largest[:, None]).exp_()
        totals = p.sum(-1)
        self.last = (p, totals, slopes)
        normalizers = totals.log() + largest
        found = None
        if gradient:
            found = _slopes_of(p, targets, slopes, scale=1 / totals).to(self._hidden.dtype)
        return Sums(chosen, normalizers, measured, found)

    def gradient(
        self, part: slice, targets: Tensor, normalizers: Tensor, factors: Tensor
    ) -> Tensor:
        """Return the gradient (n, V) of Σ factors · log π in the products of a chunk."""
        last, self.last = self.last, None
        if self._kernel is not None:
            products = self._products(self._hidden[part]) if last is None else last[0]
            found: Tensor = self._kernel(
                products,
                targets=targets,
                temperatures=self._temperatures[part],
                scale=self._transform.scale,
                cap=self._transform.cap,
                normalizers=normalizers,
                factors=factors,
                gradient_dtype=self._hidden.dtype,
            )[3]
            return found
        if last is None:
            z, slopes = self._transformed(part)
            p, scale = z.sub_(normalizers[:, None]).exp_(), None
        else:
            p, totals, slopes = last
            scale = 1 / totals
        return _slopes_of(p, targets, slopes * factors[:, None], scale).to(self._hidden.dtype)

    def _transformed(self, part: slice) -> tuple[Tensor, Tensor]:
        """Return (n, V) logits as the softmax takes them, and dz / d logits, (n, 1) or (n, V)."""
        hidden, slopes = self._hidden[part], self._slopes[part]
        z = self._products(hidden)
        if self._transform.cap is None:
            return (z if self._at_one else z.mul_(slopes)), slopes
        tanh = z.mul_(self._transform.scale / self._transform.cap).tanh_()
        slopes = slopes * (1 - tanh.square())
        return tanh.mul_(self._caps[part]), slopes

    def _products(self, hidden: Tensor) -> Tensor:
        """Return the head's products with (n, H) states, (n, V), in the softmax's precision."""
        if hidden.dtype != self._wide:
            z = float32_product(hidden, self.weight.t())
            return z if self._bias is None else z.add_(self._bias)
        if self._buffer is None:
            longest = self.parts[0].stop
            self._buffer = hidden.new_empty((min(longest, len(self._hidden)), len(self.weight)))
        z = self._buffer[: len(hidden)]
        if self._bias is None:
            return torch.mm(hidden, self.weight.t(), out=z)
        return torch.addmm(self._bias, hidden, self.weight.t(), out=z)


@functools.cache
def softmax_kernel(device: torch.device) -> Callable[..., Any] | None:
    """Return the kernel that takes the place of torch's softmax: on a GPU, if it runs there."""
    if device.type != "cuda":
        return None
    try:
        from tuneloop.learner.models.softmax.kernel import run_softmax, runs_on
    except ImportError as error:
        logger.error("the softmax of the LM head runs in torch: %s", error)
        return None
    return run_softmax if runs_on(device) else None


def float32_product(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right of two tensors in half precision, never rounded to it.

    MiniMax 2025 (MiniMax-M1), https://arxiv.org/abs/2506.13585, section 3.2: the head's precision
    is what makes log-probs of trainer and sampler differ. A GPU adds up in float32 in any case:
    here that is kept.
    """
    with torch.autocast(left.device.type, enabled=False):
        if left.device.type == "cuda":
            return torch.mm(left, right, out_dtype=torch.float32)
        return left.float() @ right.float()


def _slopes_of(p: Tensor, targets: Tensor, slopes: Tensor, scale: Tensor | None = None) -> Tensor:
    """Turn p into (onehot(target) − scale · p) · slopes, in place; slopes are (n, 1) or (n, V)."""
    p.mul_(-slopes if scale is None else -slopes * scale[:, None])
    chosen = slopes if slopes.shape[1] == 1 else slopes.gather(1, targets[:, None])
    return p.scatter_add_(1, targets[:, None], chosen)
