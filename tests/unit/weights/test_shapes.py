"""What fits a base model, judged from headers alone."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tuneloop.errors import WeightsRefused
from tuneloop.weights.shapes import base_model_sha256, check_adapter, check_full, tensor_shapes

Q = "model.layers.0.self_attn.q_proj"


def write(folder: Path, tensors: dict[str, tuple[int, ...]], name: str = "model") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {key: np.zeros(shape, dtype=np.float32) for key, shape in tensors.items()}
    save_file(arrays, folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = write(tmp_path / "base", {f"{Q}.weight": (8, 6), "model.embed_tokens.weight": (20, 6)})
    (folder / "config.json").write_text(json.dumps({"hidden_size": 6, "transformers_version": "5"}))
    return folder


def adapter(folder: Path, tensors: dict[str, tuple[int, ...]], **config: object) -> Path:
    write(folder, {f"base_model.model.{k}.weight": v for k, v in tensors.items()}, "adapter_model")
    document = {"peft_type": "LORA", "r": 2} | config
    (folder / "adapter_config.json").write_text(json.dumps(document))
    return folder


def test_shapes_are_read_over_all_files(tmp_path: Path) -> None:
    write(tmp_path, {"a": (2, 3)}, "model-00001-of-00002")
    write(tmp_path, {"b": (4,), "c": ()}, "model-00002-of-00002")
    assert tensor_shapes(tmp_path) == {"a": (2, 3), "b": (4,), "c": ()}
    write(tmp_path, {"b": (4,)}, "model-00003-of-00003")
    with pytest.raises(WeightsRefused, match="b stands in two files"):
        tensor_shapes(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsRefused, match="no safetensors"):
        tensor_shapes(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01\x02",
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"{x",
        struct.pack("<Q", 12) + b'{"w": {"a":1',
        struct.pack("<Q", 16) + b'{"w": {"shape"1}',
        struct.pack("<Q", 26) + b'{"w": {"shape": "quatre"}}',
        struct.pack("<Q", 2) + b"{}" + b"trailing",
    ],
)
def test_a_malformed_file_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(WeightsRefused, match=r"model\.safetensors"):
        tensor_shapes(tmp_path)


def test_full_weights_must_have_the_tensors_of_the_base(base: Path, tmp_path: Path) -> None:
    good = {f"{Q}.weight": (8, 6), "model.embed_tokens.weight": (20, 6)}
    check_full(base, write(tmp_path / "same", good))
    # A tied head may stand in the file or not.
    check_full(base, write(tmp_path / "tied", good | {"lm_head.weight": (20, 6)}))
    with pytest.raises(WeightsRefused, match=r"q_proj.*shape .8, 7., the base model has .8, 6."):
        check_full(base, write(tmp_path / "shape", good | {f"{Q}.weight": (8, 7)}))
    with pytest.raises(WeightsRefused, match=r"q_proj.*missing"):
        check_full(base, write(tmp_path / "less", {"model.embed_tokens.weight": (20, 6)}))
    with pytest.raises(WeightsRefused, match="extra: not a tensor of the base"):
        check_full(base, write(tmp_path / "more", good | {"extra": (1,)}))


def test_an_adapter_must_fit_its_layers(base: Path, tmp_path: Path) -> None:
    good = {f"{Q}.lora_A": (2, 6), f"{Q}.lora_B": (8, 2)}
    head = {"lm_head.lora_A": (2, 6), "lm_head.lora_B": (20, 2)}
    check_adapter(base, adapter(tmp_path / "good", good | head), max_rank=2)
    with pytest.raises(WeightsRefused, match="rank 2, at most 1"):
        check_adapter(base, tmp_path / "good", max_rank=1)


@pytest.mark.parametrize(
    ("tensors", "config", "problem"),
    [
        ({f"{Q}.lora_A": (2, 7), f"{Q}.lora_B": (8, 2)}, {}, "q_proj.*do not fit"),
        ({f"{Q}.lora_A": (2, 6), f"{Q}.lora_B": (6, 2)}, {}, "q_proj.*do not fit"),
        ({f"{Q}.lora_A": (2, 6), f"{Q}.lora_B": (8, 3)}, {}, "q_proj.*do not fit"),
        ({f"{Q}.lora_A": (0, 6), f"{Q}.lora_B": (8, 0)}, {}, "q_proj.*do not fit"),
        ({f"{Q}.lora_A": (12,), f"{Q}.lora_B": (16,)}, {}, "q_proj.*do not fit"),
        ({f"{Q}.lora_A": (2, 6)}, {}, "q_proj: only one half"),
        ({"model.other.lora_A": (2, 6), "model.other.lora_B": (8, 2)}, {}, "other.*no such layer"),
        ({f"{Q}.modules_to_save": (8, 6)}, {}, "not the A or B half"),
        ({f"{Q}.lora_A": (2, 6), f"{Q}.lora_B": (8, 2)}, {"use_dora": True}, "use_dora"),
        ({f"{Q}.lora_A": (2, 6), f"{Q}.lora_B": (8, 2)}, {"peft_type": "IA3"}, "peft_type"),
        ({f"{Q}.lora_A": (2, 6), f"{Q}.lora_B": (8, 2)}, {"fan_in_fan_out": True}, "do not fit"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    base: Path,
    tmp_path: Path,
    tensors: dict[str, tuple[int, ...]],
    config: dict[str, object],
    problem: str,
) -> None:
    with pytest.raises(WeightsRefused, match=problem):
        check_adapter(base, adapter(tmp_path / "bad", tensors, **config), max_rank=8)


def test_transposed_layers_of_gpt2_fit(tmp_path: Path) -> None:
    gpt2 = write(tmp_path / "base", {"h.0.attn.c_attn.weight": (6, 18)})
    name = "transformer.h.0.attn.c_attn"
    tensors = {f"{name}.lora_A": (2, 6), f"{name}.lora_B": (18, 2)}
    check_adapter(gpt2, adapter(tmp_path / "a", tensors, fan_in_fan_out=True), max_rank=2)


def test_an_adapter_without_configuration_is_refused(base: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "a", {"x": (1,)})
    with pytest.raises(WeightsRefused, match=r"adapter_config\.json"):
        check_adapter(base, folder, max_rank=8)
    (folder / "adapter_config.json").write_text("[1]")
    with pytest.raises(WeightsRefused, match="not a JSON object"):
        check_adapter(base, folder, max_rank=8)


def test_the_base_model_hash_is_of_what_must_match(base: Path) -> None:
    before = base_model_sha256(base)
    (base / "config.json").write_text(json.dumps({"transformers_version": "6", "hidden_size": 6}))
    assert base_model_sha256(base) == before
    write(base, {f"{Q}.weight": (8, 6), "model.embed_tokens.weight": (21, 6)})
    changed = base_model_sha256(base)
    assert changed != before
    (base / "config.json").write_text(json.dumps({"hidden_size": 7}))
    assert base_model_sha256(base) not in (before, changed)


def test_a_peft_adapter_of_a_real_model_fits(tiny_policy: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_policy)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    check_adapter(tiny_policy, tmp_path / "adapter", max_rank=4)
    AutoModelForCausalLM.from_pretrained(tiny_policy).save_pretrained(tmp_path / "full")
    check_full(tiny_policy, tmp_path / "full")
