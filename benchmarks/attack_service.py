"""The service of `attack`: the ledger, batches, guards and training runs, and tables for models."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.attack_tables import BATCH, Policy, RewardModel
from benchmarks.attack_world import ANSWERS, PROMPTS, Vote, World
from tuneloop.feedback import Feedback, Thumb
from tuneloop.learner.batching.batcher import PolicyBatcher, RewardBatcher
from tuneloop.learner.batching.trust import Trust
from tuneloop.learner.guards.settings import GuardSettings
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.monitoring.alarm_monitor import AlarmMonitor
from tuneloop.learner.settings import LearnerSettings
from tuneloop.learner.training_run import TrainingRun
from tuneloop.rollouts import (
    ChatMessage,
    FinishReason,
    PolicyVersionSpan,
    Rollout,
    SamplingParameters,
    Score,
    ScoredRollout,
    ScorerResult,
)

ROUNDS_A_VERSION = 4
ANSWERS_A_ROUND = 24
LABELS = 64
"""Thumbs from which on the reward model has something to say."""


class Service:
    """A policy in use."""

    def __init__(self, folder: Path, guards: Mapping[str, Any], *, seed: int) -> None:
        self.now = 0.0
        self.thumbs = 0
        self.policy = Policy(PROMPTS, ANSWERS)
        self._reward_model = RewardModel(PROMPTS, ANSWERS)
        self._chance = torch.Generator().manual_seed(seed)
        settings = LearnerSettings(
            model=folder,
            weights_uri="",
            signing_key_file=folder,
            verify_key_file=folder,
            data_dir=folder,
            batch_size=BATCH,
            reward_batch_size=BATCH,
            policy_gradient="off",
            guards=GuardSettings(**guards),
        )
        self._guards = settings.guards
        self._database = Database.at(folder / "ledger.db")
        self._turns = (
            (self._trainee("policy", self.policy, folder), PolicyBatcher),
            (self._trainee("reward_model", self._reward_model, folder), RewardBatcher),
        )
        self._batches = [
            make(self._database, settings, clock=lambda: self.now) for _, make in self._turns
        ]

    def _trainee(self, model: str, trainer: Any, folder: Path) -> TrainingRun:
        return TrainingRun(
            model=model,
            policy=model,
            trainer=trainer,
            database=self._database,
            checkpoints=folder / model,
            keep_checkpoints=2,
            clock=lambda: self.now,
        )

    def answer(self, world: World, round_number: int) -> None:
        """Answer some prompts, and take in the scores and the thumbs on that."""
        apart = world.apart(round_number)
        count = ANSWERS_A_ROUND + len(apart)
        asked = torch.randint(PROMPTS, (count,), generator=self._chance)
        chances = self.policy.probabilities()[asked]
        answers = torch.multinomial(chances, 1, generator=self._chance)[:, 0].tolist()
        rollouts, scored, given = [], [], []
        for number, (prompt, answer) in enumerate(zip(asked.tolist(), answers, strict=True)):
            name = f"c{round_number}-{number}"
            rollouts.append(self._rollout(name, prompt, answer, round_number // ROUNDS_A_VERSION))
            scored.append(self._scored(name, prompt, answer))
            if number < ANSWERS_A_ROUND:
                votes = list(world.votes(prompt, answer))
            else:
                rater = apart[number - ANSWERS_A_ROUND]
                votes = [Vote(rater=rater, up=world.verdict(rater, prompt, answer))]
            for vote in votes:
                given.append((self._thumb(name, vote.rater, vote.up), self.thumbs + 1))
                self.thumbs += 1
        recorder.record_rollouts(self._database, rollouts, self.now)
        recorder.record_scores(self._database, scored, self.now)
        recorder.record_feedback(self._database, given, self.now)

    def learn(self) -> None:
        """Take the steps that are due."""
        for (training_run, _), batches in zip(self._turns, self._batches, strict=True):
            while (batch := training_run.next_batch(batches)) is not None:
                training_run.train(batch)
                training_run.commit()

    def rater_weights(self) -> dict[str, float]:
        """What the guards make of the raters."""
        trust = Trust(self._database, self._guards, clock=lambda: self.now)
        return {rater: found.weight for rater, found in trust.raters().items()}

    def alarms(self) -> tuple[str, ...]:
        """Those that are raised now."""
        watch = AlarmMonitor(self._database, self._guards, clock=lambda: self.now)
        watch.check_alarms()
        return tuple(alarm.name for alarm in watch.raised)

    def _moment(self) -> datetime:
        return datetime.fromtimestamp(self.now, UTC)

    def _thumb(self, completion_id: str, rater: int, up: bool) -> Feedback:
        return Feedback(
            feedback_id=f"{completion_id}-u{rater}",
            policy="policy",
            tenant="default",
            user_hash=f"u{rater}",
            completion_id=completion_id,
            judgement=Thumb(up=up),
            accepted_time=self._moment(),
        )

    def _scored(self, completion_id: str, prompt: int, answer: int) -> ScoredRollout:
        score = float(self._reward_model.values[prompt, answer].detach())
        informed = self.thumbs >= LABELS
        result = ScorerResult(scorer="reward_model", score=score, weight=1.0, informative=informed)
        return ScoredRollout(
            completion_id=completion_id,
            policy="policy",
            score=Score(reward=score, results=(result,)),
            reward_model_version=1,
            scored_time=self._moment(),
        )

    def _rollout(self, completion_id: str, prompt: int, answer: int, version: int) -> Rollout:
        return Rollout(
            completion_id=completion_id,
            group_id=completion_id,
            policy="policy",
            tenant="default",
            user_hash="asker",
            messages=(ChatMessage(role="user", content=str(prompt)),),
            prompt_text=str(prompt),
            completion_text=f"{prompt} {answer}",
            prompt_token_ids=(prompt,),
            completion_token_ids=(answer,),
            generation_logprobs=(-1.0,),
            finish_reason=FinishReason.STOP,
            policy_version_spans=(PolicyVersionSpan(policy_version=version, start=0, end=1),),
            sampling=SamplingParameters(temperature=1.0),
            finished_time=self._moment(),
        )
