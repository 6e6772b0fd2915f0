"""What vLLM is started with: on a CPU as tried, on GPUs as its options mean it."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.quantized_models import quantize

from tuneloop.generation.vllm.engine import VllmOptions, engine_arguments
from tuneloop.policies import WeightsKind

pytestmark = pytest.mark.vllm


def options(model: Path) -> VllmOptions:
    return VllmOptions(
        model=model,
        weights_kind=WeightsKind.LORA,
        max_model_len=None,
        max_lora_rank=16,
        max_adapters=6,
        kv_cache_gib=None,
        gpu_memory_utilization=0.9,
        threads=0,
    )


def test_on_a_cpu(tiny_policy: Path) -> None:
    arguments = engine_arguments(options(tiny_policy))
    assert (arguments.dtype, arguments.kv_cache_memory_bytes) == ("float32", 2**30)
    assert arguments.enforce_eager
    # Streams wait for the pass of another's long prompt.
    assert arguments.max_num_batched_tokens == 256


def test_quantized_weights_are_computed_with_in_bfloat16(tiny_policy: Path, tmp_path: Path) -> None:
    """Their kernels refuse float32, which is what a CPU has otherwise."""
    base = quantize(tiny_policy, tmp_path / "base", "awq")
    assert engine_arguments(options(base)).dtype == "bfloat16"


def test_on_gpus(tiny_policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "is_cpu", lambda _: False)
    chosen = replace(options(tiny_policy), tensor_parallel=2, pipeline_parallel=3, max_sequences=64)
    arguments = engine_arguments(chosen)
    assert (arguments.tensor_parallel_size, arguments.pipeline_parallel_size) == (2, 3)
    assert (arguments.max_num_seqs, arguments.max_num_batched_tokens) == (64, 8192)
    assert (arguments.enable_lora, arguments.max_loras, arguments.max_lora_rank) == (True, 6, 16)
    assert not arguments.enforce_eager
    # Its share of the GPU decides, unless the cache's bytes are given.
    assert (arguments.gpu_memory_utilization, arguments.kv_cache_memory_bytes) == (0.9, None)
    shared = replace(chosen, kv_cache_gib=12.5, gpu_memory_utilization=0.4)
    assert engine_arguments(shared).kv_cache_memory_bytes == 12.5 * 2**30
