"""Attention over a packed row: each segment to itself, causally, and to the prompt it continues.

Registered with transformers under the name `PACKED`, so that any model built on its attention
interface can use it. On a CPU it is a loop over the segments: nothing outside them is computed. On
a GPU it is flex attention with a block mask: blocks outside them are skipped.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tuneloop.learner.models.packing import ALONE, Segment, TokenLayout

PACKED = "tuneloop_packed"
WITHOUT_EQUIVALENT = ("softcap", "s_aux", "position_bias")
"""Arguments of some families that the kernel on CPU has nothing for."""


@torch.compiler.disable  # type: ignore[untyped-decorator]
def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: TokenLayout | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend within the segments of `layout`; without one this is transformers' own SDPA.

    Args:
        module: the attention layer, as transformers gives it.
        query: (1, heads, T, head size).
        key: (1, key heads, T, head size).
        value: (1, key heads, T, head size).
        attention_mask: of a padded batch.
        layout: of a packed row.
        sliding_window: how many positions back a token sees, itself included; None is all.
        options: `scaling`, and what a family adds.

    Returns:
        (1, T, heads, head size), and None for the weights that are not kept.

    """
    if layout is None or not layout.segments:
        padded: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, sliding_window=sliding_window, **options
        )
        return padded
    layout.windows.add(sliding_window)
    if query.device.type == "cuda":
        block_mask = _block_mask(layout, sliding_window)
        blocks: tuple[Tensor, Tensor | None] = flex_attention_forward(
            module, query, key, value, block_mask, **options
        )
        return blocks
    return _by_segment(query, key, value, layout, sliding_window, **options), None


def _by_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: TokenLayout,
    sliding_window: int | None,
    **options: Any,
) -> Tensor:
    """Attend one segment after the other, on a CPU; returns (1, T, heads, head size)."""
    for name in WITHOUT_EQUIVALENT:
        if options.get(name) is not None:
            raise NotImplementedError(f"packed attention has no {name}")
    # One split has one backward; a slice for each segment would have as many the size of the row.
    lengths = [segment.length for segment in layout.segments]
    queries, keys, values = (torch.split(t, lengths, dim=2) for t in (query, key, value))
    parts: list[Tensor] = []
    for index, segment in enumerate(layout.segments):
        k, v, before = keys[index], values[index], 0
        if segment.goes_on_from != ALONE:
            before = layout.segments[segment.goes_on_from].length
            k = torch.cat([keys[segment.goes_on_from], k], dim=2)
            v = torch.cat([values[segment.goes_on_from], v], dim=2)
        mask = _mask(layout, segment, before, sliding_window, like=query)
        parts.append(
            scaled_dot_product_attention(
                queries[index],
                k,
                v,
                attn_mask=mask,
                is_causal=mask is None,
                scale=options.get("scaling"),
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2)


def _mask(
    layout: TokenLayout, segment: Segment, before: int, window: int | None, *, like: Tensor
) -> Tensor | None:
    """Return what to add to the scores (length, before + length); None for plain causal."""
    length = segment.length
    hides = window is not None and window < before + length
    if not before and not hides:
        return None
    name = ("segment", length, before, window if hides else None, like.dtype)
    mask = layout.masks.get(name)
    if not isinstance(mask, Tensor):
        visible = torch.ones(length, before + length, dtype=torch.bool, device=like.device)
        visible = visible.tril(before)
        if hides and window is not None:
            visible = visible.triu(before - window + 1)
        mask = torch.zeros(visible.shape, dtype=like.dtype, device=like.device)
        mask.masked_fill_(~visible, -torch.inf)
        layout.masks[name] = mask
    return mask


def _block_mask(layout: TokenLayout, window: int | None) -> Any:
    """Return the same as a block mask of flex attention, for kernels on a GPU."""
    name = ("blocks", window)
    if name not in layout.masks:
        tokens, device = layout.input_ids.numel(), layout.input_ids.device
        layout.masks[name] = _block_mask_maker()(
            visibility(layout, window), None, None, tokens, tokens, device=device.type
        )
    return layout.masks[name]


@functools.cache
def _block_mask_maker(backend: str = "inductor") -> Callable[..., Any]:
    """Return `create_block_mask` compiled: as it is it holds a row's square in memory."""
    from torch.nn.attention.flex_attention import create_block_mask

    return torch.compile(create_block_mask, dynamic=True, backend=backend)


def visibility(layout: TokenLayout, window: int | None) -> Any:
    """Flex attention's `mask_mod`: whether the token at one place of the row sees another's."""
    device = layout.input_ids.device
    owner = torch.tensor(_owners(layout.segments), device=device)
    prompt = torch.tensor([s.goes_on_from for s in layout.segments], device=device)[owner]
    positions = layout.position_ids[0]

    def sees(batch: Tensor, head: Tensor, place: Tensor, other: Tensor) -> Tensor:
        related = (owner[other] == owner[place]) | (owner[other] == prompt[place])
        related = related & (other <= place)
        if window is None:
            return related
        return related & (positions[place] - positions[other] < window)

    return sees


def _owners(segments: Sequence[Segment]) -> list[int]:
    return [index for index, segment in enumerate(segments) for _ in range(segment.length)]


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
