"""The policy, its reference and its files, on three families of tiny models."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.policy_samples import SampleMaker
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

from tuneloop.errors import WeightsRefused
from tuneloop.learner.models import lora, policy
from tuneloop.learner.models.batch import SequenceBatch, collate
from tuneloop.learner.models.forward import FEATURES, KnownStates, projected
from tuneloop.learner.models.policy import PolicyModel
from tuneloop.learner.samples import TokenSequence
from tuneloop.policies import WeightsKind

SMALL: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama-untied": lambda: LlamaConfig(**SMALL, tie_word_embeddings=False),
    "qwen2": lambda: Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**SMALL, tie_word_embeddings=True),
    # Conv1D instead of Linear, dropout on by default.
    "gpt2": lambda: GPT2Config(vocab_size=384, n_embd=32, n_layer=2, n_head=2, n_positions=64),
    # Caps its logits after the head.
    "gemma2": lambda: Gemma2Config(**SMALL, final_logit_softcapping=0.5),
}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("family") / request.param
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(FAMILIES[request.param]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    model.save_pretrained(path)
    return path


def make_sequences() -> list[TokenSequence]:
    maker = SampleMaker(1)
    return [maker.sequence(3, 5, 0.7), maker.sequence(9, 2), maker.sequence(1, 1, 1.3)]


def batch_of(sequences: list[TokenSequence]) -> SequenceBatch:
    return collate(sequences, torch.device("cpu"))


@torch.no_grad()
def by_full_logits(model: Any, sequence: TokenSequence) -> list[float]:
    """One sequence at a time, all logits, plain log-softmax."""
    ids = torch.tensor([[*sequence.prompt_token_ids, *sequence.completion_token_ids]])
    logprobs = torch.log_softmax(model(ids).logits[0].float() / sequence.temperature, -1)
    start = len(sequence.prompt_token_ids)
    return [
        float(logprobs[start + i - 1, token])
        for i, token in enumerate(sequence.completion_token_ids)
    ]


def perturb(model: PolicyModel) -> None:
    """Move every trained tensor, as training would."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters().values():
            parameter.add_(torch.randn_like(parameter) * 0.05)


@pytest.mark.parametrize("kind", WeightsKind)
def test_logprobs_are_those_of_a_plain_forward_pass(folder: Path, kind: WeightsKind) -> None:
    model = PolicyModel(folder, kind=kind, lora_rank=4, lora_alpha=8)
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    sequences = make_sequences()
    batch = batch_of(sequences)
    expected = [by_full_logits(plain, sequence) for sequence in sequences]
    for logprobs in (model.logprobs(batch), model.reference_logprobs(batch)):
        for row, numbers in enumerate(expected):
            kept = logprobs[row][batch.loss_mask[row]]
            assert kept.tolist() == pytest.approx(numbers, abs=2e-5)
        assert (logprobs[~batch.loss_mask] == 0).all()


@pytest.mark.parametrize("kind", WeightsKind)
def test_features_are_mean_states_of_version_0_whatever_was_learned(
    folder: Path, kind: WeightsKind
) -> None:
    model = PolicyModel(folder, kind=kind, lora_rank=4, lora_alpha=8)
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    perturb(model)
    sequences = make_sequences()
    found = model.compute_references(sequences, token_budget=16)
    for sequence, (_, features) in zip(sequences, found, strict=True):
        ids = torch.tensor([[*sequence.prompt_token_ids, *sequence.completion_token_ids]])
        states = plain.base_model(ids).last_hidden_state[0]
        before_each = states[len(sequence.prompt_token_ids) - 1 : -1]
        assert len(features) == FEATURES
        assert features == pytest.approx(projected(before_each).mean(0).tolist(), abs=2e-4)


