"""Sizes for the chart and for Compose that follow from the model: what `--values` prints."""

import json
from collections.abc import Mapping
from typing import Any

from tuneloop.doctor.memory_plan import plan_for
from tuneloop.errors import InvalidRequest
from tuneloop.gpus.host_memory import HostSizes, host_sizes
from tuneloop.gpus.memory import GIB
from tuneloop.gpus.plan import Plan, PlanRequest
from tuneloop.gpus.shapes import find_shape
from tuneloop.policies import WeightsKind
from tuneloop.supervisor.gpus import shares_of

CPU = "cpu"
HEADROOM = 1.25
"""Limits over requests, and disks over what is computed for them."""


def deployment_values(
    target: str,
    model: str,
    *,
    gpu: str | None,
    gpus: int | None,
    tensor_parallel: int,
    weights: WeightsKind,
) -> str:
    """Return the sizes as JSON for `helm --values`, or as lines for `docker compose --env-file`.

    `target` is `helm` or `compose`, and `gpu` that of a plan, or `cpu`. By default the chart gets
    one GPU more than generation is spread over. Raises `InvalidRequest` for what does not fit or
    cannot be deployed.
    """
    plan = None
    if gpu == CPU:
        request = PlanRequest(shape=find_shape(model), gpu_bytes=(), weights_kind=weights)
    else:
        if gpus is None:
            gpus = 1 if target == "compose" else tensor_parallel + 1
        plan = plan_for(model, gpu=gpu, gpus=gpus, tensor_parallel=tensor_parallel, weights=weights)
        request = plan.request
        if plan.problems:
            raise InvalidRequest(f"{model} does not fit: {'; '.join(plan.problems)}")
    sizes = host_sizes(request, learner_gpus=len(plan.learner_gpus) if plan else 0)
    if target == "helm":
        return json.dumps(helm_values(request, plan, sizes), indent=2)
    variables = compose_variables(request, plan, sizes)
    return "\n".join(f"{name}={value}" for name, value in variables.items())


def helm_values(request: PlanRequest, plan: Plan | None, sizes: HostSizes) -> dict[str, Any]:
    """Return values of the chart, where each process has GPUs of its own."""
    if plan is not None and plan.is_shared:
        raise InvalidRequest(
            "--gpus: on Kubernetes generation and learner do not share a GPU; it takes "
            f"{request.tensor_parallel + 1} or more",
            param="gpus",
        )
    cache = f"{gibibytes(sizes.cache, HEADROOM)}Gi"
    return {
        "weights": {"kind": request.weights_kind.value},
        "generation": {
            **accelerator(len(plan.generation_gpus) if plan else 0),
            "resources": resources(sizes.generation),
            "cache": cache,
        },
        "learner": {
            **accelerator(len(plan.learner_gpus) if plan else 0),
            "resources": resources(sizes.learner),
            "cache": cache,
            "persistence": {"size": f"{gibibytes(sizes.learner_disk, HEADROOM)}Gi"},
        },
    }


def accelerator(gpus: int) -> dict[str, Any]:
    """Return a process's GPUs as values."""
    return {"accelerator": "cuda" if gpus else "cpu", "gpus": gpus}


def resources(parts: Mapping[str, int]) -> dict[str, Any]:
    """Return requests and limits of main memory; other values of the chart stay."""
    total = sum(parts.values())
    return {
        "requests": {"memory": f"{gibibytes(total)}Gi"},
        "limits": {"memory": f"{gibibytes(total, HEADROOM)}Gi"},
    }


def compose_variables(request: PlanRequest, plan: Plan | None, sizes: HostSizes) -> dict[str, str]:
    """Return variables of compose.yaml, where generation and learner share one GPU."""
    if plan is not None and len(request.gpu_bytes) != 1:
        raise InvalidRequest(
            f"--gpus: compose.yaml gives generation and learner one GPU to share, not "
            f"{len(request.gpu_bytes)}",
            param="gpus",
        )
    variables = {
        "COMPOSE_PROFILES": "cuda" if plan else "cpu",
        "TUNELOOP_WEIGHTS_KIND": request.weights_kind.value,
        "TUNELOOP_MEMORY_OF_GENERATION": f"{gibibytes(sum(sizes.generation.values()), HEADROOM)}g",
        "TUNELOOP_MEMORY_OF_LEARNER": f"{gibibytes(sum(sizes.learner.values()), HEADROOM)}g",
    }
    if plan is not None:
        for process, settings in shares_of(plan, ["0"]).settings.items():
            prefix = f"TUNELOOP_{process.upper()}_"
            variables |= {prefix + name: value for name, value in settings.items()}
    return variables


def gibibytes(size: int, factor: float = 1.0) -> int:
    """Return bytes in GiB, rounded up."""
    return -int(-size * factor // GIB)
