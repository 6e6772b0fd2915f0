"""Attention over a packed row: each segment to itself, causally, and to what it goes on from.

Registered with transformers under the name `PACKED`, so that any model built on its attention
interface can use it. On a CPU it is a loop over the segments: nothing outside them is computed. On
a GPU it is flex attention with a block mask: blocks outside them are skipped. Under the name
`VARLEN` it is there flash attention over rows of different lengths, which builds no mask and needs
no compiler, but knows of no caps or sinks, and of half precision only.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tuneloop.learner.models.packing import ALONE, Segment, TokenLayout, send

PACKED = "tuneloop_packed"
VARLEN = "tuneloop_packed_varlen"
WITHOUT_EQUIVALENT = ("softcap", "s_aux", "position_bias")
"""Arguments of some families that only flex attention could have something for."""


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
    varlen: bool = False,
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
        varlen: on a GPU by `torch.nn.attention.varlen`.
        options: `scaling`, and what a family adds.

    Returns:
        (1, T, heads, head size), and None for the weights that are not kept.

    Raises:
        NotImplementedError: the kernel has nothing for what a family wants.

    """
    if layout is None or not layout.segments:
        padded: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, sliding_window=sliding_window, **options
        )
        return padded
    layout.windows.add(sliding_window)
    if query.device.type != "cuda":
        return _by_segment(query, key, value, layout, sliding_window, **options), None
    if varlen:
        return _by_varlen(query, key, value, layout, sliding_window, **options), None
    block_mask = _block_mask(layout, sliding_window)
    blocks: tuple[Tensor, Tensor | None] = flex_attention_forward(
        module, *in_one_precision(query, key, value), block_mask, **options
    )
    return blocks


def _by_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: TokenLayout,
    sliding_window: int | None,
    **options: Any,
) -> Tensor:
    """Attend over all segments at once; returns (1, T, heads, head size)."""
    from torch.nn.attention.varlen import varlen_attn

    _refuse_options(options)
    query, key, value = in_one_precision(query, key, value)
    if query.dtype not in (torch.bfloat16, torch.float16):
        raise NotImplementedError(f"varlen attention takes half precision, not {query.dtype}")
    rows = layout.masks.get(VARLEN)
    if not isinstance(rows, VarlenRows):
        rows = layout.masks[VARLEN] = varlen_rows(layout)
    queries, keys, values = (t[0].transpose(0, 1) for t in (query, key, value))
    if rows.key_places is not None:
        keys, values = keys[rows.key_places], values[rows.key_places]
    # Older releases of torch have no grouped queries, and no name for them.
    grouped: dict[str, Any] = {"enable_gqa": True} if query.shape[1] != key.shape[1] else {}
    attended = varlen_attn(
        queries,
        keys,
        values,
        rows.query_starts,
        rows.key_starts,
        rows.longest_query,
        rows.longest_key,
        scale=options.get("scaling"),
        # How many tokens before its own place one sees; -1 is all. Places are counted from the end.
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        **grouped,
    )
    assert isinstance(attended, Tensor)
    return attended[None]


def in_one_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return queries, keys and values in that of autocast, if it is on.

    With weights in float32, rotations are too, and queries and keys come out of them wider than
    values. Autocast itself only knows of torch's own attention.
    """
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class VarlenRows:
    """The S segments of a row, as kernels for rows of different lengths take them."""

    query_starts: Tensor  # (S + 1,) int32, from 0 to all queries
    key_starts: Tensor  # (S + 1,) int32
    longest_query: int
    longest_key: int
    key_places: Tensor | None  # (keys,) int64 in the row; None where keys are those of the queries


def varlen_rows(layout: TokenLayout) -> VarlenRows:
    """Return where queries and keys of each segment are: its keys begin where its branch does."""
    device = layout.input_ids.device
    lengths = [segment.length for segment in layout.segments]
    starts = [0, *itertools.accumulate(lengths)]
    places = [
        [
            place
            for number in _branch(layout.segments, index)
            for place in range(starts[number], starts[number + 1])
        ]
        for index in range(len(lengths))
    ]
    counts = [len(of_segment) for of_segment in places]
    key_starts = [0, *itertools.accumulate(counts)]
    shares = counts != lengths
    flat = [place for of_segment in places for place in of_segment]
    return VarlenRows(
        query_starts=send(torch.tensor(starts, dtype=torch.int32), device),
        key_starts=send(torch.tensor(key_starts, dtype=torch.int32), device),
        longest_query=max(lengths),
        longest_key=max(counts),
        key_places=send(torch.tensor(flat), device) if shares else None,
    )


def _branch(segments: Sequence[Segment], index: int) -> list[int]:
    """Return what a segment goes on from, first to last, and the segment itself."""
    found = [index]
    while (index := segments[index].goes_on_from) != ALONE:
        found.append(index)
    return found[::-1]


def _refuse_options(options: Mapping[str, Any]) -> None:
    for name in WITHOUT_EQUIVALENT:
        if options.get(name) is not None:
            raise NotImplementedError(f"packed attention has no {name}")


def _by_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: TokenLayout,
    sliding_window: int | None,
    **options: Any,
) -> Tensor:
    """Attend one segment after the other, on a CPU; returns (1, T, heads, head size)."""
    _refuse_options(options)
    # One split has one backward; a slice for each segment would have as many the size of the row.
    lengths = [segment.length for segment in layout.segments]
    queries, keys, values = (torch.split(t, lengths, dim=2) for t in (query, key, value))
    parts: list[Tensor] = []
    for index, segment in enumerate(layout.segments):
        k, v = keys[index], values[index]
        if segment.goes_on_from != ALONE:
            branch = _branch(layout.segments, index)
            k = torch.cat([keys[number] for number in branch], dim=2)
            v = torch.cat([values[number] for number in branch], dim=2)
        before = k.shape[2] - segment.length
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
    until = send(torch.tensor(_seen_until(layout.segments)), layout.input_ids.device)
    positions = layout.position_ids[0]

    def sees(batch: Tensor, head: Tensor, place: Tensor, other: Tensor) -> Tensor:
        related = (other <= place) & (place < until[other])
        if window is None:
            return related
        return related & (positions[place] - positions[other] < window)

    return sees


def _seen_until(segments: Sequence[Segment]) -> list[int]:
    """Return for each place in the row the first after it that belongs to another branch."""
    ends = list(itertools.accumulate(segment.length for segment in segments))
    for index in reversed(range(len(segments))):
        if (before := segments[index].goes_on_from) != ALONE:
            ends[before] = max(ends[before], ends[index])
    return [end for end, segment in zip(ends, segments, strict=True) for _ in range(segment.length)]


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
AttentionInterface.register(VARLEN, functools.partial(packed_attention, varlen=True))
AttentionMaskInterface.register(VARLEN, sdpa_mask)
