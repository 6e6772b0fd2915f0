"""Which process gets which GPU, and how much of its memory.

With one GPU generation and learner share it: generation takes a fixed amount, so that neither
counts the other's memory as its own. With more, generation has the first ones and the learner the
others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tuneloop.errors import SettingsError
from tuneloop.gpus.memory import (
    CONTEXT,
    GIB,
    GRAPHS,
    HALF,
    activation_bytes,
    cache_bytes_per_token,
    full_training_bytes,
    head_bytes,
    learner_weight_bytes,
    lora_training_bytes,
    open_batch_bytes,
    weight_bytes,
    workspace_bytes,
)
from tuneloop.gpus.shapes import ModelShape
from tuneloop.policies import WeightsKind

MARGIN = 2 * GIB
"""Left alone on a GPU that both use."""
SHARE_OF_OWN = 0.9
"""Of a GPU that one process has alone."""
MOST_TOKENS, LEAST_TOKENS = 16_384, 1024
"""Of a pass of the learner: more gains nothing, less takes too many passes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What to plan for."""

    shape: ModelShape
    gpu_bytes: Sequence[int]
    """Memory of each GPU, in order."""
    weights_kind: WeightsKind
    tensor_parallel: int = 1
    lora_rank: int = 32
    adapters: int = 6
    """Slots for adapters in generation."""
    max_model_len: int = 4096
    """Tokens of the longest sequence that must fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Something that a process holds on a GPU."""

    gpu: int
    process: str
    name: str
    size: int
    """In bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where everything goes, or why it does not fit."""

    request: PlanRequest
    generation_gpus: tuple[int, ...]
    learner_gpus: tuple[int, ...]
    parts: tuple[Part, ...]
    cache_bytes: int
    """Of keys and values on each GPU of generation."""
    learner_tokens: int
    """Of one pass of the learner."""
    problems: tuple[str, ...]

    @property
    def is_shared(self) -> bool:
        """Whether generation and learner use the same GPU."""
        return bool(set(self.generation_gpus) & set(self.learner_gpus))

    @property
    def cache_tokens(self) -> int:
        """The tokens whose keys and values fit."""
        per_gpu = cache_bytes_per_token(self.request.shape) / self.request.tensor_parallel
        return int(self.cache_bytes / per_gpu)

    def used(self, gpu: int, process: str = "") -> int:
        """Return the bytes that a process, or all, hold on a GPU."""
        return sum(
            part.size for part in self.parts if part.gpu == gpu and process in ("", part.process)
        )


def make_plan(request: PlanRequest) -> Plan:
    """Divide the GPUs' memory; what does not fit is in the plan's `problems`."""
    count, parallel = len(request.gpu_bytes), request.tensor_parallel
    generation = tuple(range(min(parallel, count)))
    others = tuple(range(parallel, count))
    learner = others or generation[:1]
    quantization = request.shape.quantization
    if quantization is not None and quantization.stays_packed:
        learner = learner[:1]  # packed weights are not sharded
    problems = unsuitable(request)
    if count < parallel:
        problems.append(f"tensor parallel over {parallel} GPUs, of which there are {count}")
    parts = [part for gpu in generation for part in generation_parts(request, gpu)]
    parts += [part for gpu in learner for part in learner_parts(request, gpu, len(learner))]
    rank = request.lora_rank if request.weights_kind is WeightsKind.LORA else None
    per_token = activation_bytes(request.shape, 1, checkpointing=True, lora_rank=rank)
    rooms = {gpu: room_on(request, parts, gpu, shared=not others) for gpu in generation + learner}
    room = min(rooms[gpu] for gpu in learner)
    tokens = max(0, min(MOST_TOKENS, (room if others else room // 2) // per_token))
    if not others:
        rooms[learner[0]] -= tokens * per_token
    cache = max(0, min(rooms[gpu] for gpu in generation))
    parts += [
        Part(gpu=gpu, process="learner", name=f"{tokens} tokens", size=tokens * per_token)
        for gpu in learner
    ]
    parts += [
        Part(gpu=gpu, process="generation", name="keys and values", size=cache)
        for gpu in generation
    ]
    plan = Plan(
        request=request,
        generation_gpus=generation,
        learner_gpus=learner,
        parts=tuple(parts),
        cache_bytes=cache,
        learner_tokens=tokens,
        problems=(),
    )
    return replace(plan, problems=(*problems, *shortages(plan)))


def unsuitable(request: PlanRequest) -> list[str]:
    """Say why such weights cannot be trained on a quantized base."""
    if request.shape.quantization is None:
        return []
    try:
        request.shape.quantization.check_kind("the model", request.weights_kind)
        request.shape.quantization.check_trainable("the model")
    except SettingsError as error:
        return [error.message]
    return []


def generation_parts(request: PlanRequest, gpu: int) -> list[Part]:
    """Return what generation holds on one of its GPUs besides keys and values."""
    shape, parallel = request.shape, request.tensor_parallel
    sizes = {"weights": weight_bytes(shape) // parallel}
    if request.weights_kind is WeightsKind.LORA:
        adapter = shape.lora_parameters(request.lora_rank) * HALF
        sizes[f"{request.adapters} adapters"] = request.adapters * adapter // parallel
    sizes |= {"workspace": workspace_bytes(shape) // parallel, "graphs": GRAPHS, "CUDA": CONTEXT}
    return [Part(gpu=gpu, process="generation", name=n, size=size) for n, size in sizes.items()]


def learner_parts(request: PlanRequest, gpu: int, ranks: int) -> list[Part]:
    """Return what the learner holds on one of its GPUs besides activations.

    Full weights and their optimizer are sharded over its GPUs; with an adapter each holds the base.
    """
    shape = request.shape
    if request.weights_kind is WeightsKind.LORA:
        sizes = {
            "weights": learner_weight_bytes(shape),
            "adapter and its optimizer": lora_training_bytes(shape, request.lora_rank),
            "open batch": open_batch_bytes(shape.lora_parameters(request.lora_rank)),
        }
    else:
        sizes = {
            "weights": weight_bytes(shape) // ranks,
            "optimizer and reference": full_training_bytes(shape) // ranks,
            "open batch": open_batch_bytes(shape.parameters) // ranks,
        }
    sizes |= {"logits": head_bytes(shape), "CUDA": CONTEXT}
    return [Part(gpu=gpu, process="learner", name=n, size=size) for n, size in sizes.items()]


def room_on(request: PlanRequest, parts: Sequence[Part], gpu: int, *, shared: bool) -> int:
    """Return the bytes of a GPU that `parts` leave to caches and activations."""
    total = request.gpu_bytes[gpu]
    usable = total - MARGIN if shared else int(total * SHARE_OF_OWN)
    return usable - sum(part.size for part in parts if part.gpu == gpu)


def shortages(plan: Plan) -> list[str]:
    """Say what does not fit, with its numbers."""
    request = plan.request
    found = []
    if plan.learner_tokens < LEAST_TOKENS:
        found.append(shortage(plan, plan.learner_gpus[0], "learner"))
    if plan.cache_tokens < request.max_model_len:
        found.append(shortage(plan, plan.generation_gpus[0], "generation"))
    return list(dict.fromkeys(found))


def shortage(plan: Plan, gpu: int, process: str) -> str:
    """Say what a GPU would have to hold, of what it has."""
    held = [part for part in plan.parts if part.gpu == gpu and part.size]
    whose = "" if plan.is_shared else f"{process} on "
    listed = ", ".join(
        f"{part.process + ' ' if plan.is_shared else ''}{part.name} {part.size / GIB:.1f}"
        for part in held
    )
    total = plan.request.gpu_bytes[gpu] / GIB
    return (
        f"{whose}GPU {gpu} has {total:.1f} GiB, too little for {listed} GiB and what comes on top"
    )
