"""tuneloop's side of `learner_speed`: the learner, as the service and `tuneloop train` run it."""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.learner_sides import BETA, LEARNING_RATE, Side, Step, classifier, texts_of
from benchmarks.learner_work import Work


def tuneloop_step(side: Side, work: Work) -> Step:
    """The learner, as the service and `tuneloop train` run it."""
    from tuneloop.learner.trainer.policy import PolicyTrainer
    from tuneloop.learner.trainer.settings import TrainerSettings
    from tuneloop.policies import WeightsKind

    if work.objective == "reward_model":
        return tuneloop_reward_step(side, work)
    settings = TrainerSettings(
        kind=WeightsKind.FULL,
        learning_rate=LEARNING_RATE,
        threads=side.threads,
        device=side.device,
        beta_dpo=BETA,
        beta_kto=BETA,
        beta_grpo=0.0,
        dual_clip=1e9,
        warmup_steps=0,
        spike_factor=None,
    )
    trainer = PolicyTrainer(side.model, settings)
    samples = tuneloop_samples(trainer.model, work, settings.tokens_at_once)

    def step() -> tuple[float, float]:
        result = trainer.step({work.objective: samples})
        assert not result.skipped, result.reason
        return result.metrics[f"{work.objective}_loss"], result.metrics["gradient_norm"]

    return step


def tuneloop_samples(model: Any, work: Work, token_budget: int) -> list[Any]:
    """Samples as the ledger keeps them: with reference log-probs where the objective has them."""
    from dataclasses import replace

    from tuneloop.learner.samples import (
        DemonstrationSample,
        PairSample,
        ScoredGroup,
        ScoredSample,
        ThumbSample,
        TokenSequence,
    )

    rows = [
        TokenSequence(
            prompt_token_ids=prompt,
            completion_token_ids=completion,
            generation_logprobs=(),
            temperature=1.0,
        )
        for prompt, completion in work.rows
    ]
    if work.objective in ("kto", "dpo"):
        found = model.compute_references(rows, token_budget=token_budget)
        known = [reference.logprobs for reference in found]
        rows = [replace(row, ref_logprobs=k) for row, k in zip(rows, known, strict=True)]
    match work.objective:
        case "sft":
            return [DemonstrationSample(sample_id=str(i), sequence=r) for i, r in enumerate(rows)]
        case "kto":
            return [
                ThumbSample(sample_id=str(i), sequence=r, desirable=i % 2 == 0)
                for i, r in enumerate(rows)
            ]
        case "dpo":
            half = len(rows) // 2
            return [
                PairSample(sample_id=str(i), chosen=rows[i], rejected=rows[half + i])
                for i in range(half)
            ]
    scored = tuple(
        ScoredSample(sample_id=str(i), sequence=row, reward=reward, policy_version=0, stopped=True)
        for i, (row, reward) in enumerate(zip(rows, work.rewards, strict=True))
    )
    return [ScoredGroup(sample_id="group", samples=scored)]


def tuneloop_reward_step(side: Side, work: Work) -> Step:
    """The reward trainer."""
    from tuneloop.learner.samples import PreferredText
    from tuneloop.learner.trainer.reward_model import RewardTrainer
    from tuneloop.learner.trainer.settings import RewardTrainerSettings

    settings = RewardTrainerSettings(
        learning_rate=LEARNING_RATE,
        head_learning_rate=LEARNING_RATE,
        weight_decay=0.0,
        spike_factor=None,
        max_length=1024,
        threads=side.threads,
        device=side.device,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = RewardTrainer(classifier(side.model, Path(folder)), settings)
    texts, half = texts_of(side.model, work), len(work.rows) // 2
    samples = [
        PreferredText(
            sample_id=str(i), prompt=texts[i][0], chosen=texts[i][1], rejected=texts[half + i][1]
        )
        for i in range(half)
    ]

    def step() -> tuple[float, float]:
        result = trainer.step({"reward_model": samples})
        assert not result.skipped, result.reason
        return result.metrics["pair_loss"], result.metrics["gradient_norm"]

    return step
