"""Runs inside vLLM's worker process, which imports this module by name.

A worker extension loads weights while decoding goes on (`staging`). A kernel class corrects LoRA
in mixed batches, which vLLM 0.32 gets wrong on a CPU; vLLM's only hook for it is the method of its
CPU platform that names the class, which this module replaces. Tokens are sampled (`sampling`) and
grammars compiled (`grammars`) otherwise there, too. On a GPU only the extension is used.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from vllm.platforms import current_platform

from tuneloop.generation.vllm.grammars import replace_compiler
from tuneloop.generation.vllm.merged import MergedLayer, are_as_read
from tuneloop.generation.vllm.sampling import replace_sampler
from tuneloop.generation.vllm.staging import Adapter, LockedWeights, Staging
from tuneloop.generation.vllm.twin import TwinWeights

if TYPE_CHECKING:
    PunicaWrapperCPU: Any = object
else:
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

Group = tuple[int, torch.Tensor | None]
"""An adapter's slot, and ones for the rows of the batch that use it, [rows, 1]; None if all do."""
Halves = tuple[torch.Tensor, torch.Tensor]
"""An adapter's Aᵀ, [in, rank], and Bᵀ, [rank, out]."""


class StagingExtension:
    """Prepares weights beside decoding, and puts them to use between two steps.

    It is mixed into vLLM's worker. One set of weights is staged at a time.
    """

    model_runner: Any
    device: Any
    staging: Staging | None = None

    def stage_weights(self, folder: str, sha256: dict[str, str], twin: bool) -> None:
        """Start to load all weights of `folder`, into a twin of the model or main memory.

        See `staged`. `sha256` has the hashes of its files by name.
        """
        kind = TwinWeights if twin else LockedWeights
        self.staging = Staging(kind(self, Path(folder), sha256))

    def stage_adapter(self, number: int, folder: str) -> None:
        """Start to load a LoRA adapter; see `staged`."""
        self.staging = Staging(Adapter(self, number, Path(folder)))

    def staged(self) -> bool:
        """Return whether `commit_staged` may be called. Raises what the loading raised."""
        return self.staging is not None and self.staging.ready()

    def commit_staged(self) -> float:
        """Use what was staged from now on; return the seconds that this took.

        For full weights nothing may be decoding.
        """
        started = time.monotonic()
        if self.staging is None:
            raise RuntimeError("nothing was staged")
        self.staging.commit()
        self.staging = None
        return time.monotonic() - started

    def discard_staged(self) -> None:
        """Give up what was staged, here or on another rank only."""
        if self.staging is not None:
            self.staging.discard()
        self.staging = None


