"""Models of other families, tiny and random: served, trained, swapped in and exported.

Each has the architecture of its family: grouped heads and a plain MLP (Llama), norms of heads
(Qwen3), experts (Qwen3 MoE, gpt-oss), sliding windows and scaled embeddings (Gemma 3), one matrix
for queries, keys and values (Phi).
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.engine_helpers import complete, make_engine, teacher_forced
from support.policy_samples import SampleMaker
from support.tiny_models import make_tokenizer

from tuneloop.generation.engine import Engine
from tuneloop.learner.offline.export import merge_adapter
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.settings import TrainerSettings
from tuneloop.policies import WeightsKind

PROMPT = (1, 50, 51, 52, 53)
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
HEAD = {"head_dim": 32}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", HEAD),
    "qwen3": ("Qwen3Config", HEAD),
    "qwen3 moe": ("Qwen3MoeConfig", {**HEAD, **EXPERTS}),
    "gemma 3": ("Gemma3TextConfig", {**HEAD, "sliding_window": 8}),
    "phi 3": ("Phi3Config", {}),
    "gpt-oss": ("GptOssConfig", {**HEAD, "num_local_experts": 4, "sliding_window": 8}),
}


def make_family(name: str, folder: Path) -> Path:
    """Write a random model of a family, in float32."""
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    config_name, options = FAMILIES[name]
    config = getattr(transformers, config_name)(
        vocab_size=make_tokenizer(folder), **SIZES, **options
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(
        folder
    )
    return folder


# Each takes some twenty seconds; the two that are least like the model of other tests run always.
ALWAYS = ("qwen3 moe", "gemma 3")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[] if name in ALWAYS else pytest.mark.slow) for name in FAMILIES
    ],
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(request.param, tmp_path_factory.mktemp("model"))


@pytest.fixture(
    params=["transformers", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.slow])]
)
async def engine(request: pytest.FixtureRequest, model: Path) -> AsyncIterator[Engine]:
    engine = make_engine(request.param, model, WeightsKind.LORA)
    await engine.start()
    yield engine
    await engine.stop()


def trained(model: Path, folder: Path) -> tuple[PolicyTrainer, Path]:
    """A trainer after three steps on thumbs, and its adapter."""
    trainer = PolicyTrainer(model, TrainerSettings(learning_rate=1e-2, threads=1))
    maker = SampleMaker(0)
    for _ in range(3):
        result = trainer.step({"kto": maker.thumbs(8), "sft": maker.demonstrations(4)})
        assert not result.skipped
    trainer.save_weights(folder)
    return trainer, folder


async def test_it_is_served_trained_and_swapped_in(
    engine: Engine, model: Path, tmp_path: Path
) -> None:
    (base,) = await complete(engine, PROMPT, max_tokens=8)
    expected = teacher_forced(model, None, PROMPT, base.token_ids, 1.0)
    assert base.logprobs == pytest.approx(expected, abs=5e-3)

    _, adapter = trained(model, tmp_path / "adapter")
    await engine.load_adapter(1, adapter)
    (changed,) = await complete(engine, PROMPT, version=1, max_tokens=8)
    expected = teacher_forced(model, adapter, PROMPT, changed.token_ids, 1.0)
    assert changed.logprobs == pytest.approx(expected, abs=5e-3)
    other = teacher_forced(model, None, PROMPT, changed.token_ids, 1.0)
    assert changed.logprobs != pytest.approx(other, abs=2e-2)


def test_its_log_probs_in_training_are_those_of_a_plain_pass(model: Path) -> None:
    trainer = PolicyTrainer(model, TrainerSettings(threads=1))
    sequences = [SampleMaker(1).varied() for _ in range(4)]
    for sequence, found in zip(sequences, trainer.reference_logprobs(sequences), strict=True):
        expected = teacher_forced(
            model, None, sequence.prompt_token_ids, sequence.completion_token_ids, 1.0
        )
        assert list(found) == pytest.approx(expected, abs=2e-3)


def test_it_is_exported_with_what_it_learned(model: Path, tmp_path: Path) -> None:
    _, adapter = trained(model, tmp_path / "adapter")
    merge_adapter(model, adapter, tmp_path / "merged")
    with_adapter = teacher_forced(model, adapter, PROMPT, (9, 10, 11), 1.0)
    merged = teacher_forced(tmp_path / "merged", None, PROMPT, (9, 10, 11), 1.0)
    assert merged == pytest.approx(with_adapter, abs=2e-3)