@pytest.mark.parametrize("kind", WeightsKind)
def test_reference_stays_version_0_and_gradients_reach_every_trained_tensor(
    folder: Path, kind: WeightsKind
) -> None:
    model = PolicyModel(folder, kind=kind, lora_rank=4, lora_alpha=8)
    batch = batch_of(make_sequences())
    before = model.reference_logprobs(batch)
    perturb(model)
    assert not torch.allclose(model.logprobs(batch), before, atol=1e-2)
    assert torch.equal(model.reference_logprobs(batch), before)
    model.logprobs(batch).sum().backward()
    missing = [n for n, p in model.parameters().items() if p.grad is None or not p.grad.any()]
    assert missing == []


@pytest.mark.parametrize("kind", WeightsKind)
def test_divergences_are_over_every_token_of_both_distributions(
    folder: Path, kind: WeightsKind
) -> None:
    model = PolicyModel(folder, kind=kind, lora_rank=4, lora_alpha=8)
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    sequences = make_sequences()
    assert divergences_of(model, sequences) == pytest.approx([0.0] * 8, abs=1e-5)
    perturb(model)
    found = []
    for sequence in sequences:
        ids = torch.tensor([[*sequence.prompt_token_ids, *sequence.completion_token_ids]])
        before = slice(len(sequence.prompt_token_ids) - 1, -1)
        with torch.no_grad():
            ours = torch.log_softmax(model.module(ids).logits[0, before].float(), -1)
            theirs = torch.log_softmax(plain(ids).logits[0, before].float(), -1)
        found += (ours.exp() * (ours - theirs)).sum(-1).tolist()
    assert sum(found) > 8e-4
    # What the reference makes of them is known by now, and of more than are kept it is not.
    assert divergences_of(model, sequences) == pytest.approx(found, rel=1e-3, abs=1e-6)
    maker = SampleMaker(2)
    others = [maker.sequence() for _ in range(KnownStates.KEPT)]
    many = [*others, *sequences, *sequences]
    assert divergences_of(model, many)[-16:] == pytest.approx(2 * found, rel=1e-3, abs=1e-6)
    assert divergences_of(model, sequences) == pytest.approx(found, rel=1e-3, abs=1e-6)


def divergences_of(model: PolicyModel, sequences: list[TokenSequence]) -> list[float]:
    likeliest = model.compute_likeliest(sequences, divergences=True)
    return [divergence for one in likeliest for divergence in one.divergences]