class GroupedLora(PunicaWrapperCPU):  # type: ignore[misc]
    """Computes LoRA on a CPU with one product per adapter in the batch, or with none (`merged`).

    vLLM's own class copies an adapter's weights for every token, which made decoding eight times
    slower; and it reads slot -1, the last one, for rows without an adapter. Here an adapter's
    product is taken of all rows, with zeros between the halves where a row uses another: on a CPU
    that is faster than to pick rows out and put them back. The zeros that fill an adapter up to
    the largest rank are left out.
    """

    token_groups: Sequence[Group] = ()
    sampler_groups: Sequence[Group] = ()
    ranks: Mapping[int, int] = MappingProxyType({})
    """By slot; of others the largest rank is computed."""
    merged: Mapping[int, Sequence[MergedLayer]] = MappingProxyType({})
    """By adapter; a batch that uses no other computes with its merged layers."""
    _in_use: Sequence[MergedLayer] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.halves: dict[tuple[int, int, int | None], Halves] = {}
        """Views by address, slot and rank. A step takes some hundred of them, and each takes as
        long to make as its product with a few rows."""

    def update_metadata(
        self, mapping: Any, lora_index_to_id: Sequence[int | None], *args: Any, **kwargs: Any
    ) -> None:
        """Note which rows of the next batch use which adapter."""
        super().update_metadata(mapping, lora_index_to_id, *args, **kwargs)
        self.token_groups = groups_of(self.token_lora_indices)
        self.sampler_groups = groups_of(self.sampler_indices)
        self.use_merged(lora_index_to_id)

    def use_merged(self, adapters: Sequence[int | None]) -> None:
        """Have the layers compute with the one adapter of the next batch, or without any.

        `adapters` are those in the slots.
        """
        only = [adapters[slot] for slot, mask in self.token_groups if mask is None]
        layers = self.merged.get(only[0] or 0, ()) if only else ()
        if not are_as_read(layers):
            self.merged, layers = MappingProxyType({}), ()
        if layers:
            self.token_groups = ()
        if layers is self._in_use:
            return
        for one in self._in_use:
            one.layer.cpu_linear = one.plain
        for one in layers:
            one.layer.cpu_linear = one.merged
        self._in_use = layers

    def add_lora_linear(  # noqa: PLR0917 - vLLM's signature
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """Add x·Aᵀ·Bᵀ·scale to y [tokens, out], slice by slice, in place.

        A is [slots, 1, rank, in] and B [slots, 1, out, rank].
        """
        for slot, mask in self.token_groups:
            start = 0
            for half_a, half_b, size in zip(
                lora_a_stacked, lora_b_stacked, output_slices, strict=True
            ):
                key = half_a.data_ptr(), slot, self.ranks.get(slot)
                halves = self.halves.get(key)
                if halves is None:
                    halves = self.halves[key] = self.halves_of(half_a, half_b, slot)
                add_product(y[:, start : start + size], x, halves, mask, scale)
                start += size

    def add_lora_embedding(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """Add x·Bᵀ to y [tokens, out] in place; x [tokens, rank] went through A already."""
        for slot, mask in self.token_groups:
            chosen = x.to(y.dtype) if mask is None else x.to(y.dtype) * mask
            y.addmm_(chosen, lora_b_stacked[slot, 0].T)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **kwargs: Any,
    ) -> None:
        """Add x·Aᵀ·Bᵀ·scale to the logits y [requests, vocab] in place."""
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        for slot, mask in self.sampler_groups:
            # The adapter's vocabulary may be padded otherwise than the model's.
            width = min(lora_b_stacked.shape[2], y.shape[1])
            halves = self.halves_of(lora_a_stacked, lora_b_stacked[:, :, :width], slot)
            add_product(y[:, :width], x, halves, mask, scale)

    def halves_of(self, half_a: torch.Tensor, half_b: torch.Tensor, slot: int) -> Halves:
        """Return views of one adapter's halves, without what fills it up to the largest rank."""
        rank = self.ranks.get(slot)
        return half_a[slot, 0, :rank].T, half_b[slot, 0, :, :rank].T


def add_product(
    y: torch.Tensor, x: torch.Tensor, halves: Halves, mask: torch.Tensor | None, scale: float
) -> None:
    """Add x·Aᵀ·Bᵀ·scale of one adapter to its rows of y, in place."""
    half_a, half_b = halves
    inner = x @ half_a
    if mask is not None:
        inner *= mask
    if inner.dtype == y.dtype:
        y.addmm_(inner, half_b, alpha=scale)
    else:
        y += scale * (inner @ half_b)


def groups_of(slots: torch.Tensor) -> list[Group]:
    """Group rows by adapter slot; rows without an adapter (slot -1) are in no group."""
    distinct = sorted(set(slots.tolist()))
    if len(distinct) == 1:
        return [(slot, None) for slot in distinct if slot >= 0]
    return [(slot, (slots == slot).float()[:, None]) for slot in distinct if slot >= 0]


if current_platform.is_cpu():
    current_platform.get_punica_wrapper = lambda: f"{__name__}.{GroupedLora.__name__}"
    # On a CPU the worker and what compiles grammars are one process.
    replace_compiler()
    replace_sampler()
