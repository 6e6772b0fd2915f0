"""Rollouts to score, a bus of them, reward functions that misbehave, trained reward models."""

import dataclasses
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.bus.memory import MemoryBus
from tuneloop.policies import WeightsKind, WeightsReference
from tuneloop.rollouts import (
    ChatMessage,
    FinishReason,
    PolicyVersionSpan,
    Rollout,
    SamplingParameters,
    ScoredRollout,
)
from tuneloop.weights.filesystem import FilesystemStore
from tuneloop.weights.manifest import Manifest
from tuneloop.weights.shapes import base_model_sha256
from tuneloop.weights.signing import Signer, Verifier, write_key_pair

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROLLOUT = Rollout(
    completion_id="chatcmpl-1",
    group_id="g1",
    policy="tuneloop",
    tenant="default",
    user_hash="u1",
    messages=(ChatMessage(role="user", content="what is the capital of France?"),),
    prompt_text="",
    completion_text="Paris.",
    prompt_token_ids=(1, 2),
    completion_token_ids=(3, 4),
    generation_logprobs=(-0.5, -0.5),
    finish_reason=FinishReason.STOP,
    policy_version_spans=(PolicyVersionSpan(policy_version=3, start=0, end=2),),
    sampling=SamplingParameters(),
    finished_time=NOW,
)


def rollout(number: int, **changes: Any) -> Rollout:
    return dataclasses.replace(ROLLOUT, completion_id=f"chatcmpl-{number}", **changes)


def by_length(prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
    return [float(len(completion)) for completion in completions]


def trips(prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
    if "trip" in completions:
        raise ValueError("tripped")
    return [1.0] * len(completions)


def waits(prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
    if "hang" in completions:
        threading.Event().wait()
    return [1.0] * len(completions)


def one_short(prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
    return [1.0] * (len(completions) - 1)


def odd_answers(prompts: list[str], completions: list[str], **columns: list[Any]) -> list[Any]:
    answers = {"nan": float("nan"), "inf": float("inf"), "none": None, "word": "good", "true": True}
    return [answers.get(completion, 2) for completion in completions]


def narrow(prompts: list[str], completions: list[str]) -> list[float]:
    return []


async def later(prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
    return []


not_a_function = 3


@dataclasses.dataclass
class Publisher:
    """A weight store and the reward models published to it."""

    base: Path
    scratch: Path

    def __post_init__(self) -> None:
        self.keys = write_key_pair(self.scratch / "keys")
        self.root = str(self.scratch / "store")

    def store(self) -> FilesystemStore:
        return FilesystemStore(
            self.root,
            signer=Signer.from_file(self.keys[0]),
            verifier=Verifier.from_file(self.keys[1]),
            cache_dir=self.scratch / "cache",
        )

    def publish(
        self,
        version: int,
        *,
        bias: float,
        labels: float = 100.0,
        folder: Path | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> WeightsReference:
        """Publish a reward model that gives everything `bias`."""
        if folder is None:
            folder = constant_model(self.base, self.scratch / f"model-{version}", bias)
        manifest = Manifest(
            policy="tuneloop-reward-model",
            version=version,
            parent=version - 1,
            kind=WeightsKind.FULL,
            base_model="tiny",
            base_model_sha256=base_model_sha256(self.base),
            metrics={"labels": labels, "ranking_accuracy": 0.9},
            files=(),
            created_time=NOW,
        )
        return self.store().publish(folder, dataclasses.replace(manifest, **(changes or {})))


def constant_model(base: Path, folder: Path, bias: float) -> Path:
    """A trained reward model whose score is `bias` whatever it reads."""
    from tuneloop.models.reward_model import load

    model = load(base)
    model.module.classifier.bias.data.fill_(bias)
    model.save(folder)
    return folder


def make_decoder(folder: Path, family: str) -> Path:
    """A random 2-layer language model: `llama` and `qwen2` with a chat template, `gpt2` plain text
    and, as the real one, without a padding token."""
    import torch
    from support.tiny_models import make_tokenizer
    from transformers import (
        AutoTokenizer,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    folder.mkdir(parents=True)
    words = make_tokenizer(folder)
    torch.manual_seed(0)
    if family == "gpt2":
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.pad_token, tokenizer.chat_template = None, None
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        tokenizer.save_pretrained(folder)
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
        ends = {"bos_token_id": 1, "eos_token_id": 2}
        GPT2LMHeadModel(GPT2Config(vocab_size=words, **shape, **ends)).save_pretrained(folder)
        return folder
    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    }[family]
    config = config_class(
        vocab_size=words,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    model_class(config).save_pretrained(folder)
    return folder


async def publish(bus: MemoryBus, made: Rollout, *siblings: Rollout) -> None:
    subject = subjects.rollout_generated(made.policy, made.user_hash)
    data = wire.encode_rollout_generated(made, *siblings)
    await bus.publish(subject, data, event_id=wire.rollout_event_id(made))


def scores_on(bus: MemoryBus) -> list[ScoredRollout]:
    events = bus.streams[subjects.ROLLOUTS].events
    return [wire.decode_rollout_scored(e.data) for e in events if ".scored." in e.subject]


def dead_on(bus: MemoryBus) -> list[str]:
    return [e.headers["Tuneloop-Reason"] for e in bus.streams[subjects.DEAD_LETTERS].events]
