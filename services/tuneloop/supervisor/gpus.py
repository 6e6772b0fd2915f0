"""Gives each process its GPUs, and its share of one that two use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneloop.errors import InvalidRequest, SettingsError
from tuneloop.gpus.devices import DriverError, Gpu, find_gpus
from tuneloop.gpus.memory import GIB
from tuneloop.gpus.plan import MARGIN, Plan, PlanRequest, make_plan
from tuneloop.gpus.shapes import read_shape
from tuneloop.policies import WeightsKind

VISIBLE = "CUDA_VISIBLE_DEVICES"
TENSOR_PARALLEL = "TUNELOOP_GENERATION_TENSOR_PARALLEL"
OWN_SHARES = ("TUNELOOP_GENERATION_KV_CACHE_GIB", "TUNELOOP_LEARNER_MEMORY_GIB")
"""Where both are set, a shared GPU is divided as they say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuShares:
    """What the processes get."""

    plan: Plan
    settings: Mapping[str, Mapping[str, str]]
    """By process, as `TUNELOOP_<PROCESS>_…` without the prefix."""
    variables: Mapping[str, Mapping[str, str]]
    """By process, as they are."""


def share_gpus(
    model: Path, weights: WeightsKind, environment: Mapping[str, str]
) -> GpuShares | None:
    """Divide this machine's GPUs; None without any, or if the learner is told to use the CPU.

    Raises `SettingsError` with the numbers if the model does not fit.
    """
    if environment.get("TUNELOOP_LEARNER_DEVICE", "auto") == "cpu":
        return None
    try:
        gpus = find_gpus()
    except DriverError as error:
        raise SettingsError(f"nvidia-smi fails: {error}; see tuneloop doctor") from error
    visible = visible_gpus(gpus, environment)
    if not visible:
        return None
    try:
        shape = read_shape(model)
    except InvalidRequest as error:
        raise SettingsError(error.message, param="model") from error
    plan = make_plan(
        PlanRequest(
            shape=shape,
            gpu_bytes=[gpu.memory for _, gpu in visible],
            weights_kind=weights,
            tensor_parallel=tensor_parallel(environment),
        )
    )
    if plan.problems and not all(name in environment for name in OWN_SHARES):
        raise SettingsError(
            f"{model.name} does not fit: {'; '.join(plan.problems)}. Take a smaller model or more "
            f"GPUs, train on the CPU (TUNELOOP_LEARNER_DEVICE=cpu), or divide the memory yourself "
            f"({' and '.join(OWN_SHARES)})",
            param="model",
        )
    return shares_of(plan, [name for name, _ in visible])


def tensor_parallel(environment: Mapping[str, str]) -> int:
    """Return the GPUs that generation is spread over. Raises `SettingsError`."""
    wanted = environment.get(TENSOR_PARALLEL, "1")
    if not wanted.isdecimal() or int(wanted) < 1:
        raise SettingsError(
            f"{TENSOR_PARALLEL}={wanted!r}: must be a number of GPUs, 1 or more",
            param=TENSOR_PARALLEL,
        )
    return int(wanted)


def visible_gpus(gpus: Sequence[Gpu], environment: Mapping[str, str]) -> list[tuple[str, Gpu]]:
    """Return the GPUs that the user leaves to us, by the names that CUDA takes."""
    named = environment.get(VISIBLE)
    if named is None:
        return [(str(number), gpu) for number, gpu in enumerate(gpus)]
    numbers = [name.strip() for name in named.split(",") if name.strip()]
    return [(n, gpus[int(n)]) for n in numbers if n.isdecimal() and int(n) < len(gpus)]


def shares_of(plan: Plan, names: Sequence[str]) -> GpuShares:
    """Return a plan as settings and variables of the processes."""

    def named(numbers: Sequence[int]) -> str:
        return ",".join(names[number] for number in numbers)

    generation: dict[str, str] = {}
    learner: dict[str, str] = {}
    if plan.is_shared:
        [gpu] = plan.learner_gpus
        total = plan.request.gpu_bytes[gpu]
        own = plan.used(gpu, "generation")
        # vLLM starts only if so much is free, and keeps to the bytes of its cache.
        generation["GPU_MEMORY_UTILIZATION"] = f"{own / total:.3f}"
        generation["KV_CACHE_GIB"] = f"{plan.cache_bytes / GIB:.2f}"
        learner["MEMORY_GIB"] = f"{(total - own - MARGIN) / GIB:.2f}"
    return GpuShares(
        plan=plan,
        settings={"generation": generation, "learner": learner},
        variables={
            "generation": {VISIBLE: named(plan.generation_gpus)},
            "learner": {
                VISIBLE: named(plan.learner_gpus),
                # Sequences of all lengths would break the memory into pieces.
                "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
            },
            "reward": {VISIBLE: named(plan.learner_gpus[:1])},
        },
    )
