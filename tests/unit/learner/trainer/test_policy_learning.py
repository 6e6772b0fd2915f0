"""On a tiny model with a fixed seed: each algorithm makes the policy do what was asked of it."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.policy_samples import SampleMaker
from transformers import AutoModelForCausalLM

from tuneloop.learner.models.batch import collate
from tuneloop.learner.samples import (
    DemonstrationSample,
    PairSample,
    ScoredGroup,
    ScoredSample,
    ThumbSample,
    TokenSequence,
)
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.settings import TrainerSettings
from tuneloop.policies import WeightsKind

ANSWERS = range(10, 18)
"""One-token answers; half of them are liked."""
PROMPTS = ((5, 6), (7, 8, 9), (20,), (21, 22, 23, 24))


@pytest.fixture(scope="module")
def sharp_policy(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny policy with larger embeddings: as it is, an adapter could at best reach 0.71."""
    folder = tmp_path_factory.mktemp("sharp")
    model = AutoModelForCausalLM.from_pretrained(tiny_policy)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(5.0)
    model.save_pretrained(folder)
    return folder


def liked(answer: int) -> bool:
    return answer % 2 == 0


class Bandit:
    """A policy that answers with one token, sampled among `ANSWERS` only."""

    def __init__(self, folder: Path, **options: Any) -> None:
        settings = TrainerSettings(**{"threads": 1, "kl_coef": 0.0, **options})
        self.trainer = PolicyTrainer(folder, settings)
        self._generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def answer_logprobs(self, prompt: tuple[int, ...]) -> torch.Tensor:
        rows = [
            TokenSequence(
                prompt_token_ids=prompt,
                completion_token_ids=(answer,),
                generation_logprobs=(),
                temperature=1.0,
            )
            for answer in ANSWERS
        ]
        return self.trainer._model.logprobs(collate(rows, torch.device("cpu")))[:, 0]

    def sample(self, count: int) -> list[TokenSequence]:
        sequences = []
        for i in range(count):
            prompt = PROMPTS[i % len(PROMPTS)]
            logprobs = self.answer_logprobs(prompt)
            choice = int(torch.multinomial(logprobs.exp(), 1, generator=self._generator))
            sequences.append(
                TokenSequence(
                    prompt_token_ids=prompt,
                    completion_token_ids=(ANSWERS[choice],),
                    generation_logprobs=(float(logprobs[choice]),),
                    temperature=1.0,
                )
            )
        return sequences

    def liked_share(self) -> float:
        """Probability of a liked answer, given that it is one of `ANSWERS`; mean over prompts."""
        shares = []
        for prompt in PROMPTS:
            probabilities = self.answer_logprobs(prompt).exp()
            good = [liked(answer) for answer in ANSWERS]
            shares.append(float(probabilities[good].sum() / probabilities.sum()))
        return sum(shares) / len(shares)


def answer_of(sequence: TokenSequence) -> int:
    return sequence.completion_token_ids[0]


def scored(sequences: list[TokenSequence]) -> list[ScoredSample]:
    return [
        ScoredSample(
            sample_id=str(i),
            sequence=sequence,
            reward=float(liked(answer_of(sequence))),
            policy_version=0,
            stopped=True,
        )
        for i, sequence in enumerate(sequences)
    ]


KINDS = [WeightsKind.LORA, pytest.param(WeightsKind.FULL, marks=pytest.mark.slow)]


@pytest.mark.parametrize("kind", KINDS)
def test_ppo_learns_what_is_rewarded(sharp_policy: Path, kind: WeightsKind) -> None:
    # With half the batch or twice the rate some seeds fall short: six of six reach 0.96 here.
    rate = 5e-3 if kind is WeightsKind.LORA else 1e-3
    bandit = Bandit(sharp_policy, kind=kind, learning_rate=rate, ppo_epochs=2)
    assert 0.3 < bandit.liked_share() < 0.7
    rewards = []
    for _ in range(25):
        result = bandit.trainer.step({"ppo": scored(bandit.sample(32))})
        rewards.append(result.metrics["reward"])
    assert sum(rewards[-5:]) / 5 > 0.9
    assert bandit.liked_share() > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_kto_learns_from_thumbs(sharp_policy: Path, kind: WeightsKind) -> None:
    rate = 1e-2 if kind is WeightsKind.LORA else 1e-3
    bandit = Bandit(sharp_policy, kind=kind, learning_rate=rate)
    for _ in range(25):
        thumbs = [
            ThumbSample(sample_id=str(i), sequence=s, desirable=liked(answer_of(s)))
            for i, s in enumerate(bandit.sample(16))
        ]
        bandit.trainer.step({"kto": thumbs})
    assert bandit.liked_share() > 0.9


def test_dpo_learns_from_pairs(sharp_policy: Path) -> None:
    bandit = Bandit(sharp_policy, learning_rate=3e-3)
    for _ in range(8):
        answers = bandit.sample(32)
        pairs = [
            PairSample(sample_id=str(i), chosen=a, rejected=b)
            for i, (a, b) in enumerate(zip(answers[:28], answers[4:], strict=True))
            if liked(answer_of(a)) and not liked(answer_of(b))
        ]
        bandit.trainer.step({"dpo": pairs})
    assert bandit.liked_share() > 0.9


