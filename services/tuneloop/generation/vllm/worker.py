"""Runs inside vLLM's worker process, which imports this module by name.

A worker extension loads full weights without a long pause (`staging`). A kernel class corrects LoRA
in mixed batches, which vLLM 0.32 gets wrong on a CPU; vLLM's only hook for it is the method of its
CPU platform that names the class, which this module replaces. Grammars are compiled quietly there
(`grammars`). On a GPU nothing is changed.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from vllm.platforms import current_platform

from tuneloop.generation.vllm.grammars import replace_compiler
from tuneloop.generation.vllm.staging import Staging

if TYPE_CHECKING:
    PunicaWrapperCPU: Any = object
else:
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

Group = tuple[int, torch.Tensor | None]
"""An adapter's slot, and the rows of the batch that use it; None for all rows."""


class ReloadExtension:
    """Loads full weights in two steps, of which only the second needs a pause.

    It is mixed into vLLM's worker. On a CPU the weights are loaded into a twin of the model during
    decoding, and then replace the old ones. On a GPU, where memory for a twin is lacking,
    everything happens in the pause.
    """

    reload_weights: Any
    model_runner: Any
    device: Any
    staging: Staging | None = None

    def stage_weights(self, folder: str) -> None:
        """Start to load all weights of `folder`; see `staged`."""
        on_cpu = self.device.type == "cpu"
        self.staging = Staging(self.model_runner, folder) if on_cpu else None

    def staged(self) -> bool:
        """Return whether `commit_weights` may be called. Raises what the loading raised."""
        return self.staging is None or self.staging.ready()

    def commit_weights(self, folder: str) -> None:
        """Use the weights of `folder` from now on; nothing may be decoding."""
        if self.staging is None:
            self.reload_weights(weights_path=folder)
            return
        self.staging.commit()
        self.staging = None


class GroupedLora(PunicaWrapperCPU):  # type: ignore[misc]
    """Computes LoRA on a CPU with one product per adapter in the batch.

    vLLM's own class copies an adapter's weights for every token, which made decoding eight times
    slower; and it reads slot -1, the last one, for rows without an adapter.
    """

    token_groups: Sequence[Group] = ()
    sampler_groups: Sequence[Group] = ()

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Note which rows of the next batch use which adapter."""
        super().update_metadata(*args, **kwargs)
        self.token_groups = groups_of(self.token_lora_indices)
        self.sampler_groups = groups_of(self.sampler_indices)

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
        for slot, rows in self.token_groups:
            chosen = x if rows is None else x[rows]
            start = 0
            for half_a, half_b, size in zip(
                lora_a_stacked, lora_b_stacked, output_slices, strict=True
            ):
                delta = scale * (chosen @ half_a[slot, 0].T) @ half_b[slot, 0].T
                add_rows(y[:, start : start + size], rows, delta)
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
        for slot, rows in self.token_groups:
            chosen = x if rows is None else x[rows]
            add_rows(y, rows, chosen.to(y.dtype) @ lora_b_stacked[slot, 0].T)

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
        for slot, rows in self.sampler_groups:
            chosen = x if rows is None else x[rows]
            delta = scale * (chosen @ lora_a_stacked[slot, 0].T) @ lora_b_stacked[slot, 0].T
            # The adapter's vocabulary may be padded otherwise than the model's.
            width = min(delta.shape[1], y.shape[1])
            add_rows(y[:, :width], rows, delta[:, :width])


def groups_of(slots: torch.Tensor) -> list[Group]:
    """Group rows by adapter slot; rows without an adapter (slot -1) are in no group."""
    distinct = sorted(set(slots.tolist()))
    if len(distinct) == 1:
        return [(slot, None) for slot in distinct if slot >= 0]
    return [(slot, (slots == slot).nonzero()[:, 0]) for slot in distinct if slot >= 0]


def add_rows(y: torch.Tensor, rows: torch.Tensor | None, delta: torch.Tensor) -> None:
    """Add delta to the given rows of y, in place."""
    if rows is None:
        y += delta.to(y.dtype)
    else:
        y.index_add_(0, rows, delta.to(y.dtype))


if current_platform.is_cpu():
    current_platform.get_punica_wrapper = lambda: f"{__name__}.{GroupedLora.__name__}"
    # On a CPU the worker and what compiles grammars are one process.
    replace_compiler()
