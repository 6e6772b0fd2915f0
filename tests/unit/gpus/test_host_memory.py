"""Main memory and disk, by hand for a small shape, and against the defaults they count with."""

from dataclasses import replace

from support.tiny_models import SMALL_SHAPE as SMALL

from tuneloop.gpus import host_memory
from tuneloop.gpus.host_memory import host_sizes
from tuneloop.gpus.memory import GIB
from tuneloop.gpus.plan import PlanRequest
from tuneloop.gpus.quantization import quantization_of
from tuneloop.gpus.shapes import find_shape
from tuneloop.learner.settings import LearnerSettings
from tuneloop.learner.trainer.settings import TrainerSettings
from tuneloop.policies import WeightsKind
from tuneloop.weights import filesystem

PARAMETERS, OF_ADAPTER = 2696, 1220
"""Of `SMALL`, and of its adapter of rank 5; see test_memory.py."""


def request(kind: str, gpus: int, *, parallel: int = 1) -> PlanRequest:
    return PlanRequest(
        shape=SMALL,
        gpu_bytes=[GIB] * gpus,
        weights_kind=WeightsKind(kind),
        tensor_parallel=parallel,
        lora_rank=5,
    )


def test_generation_on_gpus() -> None:
    assert host_sizes(request("lora", 2), learner_gpus=1).generation == {
        "processes": 2 * 2 * GIB,
        "load buffer": 100 * 8 * 2,
        "6 adapters": 6 * OF_ADAPTER * 2,
    }
    # A process for each of two ranks, which both stage all of the weights.
    assert host_sizes(request("full", 3, parallel=2), learner_gpus=1).generation == {
        "processes": 4 * 2 * GIB,
        "load buffer": 2 * 100 * 8 * 2,
        "staged weights": 2 * PARAMETERS * 2,
    }


def test_generation_on_a_cpu() -> None:
    weights = (PARAMETERS + 800) * 4
    always = {
        "processes": 3 * 3 * GIB // 4,
        "weights": weights,
        "keys and values": GIB,
        "logits": 256 * 100 * 4 * 2,
    }
    adapters = {"6 adapters": 2 * 6 * OF_ADAPTER * 4}
    assert host_sizes(request("lora", 0), learner_gpus=0).generation == always | adapters
    twin = {"twin": weights}
    assert host_sizes(request("full", 0), learner_gpus=0).generation == always | twin
    # 4 bits of 1056 weights in linear layers, a scale of 32 bits for 64 of them; 16 of the others.
    packed = quantization_of(
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    )
    stored = replace(request("lora", 0), shape=replace(SMALL, quantization=packed))
    found = host_sizes(stored, learner_gpus=0).generation["weights"]
    assert found == 1640 * 2 + 1056 * 4.5 / 8 + 800 * 2


def test_the_learner_on_gpus() -> None:
    always = {"processes": 2 * GIB, "reward model": GIB // 2}
    # Masters, two moments, the gradient of an open batch, and a file of two of them.
    saved = {"checkpoint": OF_ADAPTER * 24, "version": 2 * OF_ADAPTER * 4}
    assert host_sizes(request("lora", 2), learner_gpus=1).learner == always | saved
    full = host_sizes(request("full", 3), learner_gpus=2).learner
    assert full == always | {
        "processes": 4 * GIB,
        "checkpoint": PARAMETERS * 24,
        "version": 2 * PARAMETERS * 2,
    }
    # To load a large model takes more than to save an adapter.
    large = find_shape("qwen3-8b")
    loaded = host_sizes(replace(request("lora", 2), shape=large), learner_gpus=1).learner
    assert loaded == always | {"weights being loaded": large.parameters * 2}


def test_the_learner_on_a_cpu() -> None:
    always = {
        "process": 3 * GIB // 4,
        "reward model": GIB // 2,
        "weights": PARAMETERS * 4,
        "logits": 1024 * 100 * 4 * 2,
    }
    # A token takes 462 bytes in each of two blocks in bfloat16 (test_memory.py), 388 of full.
    assert host_sizes(request("lora", 0), learner_gpus=0).learner == always | {
        "adapter and its optimizer": OF_ADAPTER * 16,
        "open batch": OF_ADAPTER * 16,
        "1024 tokens": 1024 * 2 * 462 * 2,
        "checkpoint": OF_ADAPTER * 24,
        "version": 2 * OF_ADAPTER * 4,
    }
    assert host_sizes(request("full", 0), learner_gpus=0).learner == always | {
        "optimizer and reference": PARAMETERS * 16,
        "open batch": PARAMETERS * 16,
        "1024 tokens": 1024 * 2 * 388 * 2,
        "checkpoint": PARAMETERS * 24,
        "version": 2 * PARAMETERS * 4,
    }


def test_disks() -> None:
    lora = host_sizes(request("lora", 2), learner_gpus=1)
    assert lora.cache == 4 * GIB + 9 * OF_ADAPTER * 4
    # The first checkpoint, three later ones, and two versions.
    assert lora.learner_disk == 2 * GIB + OF_ADAPTER * (4 + 3 * 16 + 2 * 4)
    full = host_sizes(request("full", 2), learner_gpus=1)
    assert full.cache == 4 * GIB + 3 * PARAMETERS * 2
    assert full.learner_disk == 2 * GIB + PARAMETERS * (4 + 3 * 16 + 2 * 2)


def test_what_is_counted_with_are_the_defaults() -> None:
    assert host_memory.CACHED_VERSIONS == filesystem.CACHED_VERSIONS
    kept = LearnerSettings.model_fields["keep_checkpoints"].default
    assert kept == host_memory.KEPT_CHECKPOINTS
    assert TrainerSettings(device="cpu").tokens_at_once == host_memory.CPU_TOKENS
