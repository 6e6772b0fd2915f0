"""Bytes of weights, caches and activations, by hand and against real models."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.tiny_models import SMALL_SHAPE as SMALL

from tuneloop.errors import InvalidRequest
from tuneloop.gpus import memory
from tuneloop.gpus.memory import GIB
from tuneloop.gpus.quantization import quantization_of
from tuneloop.gpus.shapes import find_shape, read_shape, shape_of, shapes


def test_sizes_by_hand() -> None:
    # Projections 8·(12 + 6 + 6 + 12), an MLP of 3·8·10, two norms of 8; both embeddings; a norm.
    assert SMALL.parameters == 2 * (288 + 240 + 16) + 2 * 800 + 8
    # (8+12) + (8+6) + (8+6) + (12+8) and 3·(8+10), at rank 5, in two layers.
    assert SMALL.lora_parameters(5) == 2 * 5 * (68 + 54)
    assert memory.cache_bytes_per_token(SMALL) == 2 * 2 * 6 * 2
    # 18·8 + 8·10 + 10·12 + 8·6 + 14·5, and 16·8 + 8·10 + 10·(12 + 6) of full weights.
    assert memory.block_bytes_per_token(SMALL, 5) == 462
    assert memory.block_bytes_per_token(SMALL, None) == 388
    activations = partial(memory.activation_bytes, SMALL, 7)
    assert activations(checkpointing=False, lora_rank=5) == 7 * 2 * 462
    assert activations(checkpointing=True, lora_rank=5) == 7 * (2 * 2 * 8 + 462)
    assert activations(checkpointing=True, lora_rank=None) == 7 * (2 * 2 * 8 + 388)
    assert memory.lora_training_bytes(SMALL, 5) == 1220 * 16
    assert memory.full_training_bytes(SMALL) == SMALL.parameters * 18
    assert memory.open_batch_bytes(1220) == 1220 * 16


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


@pytest.mark.parametrize(
    ("found", "bits", "learner_bits"),
    [
        # 128 weights share a float16 scale and a zero point of 4 bits.
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 4 + 20 / 128, 16),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 8, 16),
        # Blocks of 128 x 128 share a float32 scale.
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8 + 32 / 128**2, 16),
        ({"quant_method": "mxfp4"}, 4.25, 16),
        # 64 weights share a float32 scale, or one of 8 bits, of which 256 share a float32.
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.5, 4.5),
        (
            {
                "quant_method": "bitsandbytes",
                "load_in_4bit": True,
                "bnb_4bit_use_double_quant": True,
            },
            4 + 1 / 8 + 1 / 512,
            4 + 1 / 8 + 1 / 512,
        ),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8, 8),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {"weights": {"num_bits": 4, "group_size": 32, "symmetric": False}}
                },
            },
            4 + 20 / 32,
            16,
        ),
        ({"quant_method": "never-heard-of"}, 16, 16),
    ],
)
def test_bytes_of_quantized_weights_by_hand(
    found: dict[str, object], bits: float, learner_bits: float
) -> None:
    quantization = quantization_of({"quantization_config": found})
    assert quantization is not None
    assert quantization.stored_bits == bits
    shape = replace(SMALL, quantization=quantization)
    # Of 2·(288 + 240) weights in linear layers; embeddings and norms stay in 16 bits.
    others = 2 * (2 * 16 + 2 * 800 + 8)
    assert memory.weight_bytes(shape) == others + int(1056 * bits / 8)
    assert memory.learner_weight_bytes(shape) == others + int(1056 * learner_bits / 8)
    assert memory.weight_bytes(SMALL) == memory.learner_weight_bytes(SMALL) == others + 2112


def test_the_quantization_of_a_name_and_of_a_folder(tiny_policy: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_policy / "config.json").read_text())
    assert read_shape(tiny_policy).quantization is None
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert find_shape(str(tmp_path)).quantization == find_shape("Qwen/Qwen3-8B-AWQ").quantization
    # 6.946 billion weights in linear layers at 4.156 bits, 1.245 billion others at 16.
    awq = memory.weight_bytes(find_shape("qwen3-8b-awq"))
    assert awq == pytest.approx(6.946e9 * 4.15625 / 8 + 1.245e9 * 2, rel=0.001)
    config["quantization_config"] = {"quant_method": "compressed-tensors"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidRequest, match="cannot be read as a decoder's: 'config_groups'"):
        read_shape(tmp_path)


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
