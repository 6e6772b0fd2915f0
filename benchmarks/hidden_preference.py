"""A task that takes seconds: a tiny random model, and a taste for tokens that nobody tells it.

Prompts and completions are random tokens. A completion is liked by the share of its tokens that are
even; with `conditional`, by the share with the parity of the prompt's first token. Feedback of each
kind is given on fresh samples of the policy, as users would: thumbs, best against worst, the best
shown as a demonstration, or the share itself as the reward. What is reported is the share on the
samples of each step before the policy has learned from them.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tuneloop.learner.samples import (
    DemonstrationSample,
    PairSample,
    PolicySample,
    ScoredGroup,
    ScoredSample,
    ThumbSample,
    TokenSequence,
)
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.settings import TrainerSettings
from tuneloop.policies import WeightsKind

VOCABULARY = 64
PROMPT_TOKENS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is asked, and how much of it at a time."""

    conditional: bool = False
    prompts: int = 8
    """In a step."""
    group_size: int = 4
    """Completions of each prompt."""
    completion_tokens: int = 12

    def score(self, sequence: TokenSequence) -> float:
        """How much a completion is liked, 0 to 1."""
        parity = sequence.prompt_token_ids[0] % 2 if self.conditional else 0
        tokens = sequence.completion_token_ids
        return sum(token % 2 == parity for token in tokens) / len(tokens)


def make_model(folder: Path, seed: int, spread: float = 0.02) -> Path:
    """Write a random 2-layer Llama, hidden size 64; `spread` is its weights' deviation."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=spread,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@torch.no_grad()
def sample(
    trainer: PolicyTrainer, prompts: Sequence[tuple[int, ...]], task: Task, generator: Any
) -> list[list[TokenSequence]]:
    """Completions of each prompt by the policy as it is, at temperature 1."""
    module = trainer.model.module
    rows = torch.tensor([prompt for prompt in prompts for _ in range(task.group_size)])
    logprobs: list[torch.Tensor] = []
    for _ in range(task.completion_tokens):
        following = module(input_ids=rows, use_cache=False).logits[:, -1].float().log_softmax(-1)
        chosen = torch.multinomial(following.exp(), 1, generator=generator)
        logprobs.append(following.gather(-1, chosen))
        rows = torch.cat([rows, chosen], dim=1)
    known = torch.cat(logprobs, dim=1).tolist()
    sequences = [
        TokenSequence(
            prompt_token_ids=tuple(row[:PROMPT_TOKENS]),
            completion_token_ids=tuple(row[PROMPT_TOKENS:]),
            generation_logprobs=tuple(min(0.0, logprob) for logprob in row_logprobs),
            temperature=1.0,
        )
        for row, row_logprobs in zip(rows.tolist(), known, strict=True)
    ]
    size = task.group_size
    return [sequences[i : i + size] for i in range(0, len(sequences), size)]


def feedback(
    objective: str, groups: Sequence[Sequence[TokenSequence]], task: Task
) -> list[PolicySample]:
    """What an algorithm is told about completions."""
    samples: list[PolicySample] = []
    for group in groups:
        ranked = sorted(group, key=task.score)
        worst, best = ranked[0], ranked[-1]
        name = str(len(samples))
        match objective:
            case "sft":
                samples.append(DemonstrationSample(sample_id=name, sequence=best))
            case "dpo":
                if task.score(best) > task.score(worst):
                    samples.append(PairSample(sample_id=name, chosen=best, rejected=worst))
            case "kto":
                samples.extend(
                    ThumbSample(sample_id=name, sequence=s, desirable=task.score(s) > 0.5)
                    for s in group
                )
            case _:
                scored = [
                    ScoredSample(
                        sample_id=name,
                        sequence=s,
                        reward=task.score(s),
                        policy_version=0,
                        stopped=True,
                    )
                    for s in group
                ]
                samples.extend(
                    [ScoredGroup(sample_id=name, samples=tuple(scored))]
                    if objective == "grpo"
                    else scored
                )
    return samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """How a run went, step by step."""

    scores: list[float] = field(default_factory=list)
    metrics: list[Mapping[str, float]] = field(default_factory=list)

    def add(self, scores: Sequence[float], metrics: Mapping[str, float]) -> None:
        """Note a step: scores of its samples, and what the trainer measured."""
        self.scores.append(sum(scores) / len(scores))
        self.metrics.append(metrics)


def random_prompts(count: int, choose: random.Random) -> list[tuple[int, ...]]:
    """Prompts of random tokens."""
    return [tuple(choose.randrange(VOCABULARY) for _ in range(PROMPT_TOKENS)) for _ in range(count)]


def make_trainer(folder: Path, seed: int, **options: Any) -> PolicyTrainer:
    """A trainer of all weights; `options` are those of `TrainerSettings`."""
    settings = {"kind": WeightsKind.FULL, "threads": 1, "seed": seed, **options}
    return PolicyTrainer(folder, TrainerSettings(**settings))


def learn(
    folder: Path, objective: str, *, seed: int, steps: int, task: Task, **options: Any
) -> Curve:
    """Train a policy from fresh feedback; `options` are those of `TrainerSettings`."""
    trainer = make_trainer(folder, seed, **options)
    generator = torch.Generator().manual_seed(seed)
    choose = random.Random(seed)
    curve = Curve()
    for _ in range(steps):
        groups = sample(trainer, random_prompts(task.prompts, choose), task, generator)
        result = trainer.step({objective: feedback(objective, groups, task)})
        curve.add([task.score(s) for group in groups for s in group], result.metrics)
    return curve
