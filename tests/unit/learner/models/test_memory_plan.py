"""How many tokens fit into a GPU: the arithmetic by hand, and against tensors that are really kept.

What needs a GPU (the peak of a pass) is given here; nothing of it was run on one.
"""

import functools
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from tuneloop.gpus.memory import GIB, activation_bytes
from tuneloop.gpus.shapes import read_shape, shape_of
from tuneloop.learner.models import memory
from tuneloop.learner.models.architecture import layers_of
from tuneloop.learner.models.batch import sequence_length
from tuneloop.learner.models.lora import add_adapter
from tuneloop.learner.models.memory import (
    PassMemory,
    layers_that_fit,
    measured_pass,
    probe_sequences,
    token_budget_of,
    tokens_that_fit,
    trained_bytes,
)
from tuneloop.learner.models.packing import packed_length
from tuneloop.learner.models.policy import PolicyModel
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.settings import TrainerSettings


def test_what_fits_by_hand() -> None:
    taken = PassMemory(fixed=2 * GIB, per_token=1024.0 * 1024)
    # 14 GiB free, 2 kept back, 2 for the pass: 10 GiB at 1 MiB.
    assert tokens_that_fit(14 * GIB, taken) == 10_240
    assert tokens_that_fit(14 * GIB - 1, taken) == 10_112
    assert tokens_that_fit(80 * GIB, taken) == 16_384
    # Never less than a sequence may have to be tried with, and never the margin.
    assert tokens_that_fit(4 * GIB, taken) == tokens_that_fit(0, taken) == 64
    assert tokens_that_fit(4 * GIB + 200 * 1024 * 1024, taken) == 128


def test_what_the_optimizer_takes() -> None:
    assert trained_bytes(1_000, has_masters=False, keeps_open_batch=False) == 12_000
    assert trained_bytes(1_000, has_masters=True, keeps_open_batch=False) == 16_000
    assert trained_bytes(1_000, has_masters=False, keeps_open_batch=True) == 28_000
    assert trained_bytes(1_000, has_masters=True, keeps_open_batch=True) == 32_000


def test_a_line_through_two_passes() -> None:
    expected = PassMemory(fixed=1, per_token=1.0)
    found = measured_pass(lambda tokens: 5_000 + 70 * tokens, expected)
    assert found == PassMemory(fixed=5_000, per_token=70.0)
    assert measured_pass(lambda tokens: 7, expected) == expected

    def run_out(tokens: int) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert measured_pass(run_out, expected) == expected


def test_layers_that_keep_their_activations_by_hand() -> None:
    """Of 5 layers, 1000 tokens: 1 MB a token with checkpoints; 5 MB without, 1 MB more by layer."""
    checkpointed = PassMemory(fixed=1_000_000_000, per_token=1e6)
    kept = PassMemory(fixed=1_000_000_000, per_token=5e6)

    def fitting(spare: float) -> int:
        free = int(spare / memory.USED) + memory.MARGIN_BYTES + 1
        return layers_that_fit(free, 1000, 5, checkpointed=checkpointed, kept=kept)

    # The pass itself takes 2 GB, of which one is for a chunk of logits.
    assert [fitting(n * 1e9) for n in (0.5, 2, 2.9, 3, 5.5, 7, 50)] == [0, 0, 0, 1, 3, 5, 5]
    same = layers_that_fit(100 * GIB, 1000, 5, checkpointed=kept, kept=checkpointed)
    assert same == 0


