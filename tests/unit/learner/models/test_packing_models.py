"""Packed is padded, shared is repeated, any cut is one batch: on families of tiny models."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from tuneloop.errors import SettingsError
from tuneloop.learner.models.batch import collate, packed_batches
from tuneloop.learner.models.packing import packed_length
from tuneloop.learner.models.policy import PolicyModel
from tuneloop.learner.samples import TokenSequence
from tuneloop.policies import WeightsKind

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GEMMA: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"] * 2}
GEMMA |= SMALL | {"sliding_window": 5, "num_hidden_layers": 4}
PACKABLE: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SMALL, tie_word_embeddings=False),
    "qwen2": lambda: Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**SMALL, tie_word_embeddings=True),
    # Learned absolute positions, Conv1D.
    "gpt2": lambda: GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    # Every layer looks five tokens back only; then every other one, with two kinds of rotation.
    "mistral": lambda: MistralConfig(**SMALL, sliding_window=5),
    "gemma3": lambda: Gemma3TextConfig(**GEMMA, final_logit_softcapping=3.0),
    # Scales its logits, its residuals and its attention.
    "granite": lambda: GraniteConfig(**SMALL, logits_scaling=4.0, attention_multiplier=0.2),
}
PADDED: dict[str, Callable[[], Any]] = {
    # Positions enter attention as a bias that is made from the mask.
    "bloom": lambda: BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4),
    # Attention of its own, half of it local.
    "gpt-neo": lambda: GPTNeoConfig(
        vocab_size=64,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        max_position_embeddings=64,
        attention_types=[[["global", "local"], 1]],
        window_size=5,
    ),
    # Says that it has a window, and attention is not told.
    "windowed-llama": lambda: LlamaConfig(**SMALL, sliding_window=5),
    # Caps its attention scores.
    "gemma2": lambda: Gemma2Config(**GEMMA, attn_logit_softcapping=0.5),
}


@pytest.fixture(scope="module")
def make_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("families")

    def make(name: str) -> Path:
        if not (root / name).exists():
            torch.manual_seed(3)
            model = AutoModelForCausalLM.from_config((PACKABLE | PADDED)[name]())
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() > 1:
                        parameter.normal_(std=0.2)
            model.save_pretrained(root / name)
        return root / name

    return make


def load(folder: Path, **options: Any) -> PolicyModel:
    """A float64 model that training has moved already."""
    model = PolicyModel(folder, lora_rank=2, lora_alpha=4, **options)
    model._model.double()
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters().values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def make_sequences() -> list[TokenSequence]:
    """Rows of all lengths; two prompts are shared, one completion is a single token."""
    generator = torch.Generator().manual_seed(1)

    def draw(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(64, (length,), generator=generator).tolist())

    one, two = draw(9), draw(3)
    prompts = [one, two, one, draw(1), two, one, draw(6), one]
    lengths = [5, 12, 1, 3, 4, 8, 2, 7]
    return [
        TokenSequence(
            prompt_token_ids=prompt,
            completion_token_ids=draw(length),
            generation_logprobs=(),
            temperature=0.7 + 0.1 * row,
        )
        for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    ]


def loss_and_gradients(
    model: PolicyModel, batches: Sequence[Sequence[TokenSequence]]
) -> dict[str, Tensor]:
    """A loss that is no sum over tokens, and its gradients, accumulated over the batches."""
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        sums = model.logprobs(collate(batch, CPU)).sum(-1)
        loss = (sums.square() * 0.01).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    found = {name: p.grad for name, p in model.parameters().items() if p.grad is not None}
    model._model.zero_grad()
    return {"loss": total} | found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], limit: float = 1e-6) -> None:
    """Most families round to float32 inside (norms, softmax), whatever they are given."""
    assert found.keys() == expected.keys()
    assert len(found) > 4
    for name, tensor in expected.items():
        off = torch.linalg.vector_norm(found[name] - tensor) / torch.linalg.vector_norm(tensor)
        assert float(off) < limit, name


@pytest.mark.parametrize("kind", WeightsKind)
@pytest.mark.parametrize("name", PACKABLE)
def test_packed_is_padded_and_any_cut_is_one_batch(
    make_folder: Callable[[str], Path], name: str, kind: WeightsKind
) -> None:
    rows = make_sequences()
    padded = load(make_folder(name), kind=kind, packing=False)
    assert not padded.packs
    expected = loss_and_gradients(padded, [rows])
    packed = load(make_folder(name), kind=kind)
    assert packed.packs
    assert_same(loss_and_gradients(packed, [rows]), expected)
    # One row at a time every prompt is repeated, in one batch it is shared.
    assert_same(loss_and_gradients(packed, [[row] for row in rows]), expected)
    for budget in (20, 45):
        cut = packed_batches(rows, sequences=lambda row: (row,), token_budget=budget)
        assert 1 < len(cut) < len(rows)
        assert_same(loss_and_gradients(packed, cut), expected)


def make_turns() -> list[TokenSequence]:
    """Two conversations of three turns, with a second answer to one of them and one forked."""
    rows: list[TokenSequence] = []
    for first, second, third in zip(*[iter(make_sequences()[:6])] * 3, strict=True):
        prompt = first.prompt_token_ids
        for turn in (first, second, third):
            rows.append(replace(turn, prompt_token_ids=prompt))
            prompt += turn.completion_token_ids + second.prompt_token_ids
    later = make_sequences()[6:]
    sibling = replace(later[0], prompt_token_ids=rows[1].prompt_token_ids)
    fork = (*rows[4].prompt_token_ids, *rows[4].completion_token_ids, 9)
    return [*rows, sibling, replace(later[1], prompt_token_ids=fork)]


@pytest.mark.parametrize("name", PACKABLE)
def test_turns_of_a_conversation_are_computed_once(
    make_folder: Callable[[str], Path], name: str
) -> None:
    rows = make_turns()
    alone = sum(packed_length([row]) for row in rows)
    assert packed_length(rows) < 0.6 * alone
    assert len(collate(rows, CPU).packed.segments) > 4
    model = load(make_folder(name), kind=WeightsKind.FULL)
    expected = loss_and_gradients(model, [[row] for row in rows])
    assert_same(loss_and_gradients(model, [rows]), expected)
    padded = load(make_folder(name), kind=WeightsKind.FULL, packing=False)
    assert_same(loss_and_gradients(padded, [rows]), expected)


@pytest.mark.parametrize("name", PADDED)
def test_a_model_that_cannot_be_given_packed_rows_is_given_padded_ones(
    make_folder: Callable[[str], Path], name: str
) -> None:
    model = load(make_folder(name))
    assert not model.packs
    rows = make_sequences()
    assert_same(
        loss_and_gradients(model, [rows]), loss_and_gradients(model, [[row] for row in rows])
    )


@pytest.mark.parametrize("kind", WeightsKind)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_checkpointing_changes_what_is_kept_and_nothing_else(
    make_folder: Callable[[str], Path], name: str, kind: WeightsKind
) -> None:
    rows = make_sequences()
    plain = load(make_folder(name), kind=kind)
    saving = load(make_folder(name), kind=kind, gradient_checkpointing=True)
    assert kept(saving, rows) < 0.6 * kept(plain, rows)
    expected = loss_and_gradients(plain, [rows])
    found = loss_and_gradients(saving, [rows])
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def kept(model: PolicyModel, rows: Sequence[TokenSequence]) -> int:
    """Numbers kept for the backward pass, weights left out."""
    weights = {p.data_ptr() for p in model._model.parameters()}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.logprobs(collate(rows, CPU))
    return sum(sizes.values())


def test_known_reference_logprobs_are_not_computed_again(tiny_policy: Path) -> None:
    rows = make_sequences()
    for kind in WeightsKind:
        model = PolicyModel(tiny_policy, kind=kind)
        expected = model.reference_logprobs(collate(rows, CPU))
        known = [r.logprobs for r in model.compute_references(rows, token_budget=25)]
        assert [len(logprobs) for logprobs in known] == [5, 12, 1, 3, 4, 8, 2, 7]
        told = [replace(r, ref_logprobs=k) for r, k in zip(rows, known, strict=True)]
        model._run = None  # type: ignore[assignment]
        batch = collate(told, CPU)
        assert torch.allclose(model.reference_logprobs(batch), expected, atol=1e-5)
        # One row that does not know is enough for a pass over all of them.
        assert collate([*told[:-1], rows[-1]], CPU).ref_logprobs is None


def test_entropies_are_those_of_the_distribution(make_folder: Callable[[str], Path]) -> None:
    model = load(make_folder("llama"), kind=WeightsKind.FULL)
    row = make_sequences()[0]
    batch = collate([row], CPU)
    logprobs, entropies = model.logprobs_and_entropies(batch)
    ids = torch.tensor([[*row.prompt_token_ids, *row.completion_token_ids]])
    full = torch.log_softmax(model._model(ids).logits[0, 8:-1] / row.temperature, -1)
    assert torch.allclose(entropies[0], -(full.exp() * full).sum(-1), atol=1e-6)
    assert torch.equal(logprobs, model.logprobs(batch))


def test_a_model_without_layers_to_checkpoint_is_refused(
    make_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuneloop.learner.models import architecture

    monkeypatch.setattr(architecture, "GradientCheckpointingLayer", tuple)
    with pytest.raises(SettingsError, match="gradient_checkpointing"):
        PolicyModel(make_folder("llama"), gradient_checkpointing=True)
