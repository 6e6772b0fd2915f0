"""Who gets which GPU: nothing is promised twice, and what does not fit is told in numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.gpus.devices import gpu_mebibytes
from tuneloop.gpus.memory import GIB
from tuneloop.gpus.plan import LEAST_TOKENS, MARGIN, MOST_TOKENS, PlanRequest, make_plan
from tuneloop.gpus.shapes import find_shape, shapes
from tuneloop.policies import WeightsKind

H100 = gpu_mebibytes["h100"] << 20


def request(model: str, kind: str, gpus: int = 1, parallel: int = 1) -> PlanRequest:
    return PlanRequest(
        shape=find_shape(model),
        gpu_bytes=[H100] * gpus,
        weights_kind=WeightsKind(kind),
        tensor_parallel=parallel,
    )


@pytest.mark.parametrize(
    ("model", "kind", "gpus", "parallel", "missing"),
    [
        ("qwen3-0.6b", "lora", 1, 1, ""),
        ("qwen3-0.6b", "full", 1, 1, ""),
        ("qwen3-8b", "lora", 1, 1, ""),
        ("qwen3-8b", "full", 1, 1, "learner optimizer and reference 137.3"),
        ("qwen3-8b", "full", 5, 1, ""),
        ("qwen3-32b", "lora", 3, 2, ""),
        ("qwen3-32b", "full", 3, 2, "optimizer and reference 549"),
        ("llama-3.3-70b", "lora", 5, 4, "learner on GPU 4"),
        ("qwen3-32b", "lora", 1, 1, "learner weights 61"),
        ("qwen3-32b-awq", "lora", 1, 1, "generation weights 18.0"),
        ("qwen3-32b-bnb-4bit", "lora", 1, 1, ""),
        ("qwen3-8b-fp8", "full", 1, 1, "so only adapters can be trained"),
        ("llama-3.3-70b", "lora", 2, 4, "tensor parallel over 4 GPUs, of which there are 2"),
    ],
)
def test_what_fits_and_why_the_rest_does_not(
    model: str, kind: str, gpus: int, parallel: int, missing: str
) -> None:
    plan = make_plan(request(model, kind, gpus, parallel))
    assert bool(plan.problems) == bool(missing)
    assert missing in "; ".join(plan.problems)
    assert plan.is_shared == (gpus <= parallel)


def test_the_learner_has_the_gpus_that_generation_does_not() -> None:
    plan = make_plan(request("qwen3-8b", "lora", gpus=4, parallel=2))
    assert (plan.generation_gpus, plan.learner_gpus) == ((0, 1), (2, 3))
    assert plan.used(0, "learner") == plan.used(3, "generation") == 0
    assert plan.learner_tokens == MOST_TOKENS


def test_packed_weights_are_trained_on_one_gpu() -> None:
    """They are not sharded; what is dequantized is."""
    packed = make_plan(request("llama-3.3-70b-bnb-4bit", "lora", gpus=3))
    assert (packed.learner_gpus, packed.used(2), packed.problems) == ((1,), 0, ())
    dequantized = make_plan(request("qwen3-8b-awq", "lora", gpus=3))
    assert dequantized.learner_gpus == (1, 2)


@given(
    model=st.sampled_from(sorted(shapes)),
    kind=st.sampled_from(list(WeightsKind)),
    memory=st.lists(st.integers(8 * GIB, 200 * GIB), min_size=1, max_size=8),
    parallel=st.integers(1, 4),
)
def test_a_plan_that_fits_is_within_every_gpu(
    model: str, kind: WeightsKind, memory: list[int], parallel: int
) -> None:
    plan = make_plan(
        PlanRequest(
            shape=shapes[model], gpu_bytes=memory, weights_kind=kind, tensor_parallel=parallel
        )
    )
    assert all(part.size >= 0 for part in plan.parts)
    if plan.problems:
        return
    for gpu, total in enumerate(memory):
        spare = MARGIN if plan.is_shared else 0.1 * total
        assert plan.used(gpu) <= total - spare + 1
    assert plan.learner_tokens >= LEAST_TOKENS
    assert plan.cache_tokens >= plan.request.max_model_len