@pytest.mark.parametrize(("free_gib", "expected"), [(100, 2), (32, 1), (20, 0), (10, 0)])
def test_room_that_passes_leave_is_given_to_activations(
    tiny_policy: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    free_gib: int,
    expected: int,
) -> None:
    """16,384 tokens of 1 MiB are 16 GiB; each of two layers would take 10.4 GiB more."""
    model = PolicyModel(tiny_policy, gradient_checkpointing=True)
    model.selects_layers = True
    layers = layers_of(model._model)

    def checkpointed() -> int:
        return sum(isinstance(layer.forward, functools.partial) for layer in layers)

    def peak(model: PolicyModel, tokens: int) -> int:
        return tokens * {2: 1024, 0: 1690}[checkpointed()] * 1024

    monkeypatch.setattr(memory, "free_device_bytes", lambda: (free_gib * GIB, 128 * GIB))
    monkeypatch.setattr(memory, "_peak_of_pass", peak)
    with caplog.at_level("INFO"):
        budget = token_budget_of(model, keeps_open_batch=False, ranks=1)
    assert checkpointed() == 2 - expected
    assert (budget == 16_384) == (free_gib > 10)
    assert (f"{expected} of 2 layers keep their activations" in caplog.text) == (free_gib > 10)
    token_budget_of(model, keeps_open_batch=False, ranks=2)
    assert checkpointed() == 2 - expected


@pytest.mark.parametrize("lora", [True, False])
def test_the_arithmetic_is_what_a_layer_keeps(lora: bool) -> None:
    """Tensors saved for the backward pass by one layer more, in bfloat16 as on a GPU."""
    tokens = 192
    kept = [kept_bytes(layers, tokens, lora=lora) for layers in (1, 2)]
    shape = shape_of(config(1))
    rank = 4 if lora else None
    expected = activation_bytes(shape, tokens, checkpointing=False, lora_rank=rank)
    assert kept[1] - kept[0] == pytest.approx(expected, rel=0.12)


def test_the_learner_and_the_plan_see_the_same_sizes(tmp_path: Path) -> None:
    config(3).save_pretrained(tmp_path)
    assert shape_of(config(3)) == read_shape(tmp_path)


def config(layers: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
    )


def kept_bytes(layers: int, tokens: int, *, lora: bool) -> int:
    model = AutoModelForCausalLM.from_config(config(layers), dtype=torch.bfloat16)
    if lora:
        add_adapter(model, 4, 8, 0)
    sizes: dict[int, int] = {}
    held: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        # Weights, and their copies under autocast, are there whatever the number of tokens.
        if tokens in tensor.shape:
            held.append(tensor)
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.zeros(1, tokens, dtype=torch.int64)
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=lora),
    ):
        model.base_model(ids, use_cache=False)
    return sum(sizes.values())


@pytest.mark.parametrize("tokens", [5, 256, 1024])
def test_a_probe_has_the_tokens_it_says(tokens: int) -> None:
    sequences = probe_sequences(tokens, max_length=300)
    assert sum(map(sequence_length, sequences)) == tokens
    assert max(map(sequence_length, sequences)) <= 300
    # Nothing is shared.
    assert packed_length(sequences) == tokens - len(sequences)


@pytest.fixture
def gpu_of_3_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_device_bytes", lambda: (3 * GIB, 4 * GIB))
    monkeypatch.setattr(memory, "_peak_of_pass", lambda model, tokens: tokens * (1 << 20))


@pytest.mark.usefixtures("gpu_of_3_gib")
def test_a_trainer_takes_what_fits_unless_it_is_told(tiny_policy: Path) -> None:
    """1 GiB beside the margin, at 1 MiB a token; the adapter's optimizer takes a little."""
    found = PolicyTrainer(tiny_policy, TrainerSettings(threads=1)).token_budget
    assert found in (896, 1024 - 128)
    told = PolicyTrainer(tiny_policy, TrainerSettings(threads=1, token_budget=500))
    assert told.token_budget == 500


def test_on_a_gpu_checkpointing_and_compilation_are_on_by_default() -> None:
    settings = TrainerSettings()
    assert settings.gradient_checkpointing is None
    assert settings.compile is None


def test_a_process_with_a_limit_of_its_own_counts_on_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half of 16 GiB, 3 of them held already: 5 are left, though the device has 12 free."""
    answers = {
        "is_available": True,
        "is_initialized": True,
        "mem_get_info": (12 * GIB, 16 * GIB),
        "memory_allocated": 3 * GIB,
        "memory_reserved": 4 * GIB,
        "get_per_process_memory_fraction": 0.5,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    assert memory.free_device_bytes() == (5 * GIB, 16 * GIB)
