"""Bytes of weights, caches and activations, by hand and against real models."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from tuneloop.errors import InvalidRequest
from tuneloop.gpus import memory
from tuneloop.gpus.memory import GIB
from tuneloop.gpus.shapes import ModelShape, find_shape, read_shape, shape_of, shapes

SMALL = ModelShape(
    layers=2,
    hidden=8,
    heads=4,
    key_value_heads=2,
    head_size=3,
    intermediate=10,
    vocabulary=100,
    tied=False,
)


def test_sizes_by_hand() -> None:
    # Projections 8·(12 + 6 + 6 + 12), an MLP of 3·8·10, two norms of 8; both embeddings; a norm.
    assert SMALL.parameters == 2 * (288 + 240 + 16) + 2 * 800 + 8
    # (8+12) + (8+6) + (8+6) + (12+8) and 3·(8+10), at rank 5, in two layers.
    assert SMALL.lora_parameters(5) == 2 * 5 * (68 + 54)
    assert memory.cache_bytes_per_token(SMALL) == 2 * 2 * 6 * 2
    # 18·8 + 8·10 + 10·12 + 8·6 + 14·5, and 34·8 + 8·10 + 10·(12 + 6) of full weights.
    assert memory.block_bytes_per_token(SMALL, 5) == 462
    assert memory.block_bytes_per_token(SMALL, None) == 532
    activations = partial(memory.activation_bytes, SMALL, 7)
    assert activations(checkpointing=False, lora_rank=5) == 7 * 2 * 462
    assert activations(checkpointing=True, lora_rank=5) == 7 * (2 * 2 * 8 + 462)
    assert activations(checkpointing=True, lora_rank=None) == 7 * (2 * 4 * 8 + 532)
    assert memory.lora_training_bytes(SMALL, 5) == 1220 * 16
    assert memory.full_training_bytes(SMALL) == SMALL.parameters * 18


def test_known_models_have_the_parameters_that_they_are_named_after() -> None:
    billions = {name: shape.parameters / 1e9 for name, shape in shapes.items()}
    assert billions == {
        "smollm2-135m-instruct": pytest.approx(0.1345, rel=0.001),
        "qwen3-0.6b": pytest.approx(0.596, rel=0.001),
        "qwen3-4b": pytest.approx(4.02, rel=0.001),
        "qwen3-8b": pytest.approx(8.19, rel=0.001),
        "qwen3-32b": pytest.approx(32.76, rel=0.001),
        "llama-3.3-70b": pytest.approx(70.55, rel=0.001),
    }


def test_activations_without_checkpointing_need_what_was_found() -> None:
    """16,384 tokens: 31 GiB at 0.6B and 122 at 8B, by an audit of what the blocks save."""
    found = [
        memory.activation_bytes(shapes[name], 16_384, checkpointing=False, lora_rank=16) / GIB
        for name in ("qwen3-0.6b", "qwen3-8b")
    ]
    assert found == [pytest.approx(30.7, abs=0.1), pytest.approx(121.6, abs=0.1)]


def test_the_shape_of_a_folder_is_that_of_its_weights(tiny_policy: Path) -> None:
    from safetensors import safe_open

    with safe_open(tiny_policy / "model.safetensors", "pt") as weights:  # type: ignore[no-untyped-call]
        stored = sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118
    assert read_shape(tiny_policy).parameters == stored


def test_shapes_of_other_families() -> None:
    mixture = shape_of(
        SimpleNamespace(
            num_attention_heads=4,
            num_hidden_layers=2,
            hidden_size=8,
            intermediate_size=99,
            moe_intermediate_size=10,
            num_experts=6,
            num_experts_per_tok=2,
            vocab_size=100,
            model_type="qwen3_moe",
        )
    )
    assert (mixture.experts, mixture.experts_per_token, mixture.intermediate) == (6, 2, 10)
    assert (mixture.head_size, mixture.key_value_heads, mixture.head_norms) == (2, 4, True)
    dense = 2 * (4 * 8 * 8 + 3 * 8 * 10 * 6 + 16 + 4) + 1600 + 8
    assert mixture.parameters == dense


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"num_attention_heads": "many"}'])
def test_a_config_that_is_none_is_refused_by_name(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(InvalidRequest, match=r"config\.json: cannot be read as a decoder's"):
        find_shape(str(tmp_path))


def test_the_text_model_of_a_model_of_images(tmp_path: Path) -> None:
    text = {
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "hidden_size": 8,
        "intermediate_size": 8,
        "vocab_size": 10,
    }
    (tmp_path / "config.json").write_text(json.dumps({"text_config": text, "vision_config": {}}))
    assert find_shape(str(tmp_path)).layers == 1
    with pytest.raises(InvalidRequest, match=r"not one of smollm2-135m-instruct, qwen3-0\.6b"):
        find_shape("qwen9")