def test_saved_weights_load_in_peft_and_transformers_and_continue(
    folder: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    sequences = make_sequences()
    batch = batch_of(sequences)
    for kind in WeightsKind:
        model = PolicyModel(folder, kind=kind, lora_rank=4, lora_alpha=8)
        perturb(model)
        version = tmp_path / kind
        model.save_weights(version, base_model="some/base")
        if kind is WeightsKind.LORA:
            base = AutoModelForCausalLM.from_pretrained(folder)
            loaded = PeftModel.from_pretrained(base, str(version)).eval()
        else:
            loaded = AutoModelForCausalLM.from_pretrained(version).eval()
        logprobs: Tensor = model.logprobs(batch).detach()
        for row, sequence in enumerate(sequences):
            kept = logprobs[row][batch.loss_mask[row]].tolist()
            assert kept == pytest.approx(by_full_logits(loaded, sequence), abs=1e-4)
        again = PolicyModel(folder, kind=kind, lora_rank=4, lora_alpha=8, seed=9)
        reference = again.reference_logprobs(batch)
        again.load_weights(version)
        assert torch.equal(again.logprobs(batch), logprobs)
        assert torch.equal(again.reference_logprobs(batch), reference)


def test_adapter_folder_names_no_machine_path_and_is_the_same_bytes_every_time(
    tiny_policy: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        PolicyModel(tiny_policy, seed=4).save_weights(tmp_path / name, base_model="some/base")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    text = (tmp_path / "a" / "adapter_config.json").read_text()
    assert str(tiny_policy) not in text
    config = json.loads(text)
    assert config["base_model_name_or_path"] == "some/base"
    assert config["target_modules"] == [
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]


@pytest.mark.parametrize(("own", "dtype"), [("float32", "bfloat16"), ("float16", "float16")])
def test_on_a_gpu_full_weights_are_written_in_the_dtype_they_are_served_in(
    tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, dtype: str
) -> None:
    base = Path(shutil.copytree(tiny_policy, tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"dtype": own}))
    monkeypatch.setattr(policy, "HALF_ON", {"cpu"})
    model = PolicyModel(base, kind=WeightsKind.FULL)
    perturb(model)
    model.save_weights(tmp_path / "saved", base_model="b")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    kept = model.parameters()
    assert {tensor.dtype for tensor in saved.values()} == {getattr(torch, dtype)}
    assert {p.dtype for p in kept.values()} == {torch.bfloat16}
    for name, tensor in saved.items():
        assert torch.equal(tensor, kept[name].to(tensor.dtype))
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == dtype


def test_full_folder_carries_the_tokenizer(tiny_policy: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    PolicyModel(tiny_policy, kind=WeightsKind.FULL).save_weights(tmp_path, base_model="b")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.chat_template
    assert tokenizer.eos_token == "<|im_end|>"


def test_values_start_at_zero_and_their_loss_cannot_move_the_policy(tiny_policy: Path) -> None:
    model = PolicyModel(tiny_policy)
    _, values = model.logprobs_and_values(batch_of(make_sequences()))
    assert (values == 0).all()
    (values - 1).square().sum().backward()
    assert model.value_head.weight.grad is not None
    assert model.value_head.weight.grad.any()
    assert all(parameter.grad is None for parameter in model.parameters().values())


def spoiled(tensors: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    name = sorted(tensors)[0]
    match how:
        case "is missing":
            del tensors[name]
        case "is not one of the model's":
            tensors["stranger"] = torch.zeros(1)
        case "has shape":
            tensors[name] = torch.zeros(2, 2)
        case "is not finite":
            tensors[name] = torch.full_like(tensors[name], torch.nan)
    return tensors


@pytest.mark.parametrize(
    "how", ["is missing", "is not one of the model's", "has shape", "is not finite"]
)
@pytest.mark.parametrize("kind", WeightsKind)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(
    tiny_policy: Path, tmp_path: Path, kind: WeightsKind, how: str
) -> None:
    model = PolicyModel(tiny_policy, kind=kind)
    model.save_weights(tmp_path, base_model="b")
    file = next(tmp_path.glob("*model.safetensors"))
    save_file(spoiled(load_file(file), how), file)
    before = {name: p.detach().clone() for name, p in model.parameters().items()}
    with pytest.raises(WeightsRefused, match=how):
        model.load_weights(tmp_path)
    assert all(torch.equal(p, before[name]) for name, p in model.parameters().items())
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(WeightsRefused):
        model.load_weights(tmp_path)


def test_a_merged_adapter_computes_the_same_and_leaves_every_weight_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = PolicyModel(folder, lora_rank=4, lora_alpha=8)
    perturb(model)
    sequences = make_sequences()
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    trained = set(model.parameters())
    logprobs, divergences = model.compute_logprobs(sequences), divergences_of(model, sequences)
    references = model.compute_references(sequences, token_budget=64)
    with model.merged():
        changed = model.module.state_dict()
        assert any(not torch.equal(changed[name], tensor) for name, tensor in before.items())
        flat = [value for row in model.compute_logprobs(sequences) for value in row]
        assert flat == pytest.approx([value for row in logprobs for value in row], abs=1e-5)
        assert divergences_of(model, sequences) == pytest.approx(divergences, abs=1e-5)
        assert model.compute_references(sequences, token_budget=64) == references
    after = model.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert set(model.parameters()) == trained
    assert model.compute_logprobs(sequences) == logprobs
    # Where the memory is short, or a pass fails, it is as if nothing had been merged.
    with pytest.raises(RuntimeError, match="failed"), model.merged():
        raise RuntimeError("failed")
    after = model.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    monkeypatch.setattr(lora, "available_memory", lambda: 0)
    with model.merged():
        assert model.compute_logprobs(sequences) == logprobs