def test_sft_learns_from_demonstrations(sharp_policy: Path) -> None:
    bandit = Bandit(sharp_policy, learning_rate=3e-3)
    for _ in range(12):
        shown = [
            DemonstrationSample(sample_id=str(i), sequence=s)
            for i, s in enumerate(bandit.sample(24))
            if liked(answer_of(s))
        ]
        bandit.trainer.step({"sft": shown})
    assert bandit.liked_share() > 0.9


def grouped(sequences: list[TokenSequence]) -> list[ScoredGroup]:
    by_prompt: dict[tuple[int, ...], list[ScoredSample]] = {}
    for sample in scored(sequences):
        by_prompt.setdefault(sample.sequence.prompt_token_ids, []).append(sample)
    return [
        ScoredGroup(sample_id=str(i), samples=tuple(samples))
        for i, samples in enumerate(by_prompt.values())
    ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"kind": WeightsKind.FULL, "learning_rate": 1e-3}, marks=pytest.mark.slow),
        pytest.param({"scale_rewards": "none", "grpo_epochs": 2}, marks=pytest.mark.slow),
        pytest.param({"advantage_estimator": "rloo"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_grpo_learns_what_is_rewarded(sharp_policy: Path, options: dict[str, Any]) -> None:
    bandit = Bandit(sharp_policy, **{"learning_rate": 1e-2, "beta_grpo": 0.0, **options})
    for _ in range(25):
        bandit.trainer.step({"grpo": grouped(bandit.sample(16))})
    assert bandit.liked_share() > 0.9


@pytest.mark.slow
def test_single_completions_of_drifting_scorers_are_learned_from(sharp_policy: Path) -> None:
    """Users give one reward for a prompt, and what a reward means moves and grows all the time."""
    for objective in ("grpo", "ppo"):
        bandit = Bandit(sharp_policy, learning_rate=1e-2, normalize_rewards=True, beta_grpo=0.0)
        for step in range(40):
            samples = scored(bandit.sample(12))
            drifted = [replace(s, reward=100.0 - step + (1 + step) * s.reward) for s in samples]
            lone = [ScoredGroup(sample_id=s.sample_id, samples=(s,)) for s in drifted]
            bandit.trainer.step({"grpo": lone} if objective == "grpo" else {"ppo": drifted})
        assert bandit.liked_share() > 0.9, objective


@pytest.mark.slow
def test_dpo_variants_learn_and_robust_dpo_bears_flipped_pairs(sharp_policy: Path) -> None:
    for options, flips in (
        ({"dpo_loss_type": "ipo"}, 0),
        ({"dpo_loss_type": "sigmoid_norm"}, 0),
        ({"flip_rate": 0.2}, 5),
    ):
        bandit = Bandit(sharp_policy, **{"learning_rate": 3e-3, **options})
        for _ in range(10):
            answers = bandit.sample(32)
            pairs = [
                PairSample(sample_id=str(i), chosen=a, rejected=b)
                for i, (a, b) in enumerate(zip(answers[:28], answers[4:], strict=True))
                if liked(answer_of(a)) and not liked(answer_of(b))
            ]
            flipped = [
                replace(p, chosen=p.rejected, rejected=p.chosen) if flips and i % flips == 0 else p
                for i, p in enumerate(pairs)
            ]
            bandit.trainer.step({"dpo": flipped})
        assert bandit.liked_share() > 0.85, options


@pytest.mark.slow
def test_kl_in_the_reward_holds_the_policy_back(sharp_policy: Path) -> None:
    kl = {}
    for kl_coef in (0.0, 0.5):
        bandit = Bandit(sharp_policy, learning_rate=3e-3, kl_coef=kl_coef)
        for _ in range(15):
            metrics = bandit.trainer.step({"ppo": scored(bandit.sample(32))}).metrics
        kl[kl_coef] = metrics["kl"]
    assert kl[0.5] < 0.5 * kl[0.0]


def test_thumbs_on_long_answers_raise_the_margin_between_them(sharp_policy: Path) -> None:
    """Many tokens, skewed lengths and an uneven share of thumbs up, as in real traffic."""
    maker = SampleMaker(4)
    thumbs = [
        ThumbSample(
            sample_id=str(i),
            sequence=maker.sequence(10, 5 + 7 * i, 0.7, sampled=False),
            desirable=i % 5 == 0,
        )
        for i in range(10)
    ]
    trainer = PolicyTrainer(sharp_policy, TrainerSettings(threads=1, learning_rate=2e-3))
    first, *_, last = (trainer.step({"kto": thumbs}).metrics for _ in range(20))
    assert first["desirable_margin"] == first["undesirable_margin"] == 0.0
    assert last["desirable_margin"] > 0.1
    assert last["undesirable_margin"] < -0.1
    assert last["loss"] < first["loss"]
    assert math.isfinite(last["kl"])
