"""A version leaves as a PEFT adapter or as a GGUF file that other programs read."""

import inspect
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from support.exported_service import make_service
from support.reward_parts import make_decoder
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from tuneloop.cli.app import app
from tuneloop.errors import FailedPrecondition, WeightsRefused
from tuneloop.learner.models.policy import PolicyModel
from tuneloop.learner.offline.export import export
from tuneloop.learner.offline.gguf_model import write_gguf
from tuneloop.learner.offline.gguf_tokenizer import LLAMA3, QWEN2, way_to_split
from tuneloop.learner.offline.versions import Versions

PROMPT = torch.tensor([[5, 9, 20, 3, 7]])


@pytest.fixture
def service(tiny_policy: Path, tmp_path: Path) -> Path:
    return make_service(tiny_policy, tmp_path / "service")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(PROMPT, use_cache=False).logits
    return found


def test_plain_peft_puts_the_adapter_on_the_base(
    service: Path, tiny_policy: Path, tmp_path: Path
) -> None:
    output = tmp_path / "adapter"
    done = run("--weights", 2, "--data-dir", service, "--format", "adapter", "--output", output)
    assert done.exit_code == 0, done.output
    names = {path.name for path in output.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    ours = PolicyModel(tiny_policy)
    ours.load_weights(service / "weights" / "tuneloop" / "00000002")
    base = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)
    plain = logits_of(base)
    adapted = logits_of(PeftModel.from_pretrained(base, str(output)).eval())
    torch.testing.assert_close(adapted, logits_of(ours.module), rtol=1e-5, atol=1e-6)
    assert (adapted - plain).abs().max() > 1e-3
    # By the base's name alone, as the user gave it.
    found = logits_of(AutoPeftModelForCausalLM.from_pretrained(str(output)).eval())
    torch.testing.assert_close(found, adapted)
    named = json.loads((output / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(tiny_policy)
    assert "# " in (output / "README.md").read_text()


def test_a_gguf_holds_the_merged_weights_and_the_tokenizer(
    service: Path, tiny_policy: Path, tmp_path: Path
) -> None:
    version = Versions(data_dir=service).find("2")
    export(version, tmp_path / "merged")
    export(version, tmp_path / "gguf", form="gguf", kind="f32")
    [file] = (tmp_path / "gguf").glob("*.gguf")
    assert file.name == f"{tiny_policy.name}-tuneloop-v2-F32.gguf"
    assert {path.name for path in file.parent.iterdir()} == {file.name, "README.md"}
    assert f"llama-server --jinja -m {file.name}" in (file.parent / "README.md").read_text()
    found = gguf.GGUFReader(file)
    tensors = {tensor.name: tensor for tensor in found.tensors}
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    down = tensors["blk.1.ffn_down.weight"]
    assert np.array_equal(down.data, merged["model.layers.1.mlp.down_proj.weight"].numpy())
    # Neighbours turn together: row 2i is row i of the first half of a head, 2i + 1 of the second.
    keys = merged["model.layers.0.self_attn.k_proj.weight"].numpy()
    reordered = tensors["blk.0.attn_k.weight"].data
    assert np.array_equal(reordered[[0, 1, 2, 33]], keys[[0, 16, 1, 48]])
    values = {name: field.contents() for name, field in found.fields.items()}
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    assert values["tokenizer.ggml.pre"] == "gpt-2"
    assert values["tokenizer.ggml.bos_token_id"] == tokenizer.bos_token_id
    assert values["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert values["tokenizer.ggml.add_bos_token"] is False
    assert values["tokenizer.chat_template"] == tokenizer.chat_template
    assert values["tokenizer.ggml.tokens"] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert values["general.license"] == "unknown"
    assert values["general.version"] == "v2"


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_matrices_are_stored_in_the_type_asked_for(
    kind: Any, tiny_policy: Path, tmp_path: Path
) -> None:
    write_gguf(tiny_policy, tmp_path / "m.gguf", kind=kind)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    wanted = gguf.GGMLQuantizationType[kind.upper()]
    assert tensors["blk.0.ffn_up.weight"].tensor_type == wanted
    assert tensors["blk.0.attn_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    expected = load_file(tiny_policy / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    stored = gguf.dequantize(tensors["blk.0.ffn_up.weight"].data, wanted)
    bits = {"f16": 11, "bf16": 8, "q8_0": 7}[kind]
    np.testing.assert_allclose(
        stored, expected.numpy(), atol=float(expected.abs().max()) * 2.0**-bits
    )


def test_what_llama_cpp_would_not_compute_is_refused_by_name(tmp_path: Path) -> None:
    gpt2 = make_decoder(tmp_path / "gpt2", "gpt2")
    with pytest.raises(WeightsRefused, match=r"model_type 'gpt2' .*convert_hf_to_gguf"):
        export(Versions().find(str(gpt2)), tmp_path / "out", form="gguf")
    assert not (tmp_path / "out").exists()
    llama = make_decoder(tmp_path / "llama", "llama")
    config = json.loads((llama / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    (llama / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsRefused, match="rope_type 'dynamic'"):
        write_gguf(llama, tmp_path / "m.gguf", kind="f16")


def test_a_tokenizer_without_a_name_is_refused(tiny_policy: Path) -> None:
    pipeline = json.loads((tiny_policy / "tokenizer.json").read_text())
    assert way_to_split(pipeline, tiny_policy) == "gpt-2"
    digits = {"type": "Digits", "individual_digits": True}
    split = {"type": "Sequence", "pretokenizers": [digits, pipeline["pre_tokenizer"]]}
    assert way_to_split(pipeline | {"pre_tokenizer": split}, tiny_policy) == "smollm"
    for changed in (
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": pipeline["pre_tokenizer"] | {"add_prefix_space": True}},
        {"model": pipeline["model"] | {"ignore_merges": True}},
    ):
        with pytest.raises(WeightsRefused, match="splits text"):
            way_to_split(pipeline | changed, tiny_policy)


def test_the_regular_expressions_are_those_of_the_families() -> None:
    from transformers.convert_slow_tokenizer import TikTokenConverter
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    assert PRETOKENIZE_REGEX == QWEN2
    assert inspect.signature(TikTokenConverter).parameters["pattern"].default == LLAMA3


def test_float16_that_would_overflow_is_refused(tmp_path: Path) -> None:
    model = make_decoder(tmp_path / "llama", "llama")
    loaded = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        loaded.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    loaded.save_pretrained(model)
    with pytest.raises(WeightsRefused, match=r"up_proj.weight: too large .* --dtype bf16"):
        write_gguf(model, tmp_path / "m.gguf", kind="f16")
    write_gguf(model, tmp_path / "m.gguf", kind="bf16")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--kind", "pairs", "--format", "gguf"], "--format gguf is of --weights"),
        (["--weights", "1", "--format", "parquet"], "--format parquet is of --kind"),
        (["--weights", "1", "--dtype", "q8_0"], "--dtype is of --format gguf"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: list[str], problem: str) -> None:
    done = run(*arguments, "--output", "out")
    assert done.exit_code == 2
    assert problem in done.output


def test_what_cannot_be_written_is_told_before_the_work(service: Path, tmp_path: Path) -> None:
    versions = Versions(data_dir=service)
    with pytest.raises(FailedPrecondition, match="version 0 has no adapter"):
        export(versions.find("0"), tmp_path / "out", form="adapter")
    with pytest.raises(FailedPrecondition, match="name a folder"):
        export(versions.find("1"), tmp_path / "model.gguf", form="gguf")
