"""Main memory and disk that generation and the learner take, beside the memory of GPUs.

Without a GPU weights are float32, or bfloat16 in generation if they are quantized. What is read
through the page cache is not counted: the kernel takes it back where memory is short. Nor is
/dev/shm, whose use does not grow with the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tuneloop.gpus.memory import (
    FULL,
    GIB,
    HALF,
    SCHEDULED_SEQUENCES,
    activation_bytes,
    head_bytes,
    learner_weight_bytes,
    lora_training_bytes,
    open_batch_bytes,
    weight_bytes,
)
from tuneloop.gpus.plan import PlanRequest
from tuneloop.gpus.shapes import ModelShape
from tuneloop.policies import WeightsKind

CPU_PROCESS, GPU_PROCESS = 3 * GIB // 4, 2 * GIB
"""Of Python with torch or vLLM: 0.65 to 0.7 GiB measured on a CPU. With CUDA an estimate."""
CPU_CACHE = GIB
"""Keys and values of generation on a CPU, by default."""
CPU_TOKENS = 1024
"""Of a pass of the learner on a CPU, by default."""
REWARD_MODEL = GIB // 2
"""The learner's reward model and the adapter it trains; of one like all-minilm-l6-v2."""
KEPT_CHECKPOINTS = 2
"""By default."""
CACHED_VERSIONS = {WeightsKind.LORA: 8, WeightsKind.FULL: 2}
"""Verified copies of versions that a process keeps."""
COMPILED = 4 * GIB
"""For caches of compilers; an estimate."""
LEDGER = 2 * GIB
"""For what else is in the learner's folder, such as the reward model's checkpoints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSizes:
    """What the processes take, in bytes."""

    generation: Mapping[str, int]
    """Main memory by part, at its peak."""
    learner: Mapping[str, int]
    """Main memory by part, at its peak."""
    cache: int
    """Disk for caches, of each of the two; may be lost."""
    learner_disk: int
    """Disk for checkpoints and versions that are not published yet."""


def host_sizes(request: PlanRequest, *, learner_gpus: int) -> HostSizes:
    """Return the sizes for a plan's request; without GPUs in it, of both on a CPU."""
    on_gpu = bool(request.gpu_bytes)
    version = version_bytes(request)
    return HostSizes(
        generation=gpu_generation(request) if on_gpu else cpu_generation(request),
        learner=gpu_learner(request, learner_gpus) if on_gpu else cpu_learner(request),
        # One more, while it is fetched.
        cache=COMPILED + (CACHED_VERSIONS[request.weights_kind] + 1) * version,
        learner_disk=LEDGER + checkpoints_disk(request) + 2 * version,
    )


def gpu_generation(request: PlanRequest) -> dict[str, int]:
    """Return main memory of generation on GPUs.

    A full version is staged whole by each rank (`generation.vllm.staging`), and vLLM keeps adapters
    in main memory, too. With several ranks each is a process beside the engine's.
    """
    shape, ranks = request.shape, request.tensor_parallel
    sizes = {
        "processes": (2 + (ranks if ranks > 1 else 0)) * GPU_PROCESS,
        "load buffer": ranks * shape.vocabulary * shape.hidden * HALF,
    }
    if request.weights_kind is WeightsKind.FULL:
        return sizes | {"staged weights": ranks * weight_bytes(shape)}
    adapter = shape.lora_parameters(request.lora_rank) * HALF
    return sizes | {f"{request.adapters} adapters": ranks * request.adapters * adapter}


def cpu_generation(request: PlanRequest) -> dict[str, int]:
    """Return main memory of generation on a CPU.

    vLLM keeps a packed copy of the output layer, and adapters beside the slots they are copied to.
    Full weights are loaded into a twin of the model (`generation.vllm.twin`).
    """
    shape = request.shape
    output = shape.vocabulary * shape.hidden
    if shape.quantization is None:
        weights = (shape.parameters + output) * FULL
    else:
        weights = weight_bytes(shape) + output * HALF
    sizes = {
        "processes": 3 * CPU_PROCESS,
        "weights": weights,
        "keys and values": CPU_CACHE,
        "logits": SCHEDULED_SEQUENCES * shape.vocabulary * FULL * 2,
    }
    if request.weights_kind is WeightsKind.FULL:
        return sizes | {"twin": weights}
    adapter = shape.lora_parameters(request.lora_rank) * FULL
    return sizes | {f"{request.adapters} adapters": 2 * request.adapters * adapter}


def gpu_learner(request: PlanRequest, ranks: int) -> dict[str, int]:
    """Return main memory of the learner on GPUs, at the start or at a checkpoint.

    Every rank loads all weights before it moves its part, in float32 where they are sharded. Later
    a checkpoint is staged while a version is written.
    """
    shape, full = request.shape, request.weights_kind is WeightsKind.FULL
    each = shape.parameters * FULL if full and ranks > 1 else learner_weight_bytes(shape)
    processes = {"processes": ranks * GPU_PROCESS}
    loading = {"weights being loaded": ranks * each}
    saving = saved_parts(request)
    peak = max((loading, saving), key=lambda parts: sum(parts.values()))
    return processes | {"reward model": REWARD_MODEL} | peak


def cpu_learner(request: PlanRequest) -> dict[str, int]:
    """Return main memory of the learner on a CPU, where nothing is computed twice to save it."""
    shape, full = request.shape, request.weights_kind is WeightsKind.FULL
    rank = None if full else request.lora_rank
    tokens = activation_bytes(shape, CPU_TOKENS, checkpointing=False, lora_rank=rank)
    if full:
        # Gradients, Adam's two moments and the reference; weights are their own masters.
        training = shape.parameters * 4 * FULL
    else:
        training = lora_training_bytes(shape, request.lora_rank)
    return {
        "process": CPU_PROCESS,
        "reward model": REWARD_MODEL,
        "weights": shape.parameters * FULL,
        "optimizer and reference" if full else "adapter and its optimizer": training,
        "open batch": open_batch_bytes(trained_parameters(request)),
        # Counted in bfloat16.
        f"{CPU_TOKENS} tokens": tokens * FULL // HALF,
        "logits": head_bytes(shape),
        **saved_parts(request),
    }


def saved_parts(request: PlanRequest) -> dict[str, int]:
    """Return what a checkpoint and a version take in main memory while they are written.

    Staged are masters, Adam's two moments and the gradient of an open batch in float32; the largest
    file has two of them, and is put together beside. Full weights are brought together for a
    version, and safetensors makes its file of a copy.
    """
    trained = trained_parameters(request)
    return {
        "checkpoint": trained * (4 + 2) * FULL,
        "version": 2 * version_bytes(request),
    }


def checkpoints_disk(request: PlanRequest) -> int:
    """Return the disk for checkpoints: the first, without moments, those kept, and a new one."""
    trained = trained_parameters(request)
    return trained * FULL + (KEPT_CHECKPOINTS + 1) * trained * 4 * FULL


def trained_parameters(request: PlanRequest) -> int:
    """Return the number of weights that learning changes."""
    shape: ModelShape = request.shape
    if request.weights_kind is WeightsKind.FULL:
        return shape.parameters
    return shape.lora_parameters(request.lora_rank)


def version_bytes(request: PlanRequest) -> int:
    """Return the size of a published version: full weights from a GPU are bfloat16."""
    full = request.weights_kind is WeightsKind.FULL
    half = full and bool(request.gpu_bytes)
    return trained_parameters(request) * (HALF if half else FULL)
