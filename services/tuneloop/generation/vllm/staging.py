"""Prepares new weights in a thread of vLLM's worker process while decoding goes on.

What then has to happen between two steps is `commit`: for an adapter a few assignments, for full
weights on a CPU an exchange of pointers (`twin`), on a GPU the copy from main memory.
"""

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from vllm.lora.request import LoRARequest

from tuneloop.generation.vllm.host_weights import HostWeights
from tuneloop.generation.vllm.merged import start_merging
from tuneloop.generation.vllm.twin import pack_tied_output
from tuneloop.host import available_memory, lower_thread_priority
from tuneloop.weights.files import check_weights

logger = logging.getLogger("tuneloop.generation")


class Prepared(Protocol):
    """Weights that are prepared in a thread, and used or given up on the decoding thread."""

    def prepare(self) -> None:
        """Load and check everything; raises if the weights cannot be used."""
        ...

    def commit(self) -> None:
        """Use the weights from now on; nothing may be decoding."""
        ...

    def free(self) -> None:
        """Give back what `prepare` took, also after it failed."""
        ...


class Staging:
    """Runs `prepare` in a thread of low priority."""

    def __init__(self, weights: Prepared) -> None:
        self._weights = weights
        self._error: Exception | None = None
        self._lock = threading.Lock()
        self._done = self._unwanted = False
        self._thread = threading.Thread(target=self._run, name="stage weights", daemon=True)
        self._thread.start()

    def ready(self) -> bool:
        """Return whether everything is prepared. Raises what that raised."""
        if self._error is not None:
            raise self._error
        return self._done

    def commit(self) -> None:
        """Use the weights from now on; nothing may be decoding."""
        self._weights.commit()
        self._weights.free()

    def discard(self) -> None:
        """Give the memory back, as soon as the thread has ended."""
        with self._lock:
            self._unwanted = True
            if self._done:
                self._weights.free()

    def _run(self) -> None:
        lower_thread_priority()
        try:
            with torch.inference_mode():
                self._weights.prepare()
        except Exception as error:
            self._error = error
        with self._lock:
            self._done = True
            if self._unwanted or self._error is not None:
                self._weights.free()


class LockedWeights:
    """Full weights on a GPU: read into main memory, from which the pause copies them.

    vLLM's reload goes layer by layer and copies into the tensors that exist, whose addresses CUDA
    graphs have. Every rank keeps the whole files. Where that does not fit into main memory, the
    pause reads them from the disk.
    """

    def __init__(self, worker: Any, folder: Path, sha256: Mapping[str, str]) -> None:
        self._worker, self._folder, self._sha256 = worker, folder, sha256
        self._weights = HostWeights()

    def prepare(self) -> None:
        """See `Prepared`."""
        size = sum(file.stat().st_size for file in self._folder.glob("*.safetensors"))
        ranks = self._worker.vllm_config.parallel_config.world_size
        if ranks * size > available_memory():
            logger.warning("no main memory for %d bytes of weights: the swap reads the disk", size)
            check_weights(self._folder, self._sha256)
            return
        locked = self._worker.device.type == "cuda"
        if locked:
            torch.cuda.set_device(self._worker.device)
        self._weights.read(self._folder, self._sha256, locked=locked)

    def commit(self) -> None:
        """See `Prepared`."""
        staged = self._weights.tensors
        if staged:
            self._worker.reload_weights(weights_iterator=iter(staged.items()))
        else:
            self._worker.reload_weights(weights_path=str(self._folder))
        pack_tied_output(self._worker.model_runner.get_model())
        # What was launched still reads the memory that is given back next.
        synchronize(self._worker.device)

    def free(self) -> None:
        """See `Prepared`."""
        self._weights.free()


class Adapter:
    """A LoRA adapter: read, checked, packed and copied into a slot that no request uses.

    vLLM's `add_lora` does the same on the thread that decodes, which takes longer than a step.
    Adapters are loaded and dropped one after the other, so the slot stays free.
    """

    def __init__(self, worker: Any, number: int, folder: Path) -> None:
        self._device = worker.device
        self._loader = worker.model_runner.lora_manager
        self._slots = self._loader._adapter_manager
        self._request = LoRARequest(
            lora_name=f"adapter-{number}", lora_int_id=number, lora_path=str(folder)
        )
        self._slot = -1
        self._adapter: Any = None
        self._base = Path(worker.vllm_config.model_config.model)

    def prepare(self) -> None:
        """See `Prepared`."""
        if None not in self._slots.lora_index_to_id:
            raise RuntimeError(f"all {len(self._slots.lora_index_to_id)} adapter slots are taken")
        self._slot = self._slots.lora_index_to_id.index(None)
        adapter = self._loader._load_adapter(self._request)
        self._slots._create_merged_loras_inplace(adapter)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
            # Beside the stream that decodes, which reads other slots.
            with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
                self._fill_slot(adapter)
                torch.cuda.current_stream().synchronize()
        else:
            self._fill_slot(adapter)
        self._adapter = adapter

    def _fill_slot(self, adapter: Any) -> None:
        for name, module in self._slots.modules.items():
            halves = self._slots._get_lora_layer_weights(adapter, name)
            if halves:
                module.set_lora(self._slot, halves.lora_a, halves.lora_b)
            else:
                module.reset_lora(self._slot)

    def commit(self) -> None:
        """See `Prepared`."""
        number = self._request.lora_int_id
        self._slots._registered_adapters[number] = self._adapter
        self._slots._active_adapters[number] = None
        self._slots.lora_index_to_id[self._slot] = number
        for wrapper in self._slots.punica_wrapper_mapping.values():
            # Only this project's has them.
            if hasattr(wrapper, "ranks"):
                wrapper.ranks = {**wrapper.ranks, self._slot: rank_of(self._adapter)}
        if self._device.type == "cpu":
            wrappers = list(self._slots.punica_wrapper_mapping.values())
            start_merging(self._base, self._slots, self._slot, self._adapter, wrappers)

    def free(self) -> None:
        """See `Prepared`."""
        self._adapter = None


def rank_of(adapter: Any) -> int:
    """Return the largest rank of an adapter's layers."""
    rank = 0
    for halves in adapter.loras.values():
        parts = halves.lora_a if isinstance(halves.lora_a, list) else [halves.lora_a]
        rank = max(rank, *(part.shape[-2] for part in parts if part is not None))
    return rank


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
