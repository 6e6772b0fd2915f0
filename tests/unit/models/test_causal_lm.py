"""Quantized folders load as what their integers stand for; what cannot be loaded says why."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.quantized_models import FORMATS, quantize, quantize_bitsandbytes
from torch import Tensor

from tuneloop.errors import SettingsError
from tuneloop.models.causal_lm import check_base, load_causal_lm
from tuneloop.models.dequantization import awq_weight, gptq_weight, unpacked
from tuneloop.policies import WeightsKind
from tuneloop.weights.shapes import layer_shapes, tensor_shapes

CPU = torch.device("cpu")


def words(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def test_integers_are_unpacked_lowest_bits_first() -> None:
    assert unpacked(words(0x76543210).view(1, 1), 4, 1).tolist() == [list(range(8))]
    assert unpacked(words(-1, 0).view(2, 1), 4, 0)[:, 0].tolist() == [15] * 8 + [0] * 8
    assert unpacked(words(0x03020100).view(1, 1), 8, 1).tolist() == [[0, 1, 2, 3]]


def test_awq_by_hand() -> None:
    # One input, eight outputs 0 to 7, whose neighbours are interleaved; zero points of 2.
    weight = awq_weight(
        words(0x75316420).view(1, 1), words(0x22222222).view(1, 1), torch.ones(1, 8)
    )
    assert weight.tolist() == [[-2.0], [-1.0], [0.0], [1.0], [2.0], [3.0], [4.0], [5.0]]


def test_gptq_by_hand() -> None:
    # Eight inputs of one output (of eight; the others are 0), in two groups that take turns.
    qweight = torch.zeros(1, 8, dtype=torch.int32)
    qweight[0, 0] = 0x76543210
    qzeros = words(0x00000000, 0x00000002).view(2, 1)
    scales = torch.tensor([[1.0], [0.5]]).expand(2, 8)
    turns = words(0, 1, 0, 1, 0, 1, 0, 1)
    weight = gptq_weight(qweight, qzeros, scales, turns, bits=4, zero_offset=1)
    # Zero points 0 + 1 and 2 + 1: 0-1, (1-3)/2, 2-1, (3-3)/2, …
    assert weight[0].tolist() == [-1.0, -1.0, 1.0, 0.0, 3.0, 1.0, 5.0, 2.0]
    later = gptq_weight(qweight, qzeros, scales, turns, bits=4, zero_offset=0)
    assert later[0].tolist() == [0.0, -0.5, 2.0, 0.5, 4.0, 1.5, 6.0, 2.5]


@pytest.mark.parametrize("name", FORMATS)
def test_a_quantized_folder_is_a_plain_model_of_nearly_the_same_weights(
    tiny_policy: Path, tmp_path: Path, name: str
) -> None:
    folder = quantize(tiny_policy, tmp_path / name, name)
    found = load_causal_lm(folder, torch.float32, CPU)
    plain = load_causal_lm(tiny_policy, torch.float32, CPU)
    assert getattr(found.config, "quantization_config", None) is None
    weights = found.state_dict()
    assert weights.keys() == plain.state_dict().keys()
    for tensor_name, weight in load_file(tiny_policy / "model.safetensors").items():
        # In groups of 32 normal numbers a step of 4 bits is 0.27 of their deviation, or a little
        # more with scales of one sign, and a rounding error 0.29 of a step. E4M3 rounds to 6 %.
        off = (weights[tensor_name] - weight).norm() / weight.norm()
        assert off < (0.12 if "proj" in tensor_name else 1e-6), tensor_name
    tokens = torch.tensor([[5, 9, 20, 3, 7]])
    difference = (found(tokens).logits - plain(tokens).logits).abs().max()
    assert 0 < difference < 0.2


@pytest.mark.parametrize("name", FORMATS)
def test_shapes_are_those_of_the_unpacked_layers(
    tiny_policy: Path, tmp_path: Path, name: str
) -> None:
    shapes = layer_shapes(quantize(tiny_policy, tmp_path / name, name))
    plain = tensor_shapes(tiny_policy)
    assert {layer: shapes[layer] for layer in plain} == plain


def test_bitsandbytes_stays_packed_unless_it_is_to_be_merged(
    tiny_policy: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    folder = quantize_bitsandbytes(tiny_policy, tmp_path / "packed")
    plain = tensor_shapes(tiny_policy)
    assert {layer: layer_shapes(folder)[layer] for layer in plain} == plain
    packed = load_causal_lm(folder, torch.float32, CPU)
    weight = packed.model.layers[0].mlp.up_proj.weight
    assert (weight.dtype, weight.numel()) == (torch.uint8, 128 * 64 // 2)
    unpacked = load_causal_lm(folder, torch.float32, CPU, keep_packed=False)
    assert unpacked.model.layers[0].mlp.up_proj.weight.shape == (128, 64)
    tokens = torch.tensor([[5, 9, 20, 3, 7]])
    torch.testing.assert_close(packed(tokens).logits, unpacked(tokens).logits)


def described(folder: Path, **found: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"quantization_config": found}))
    return folder


def test_what_cannot_be_trained_is_refused_with_its_remedy(tmp_path: Path) -> None:
    awq = described(tmp_path / "awq", quant_method="awq", bits=4, group_size=128)
    check_base(awq, WeightsKind.LORA, ranks=2)
    with pytest.raises(SettingsError, match=r"\(awq, 4 bits\).*set the weights to lora, or take"):
        check_base(awq, WeightsKind.FULL)
    strange = described(tmp_path / "strange", quant_method="vptq")
    with pytest.raises(
        SettingsError, match=r"quantized with vptq.*bfloat16, or quantized with awq"
    ):
        check_base(strange, WeightsKind.LORA)
    packed = described(tmp_path / "packed", quant_method="bitsandbytes", load_in_4bit=True)
    check_base(packed, WeightsKind.LORA)
    with pytest.raises(SettingsError, match="one GPU instead of 2"):
        check_base(packed, WeightsKind.LORA, ranks=2)


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("awq", {"version": "gemv"}, r"4 bits in layout gemv: only .* \(gemm\)"),
        ("gptq", {"checkpoint_format": "marlin"}, r"in layout marlin: only .* \(gptq\)"),
        ("gptq", {"bits": 3}, "gptq weights of 3 bits"),
    ],
)
def test_layouts_that_are_not_known_are_refused(
    tiny_policy: Path, tmp_path: Path, name: str, changed: dict[str, object], message: str
) -> None:
    folder = quantize(tiny_policy, tmp_path / name, name)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= changed
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SettingsError, match=message):
        load_causal_lm(folder, torch.float32, CPU)


def test_without_bitsandbytes_its_folders_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = described(tmp_path / "packed", quant_method="bitsandbytes", load_in_4bit=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        SettingsError, match="not installed: pip install bitsandbytes vllm-bnb-plugin"
    ):
        load_causal_lm(folder, torch.float32, CPU)
