"""The softmax over an LM head's products, and its gradient, with as few bytes moved as it takes.

On a GPU a softmax over a vocabulary costs what it reads and writes. Torch goes over the float32
logits a dozen times; here sums read them once, and a gradient reads them once more and is written
in the precision of the head's factors. In bytes a logit, with bfloat16 factors:

    frozen head:  product 4, sums 4, gradient 4 + 2, product 2: 16 (torch: 52)
    trained head: product 4, sums 4; product 4, gradient 4 + 2, two products 4: 22 (torch: 82)

The sums are made in one pass as in Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867,
algorithm 3. A fused cross-entropy, like Liger's, scales its gradients before it has the loss, so it
does not fit PPO or DPO, where what a token weighs follows from its log-prob.
"""

import functools
import logging
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

logger = logging.getLogger("tuneloop.learner.models")
BLOCK = 4096
"""Logits of a token that are looked at together."""
REMEDY = (
    "the softmax of the LM head runs in torch, so training is slower: Triton could not build or "
    "run its kernel. It needs a C compiler (gcc) and TRITON_CACHE_DIR on a file system without "
    "noexec: %s"
)


@triton.jit  # type: ignore[untyped-decorator]
def softmax_row(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    products,
    targets,
    temperatures,
    factors,
    chosen,
    normalizers,
    entropies,
    gradient,
    vocabulary,
    scale,
    cap,
    CAPPED: tl.constexpr,
    SUMS: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Run over one token's products y: with `SUMS` sum them up, with `GRADIENT` write d/dy."""
    row = tl.program_id(0).to(tl.int64)
    products += row * vocabulary
    coldness = 1.0 / tl.load(temperatures + row)
    target = tl.load(targets + row)
    places = tl.arange(0, BLOCK)
    if SUMS:
        largest = -float("inf")
        total = 0.0  # Σ exp(z − largest)
        moment = 0.0  # Σ exp(z − largest) · z
        picked = 0.0
        for start in range(0, vocabulary, BLOCK):
            inside = start + places < vocabulary
            z = scale * tl.load(products + start + places, mask=inside, other=0.0)
            if CAPPED:
                z = cap * (2.0 / (1.0 + tl.exp(-2.0 / cap * z)) - 1.0)  # tanh by the sigmoid
            z = tl.where(inside, z * coldness, -float("inf"))
            higher = tl.maximum(largest, tl.max(z, 0))
            e = tl.exp(z - higher)
            shrink = tl.exp(largest - higher)
            total = total * shrink + tl.sum(e, 0)
            moment = moment * shrink + tl.sum(tl.where(inside, e * z, 0.0), 0)
            picked += tl.sum(tl.where(start + places == target, z, 0.0), 0)
            largest = higher
        normalizer = largest + tl.log(total)
        tl.store(chosen + row, picked)
        tl.store(normalizers + row, normalizer)
        tl.store(entropies + row, normalizer - moment / total)
    else:
        normalizer = tl.load(normalizers + row)
    if GRADIENT:
        gradient += row * vocabulary
        slope = scale * coldness * tl.load(factors + row)
        for start in range(0, vocabulary, BLOCK):
            inside = start + places < vocabulary
            z = scale * tl.load(products + start + places, mask=inside, other=0.0)
            slopes = tl.full([BLOCK], 1.0, tl.float32)
            if CAPPED:
                z = cap * (2.0 / (1.0 + tl.exp(-2.0 / cap * z)) - 1.0)
                slopes = 1.0 - z * z / (cap * cap)
            p = tl.exp(z * coldness - normalizer)
            d = (tl.where(start + places == target, 1.0, 0.0) - p) * slopes * slope
            tl.store(gradient + start + places, d.to(gradient.dtype.element_ty), mask=inside)


def run_softmax(
    products: Tensor,
    *,
    targets: Tensor,
    temperatures: Tensor,
    scale: float,
    cap: float | None,
    normalizers: Tensor | None = None,
    factors: Tensor | None = None,
    gradient_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the targets' logits, the normalizers log Σ exp z, the entropies, and the gradient.

    z = cap·tanh(scale·y / cap) / temperature of products y, or scale·y / temperature; the gradient
    is that of `factors` · (z[target] − normalizer).

    Args:
        products: (n, V) float32, contiguous.
        targets: (n,) int64.
        temperatures: (n,) float32.
        scale: as in `LogitTransform`.
        cap: as in `LogitTransform`.
        normalizers: (n,) where they are known; the logits and entropies are then not computed.
        factors: (n,) float32; None is 1.
        gradient_dtype: of the gradient, (n, V), if it is wanted.

    """
    count, vocabulary = products.shape
    chosen, found, entropies = (temperatures.new_empty(count) for _ in range(3))
    normalizers, known = (found, False) if normalizers is None else (normalizers, True)
    gradient = None
    if gradient_dtype is not None:
        gradient = torch.empty_like(products, dtype=gradient_dtype)
    # Triton starts kernels on the current GPU, whatever theirs is.
    with torch.cuda.device_of(products):  # type: ignore[no-untyped-call]
        softmax_row[(count,)](
            products,
            targets.contiguous(),
            temperatures.contiguous(),
            # The gradient of a sum is one number that is expanded.
            torch.ones_like(temperatures) if factors is None else factors.contiguous(),
            chosen,
            normalizers,
            entropies,
            products if gradient is None else gradient,
            vocabulary,
            scale,
            1.0 if cap is None else cap,
            CAPPED=cap is not None,
            SUMS=not known,
            GRADIENT=gradient is not None,
            BLOCK=BLOCK,
            num_warps=8,
        )
    return chosen, normalizers, entropies, gradient


@functools.cache
def runs_on(device: torch.device) -> bool:
    """Return whether the kernel computes what it should on a device; an error says what is wrong.

    Logits 0 and log 3: the second has log-prob log ¾, and the gradient (−¼, ¼).
    """
    products = torch.tensor([[0.0, 1.0986123]], device=device)
    try:
        chosen, normalizer, _, gradient = run_softmax(
            products,
            targets=torch.ones(1, dtype=torch.int64, device=device),
            temperatures=torch.ones(1, device=device),
            scale=1.0,
            cap=None,
            gradient_dtype=torch.float32,
        )
        assert gradient is not None
        found: list[Any] = [float(chosen - normalizer), *gradient[0].tolist()]
        right = torch.allclose(torch.tensor(found), torch.tensor([-0.2876821, -0.25, 0.25]))
        problem: object = f"it gives {found}"
    except Exception as error:
        right, problem = False, error
    if not right:
        logger.error(REMEDY, problem)
    return right
