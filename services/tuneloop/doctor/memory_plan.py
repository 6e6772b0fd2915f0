"""The plan of GPUs' memory, in lines for a person."""

from collections.abc import Sequence

from tuneloop.errors import InvalidRequest
from tuneloop.gpus.devices import DriverError, find_gpus, gpu_mebibytes
from tuneloop.gpus.memory import GIB
from tuneloop.gpus.plan import Plan, PlanRequest, make_plan
from tuneloop.gpus.shapes import find_shape
from tuneloop.policies import WeightsKind


def plan_for(
    model: str, *, gpu: str | None, gpus: int | None, tensor_parallel: int, weights: WeightsKind
) -> Plan:
    """Return the plan for a model on named GPUs, or on this machine's; raises `InvalidRequest`.

    By default there is one GPU, or one more than generation is spread over.
    """
    if gpu is None:
        memory = memory_here()
        if gpus is not None:
            memory = memory[:gpus]
    elif gpu.lower() in gpu_mebibytes:
        count = gpus or (tensor_parallel + 1 if tensor_parallel > 1 else 1)
        memory = [gpu_mebibytes[gpu.lower()] << 20] * count
    else:
        known = ", ".join(gpu_mebibytes)
        raise InvalidRequest(f"--gpu {gpu}: not one of {known}", param="gpu")
    request = PlanRequest(
        shape=find_shape(model),
        gpu_bytes=memory,
        weights_kind=weights,
        tensor_parallel=tensor_parallel,
    )
    return make_plan(request)


def memory_here() -> list[int]:
    """Return the memory of this machine's GPUs. Raises `InvalidRequest` if there is none."""
    try:
        memory = [gpu.memory for gpu in find_gpus()]
    except DriverError as error:
        raise InvalidRequest(f"nvidia-smi fails: {error}") from error
    if not memory:
        known = ", ".join(gpu_mebibytes)
        raise InvalidRequest(f"this machine has no NVIDIA GPU; name one with --gpu: {known}")
    return memory


def plan_lines(plan: Plan, model: str) -> Sequence[str]:
    """Return the plan as text, memory in GiB."""
    request = plan.request
    billions = request.shape.parameters / 1e9
    kind = "LoRA" if request.weights_kind is WeightsKind.LORA else "full weights"
    stored = request.shape.quantization
    bits = "" if stored is None else f" in {stored.stored_bits:.1f} bits ({stored.method})"
    lines = [f"{model}: {billions:.2f} billion parameters{bits}, {kind}; estimates in GiB"]
    for gpu, total in enumerate(request.gpu_bytes):
        lines.append(f"GPU {gpu}: {plan.used(gpu) / GIB:.1f} of {total / GIB:.1f}")
        for process in ("generation", "learner"):
            sizes = [p for p in plan.parts if p.gpu == gpu and p.process == process and p.size]
            if sizes:
                listed = ", ".join(f"{part.name} {part.size / GIB:.1f}" for part in sizes)
                lines.append(f"  {process:10} {plan.used(gpu, process) / GIB:6.1f}: {listed}")
    if plan.problems:
        return [*lines, *(f"does not fit: {problem}" for problem in plan.problems)]
    sequences = plan.cache_tokens // request.max_model_len
    return [
        *lines,
        f"fits: keys and values of {plan.cache_tokens:,} tokens ({sequences} sequences of "
        f"{request.max_model_len:,}); passes of {plan.learner_tokens:,} tokens in the learner",
    ]
