"""Thumbs as a service gets them, late, rare, some wrong; or as all that there is to learn from.

Nothing here knows the hidden preference but the users, and the score of the results.
"""

import random
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch

from benchmarks.hidden_preference import make_model, make_trainer
from benchmarks.quality_task import (
    GROUP,
    Answers,
    Curve,
    answer,
    evaluate,
    groups_of,
    is_point,
    make_tokenizer,
    random_prompts,
    score_of,
    scored,
    words_of,
)
from tuneloop.feedback import Feedback, Thumb
from tuneloop.learner.batching.batcher import PolicyBatcher
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.samples import LabelledText, ScoredGroup, ThumbSample, TokenSequence
from tuneloop.learner.settings import LearnerSettings
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.reward_model import RewardTrainer
from tuneloop.learner.trainer.settings import RewardTrainerSettings
from tuneloop.learner.training_run import TrainingRun
from tuneloop.models.reward_model import load, silence_loading
from tuneloop.policies import WeightsKind
from tuneloop.rollouts import (
    ChatMessage,
    FinishReason,
    PolicyVersionSpan,
    Rollout,
    SamplingParameters,
)

POLICY = "tuneloop"
USERS = 40
ADVERSARIES = 2
"""Users who always say the opposite: 5 % of all."""
THUMBS = 32
"""In a step, and on average given on the answers of one version."""
REWARD_BATCH = 32
FRESH = 8
"""Thumbs of a batch of the reward model that it has not learned from before."""
PUBLISHED = 4
"""Steps of the policy to a version of the reward model."""
HEARD = 0.85
"""Accuracy on unseen thumbs from which the reward model's scores count."""
START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveJob:
    """Users of the service for a while."""

    seed: int
    steps: int
    flips: float
    """Share of the honest users' thumbs that are the wrong way round."""
    response_rate: float
    """Share of the answers that get a thumb."""
    delay: int
    """Versions after which a thumb comes at the latest; uniform from 0."""
    rate: float = 3e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class ThumbsJob:
    """The conditional task, thumbs only."""

    seed: int
    steps: int
    kto: float
    """Weight of KTO."""
    grpo: float
    """Weight of GRPO on the reward model's scores; with 0 there is no reward model."""
    rate: float = 1e-3
    reward_rate: float = 1e-3


class Users:
    """Say what they like, or the opposite, at once or later."""

    def __init__(self, job: LiveJob) -> None:
        self._job = job
        self._random = random.Random(job.seed)
        self._coming: dict[int, list[tuple[Feedback, int]]] = defaultdict(list)
        self._count = 0

    def read(self, version: int, answers: Sequence[TokenSequence]) -> list[Rollout]:
        """Read answers of a version; returns them as the gateway reports them."""
        rollouts = []
        for sequence in answers:
            self._count += 1
            user = self._random.randrange(USERS)
            rollout = rollout_of(
                sequence,
                f"c{self._count}",
                f"u{user}",
                version,
                texts=(
                    words_of(sequence.prompt_token_ids),
                    words_of(sequence.completion_token_ids),
                ),
            )
            rollouts.append(rollout)
            if self._random.random() < self._job.response_rate:
                due = version + self._random.randint(0, self._job.delay)
                self._coming[due].append((self._thumb(rollout, user), self._count))
        return rollouts

    def arriving(self, version: int) -> list[tuple[Feedback, int]]:
        """Thumbs that come while a version serves."""
        return self._coming.pop(version, [])

    def _thumb(self, rollout: Rollout, user: int) -> Feedback:
        prompt, completion = rollout.prompt_token_ids, rollout.completion_token_ids
        liked = score_of(prompt, completion, conditional=False) > 0.5
        wrong = user < ADVERSARIES or self._random.random() < self._job.flips
        return thumb_on(rollout, liked != wrong, self._count)


def thumb_on(rollout: Rollout, up: bool, number: int) -> Feedback:
    """The `number`-th thumb as the gateway reports it."""
    return Feedback(
        feedback_id=f"f{number}",
        policy=POLICY,
        tenant="default",
        user_hash=rollout.user_hash,
        completion_id=rollout.completion_id,
        judgement=Thumb(up=up),
        accepted_time=START + timedelta(seconds=number),
    )


def rollout_of(
    sequence: TokenSequence,
    name: str,
    user: str,
    version: int,
    *,
    texts: tuple[str, str],
    stopped: bool = True,
) -> Rollout:
    """An answer as the gateway reports it; `texts` are those of the question and the answer."""
    tokens = sequence.completion_token_ids
    question, answer = texts
    return Rollout(
        completion_id=name,
        group_id=name,
        policy=POLICY,
        tenant="default",
        user_hash=user,
        messages=(ChatMessage(role="user", content=question),),
        prompt_text=question,
        completion_text=answer,
        prompt_token_ids=sequence.prompt_token_ids,
        completion_token_ids=tokens,
        generation_logprobs=sequence.generation_logprobs,
        finish_reason=FinishReason.STOP if stopped else FinishReason.LENGTH,
        policy_version_spans=(PolicyVersionSpan(policy_version=version, start=0, end=len(tokens)),),
        sampling=SamplingParameters(temperature=sequence.temperature, n=1),
        finished_time=START,
    )


def serve(folder: Path) -> Any:
    """A published version, to sample from."""
    from transformers import AutoModelForCausalLM

    with silence_loading():
        return AutoModelForCausalLM.from_pretrained(folder).eval()


def serve_users(job: LiveJob) -> Curve:
    """Serve, take thumbs into the ledger, learn from its batches; a version at each step."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        options: dict[str, Any] = {
            "model": make_model(folder / "model", job.seed),
            "weights_uri": str(folder),
            "signing_key_file": folder / "private.pem",
            "verify_key_file": folder / "public.pem",
            "data_dir": folder,
            "weights_kind": WeightsKind.FULL,
            "learning_rate": job.rate,
            "batch_size": THUMBS,
            "batch_wait_seconds": 0.0,
            # Anchors are in English, of which this model has no word.
            "trainer_settings": {"anchor_weight": 0.0, "betas": [0.9, 0.999]},
            "seed": job.seed,
            "threads": 1,
        }
        settings = LearnerSettings(**options)
        database = Database.at(folder / "ledger.db")
        training_run = TrainingRun(
            model="policy",
            policy=POLICY,
            trainer=PolicyTrainer(settings.model, settings.trainer(), base_model="tiny"),
            database=database,
            checkpoints=folder / "checkpoints",
            keep_checkpoints=1,
        )
        training_run.restore()
        batches = PolicyBatcher(database, settings)
        users, choose = Users(job), random.Random(job.seed)
        generator = torch.Generator().manual_seed(job.seed)
        serving = serve(settings.model)
        curve: Curve = [(0, evaluate(serving, conditional=False))]
        version = 0
        while version < job.steps:
            prompts = random_prompts(round(THUMBS / job.response_rate), choose)
            served = users.read(version, answer(serving, prompts, generator))
            recorder.record_rollouts(database, served, 0.0)
            recorder.record_feedback(database, users.arriving(version), 0.0)
            batch = training_run.next_batch(batches)
            if batch is not None:
                training_run.train(batch)
                training_run.commit()
            version += 1
            training_run.trainer.save_weights(folder / "served")
            serving = serve(folder / "served")
            if is_point(version, job.steps):
                curve.append((version, evaluate(serving, conditional=False)))
        database.close()
        return curve


def learn_from_thumbs(job: ThumbsJob) -> Curve:
    """Thumbs on fresh answers teach the policy by KTO, and the reward model that GRPO asks."""
    torch.set_num_threads(1)
    choose, generator = random.Random(job.seed), torch.Generator().manual_seed(job.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_model(Path(scratch) / "model", job.seed)
        weights = {"kto": job.kto, "grpo": job.grpo}
        policy = make_trainer(
            folder,
            job.seed,
            learning_rate=job.rate,
            objective_weights=weights,
            beta_grpo=0.0,
            # Divided by their spread, scores of answers that are all good would be noise alone.
            scale_rewards="none",
        )
        module = policy.model.module
        reader = Reader(Path(scratch), job)
        curve: Curve = [(0, evaluate(module, conditional=True))]
        for step in range(1, job.steps + 1):
            told = thumbs_on(answer(module, random_prompts(THUMBS, choose), generator))
            samples: dict[str, Any] = {"kto": told} if job.kto else {}
            if job.grpo:
                reader.learn(told)
                if reader.ranks_well:
                    prompts = [p for p in random_prompts(GROUP, choose) for _ in range(GROUP)]
                    samples["grpo"] = reader.groups(answer(module, prompts, generator))
            policy.step(samples)
            if is_point(step, job.steps):
                curve.append((step, evaluate(module, conditional=True)))
        return curve


def thumbs_on(answers: Answers) -> list[ThumbSample]:
    """What honest users say of answers to the conditional task."""
    return [
        ThumbSample(
            sample_id=str(number),
            sequence=s,
            desirable=score_of(s.prompt_token_ids, s.completion_token_ids, conditional=True) > 0.5,
        )
        for number, s in enumerate(answers)
    ]


class Reader:
    """The reward model: learns from thumbs, is heard once it tells unseen ones apart.

    Whether an answer suits its prompt is a product of two parities. Random weights of the usual
    deviation are next to linear at this width and stay at chance for a hundred thousand thumbs, so
    the backbone's are 1/√64.
    """

    def __init__(self, scratch: Path, job: ThumbsJob) -> None:
        backbone = make_model(scratch / "backbone", job.seed, spread=64**-0.5)
        make_tokenizer().save_pretrained(backbone)
        settings = RewardTrainerSettings(learning_rate=job.reward_rate, threads=1, seed=job.seed)
        self._trainer = RewardTrainer(backbone, settings)
        self._published = scratch / "published"
        self._random = random.Random(job.seed)
        self._seen: list[LabelledText] = []
        self._accuracy = 0.5
        self._publish()

    @property
    def ranks_well(self) -> bool:
        """Whether it is heard: right on so many unseen thumbs, over the last steps."""
        return self._accuracy >= HEARD

    def learn(self, thumbs: Sequence[ThumbSample]) -> None:
        """Learn from new thumbs, in batches that are for the most part old ones."""
        fresh = [
            LabelledText(
                sample_id=thumb.sample_id,
                prompt=words_of(thumb.sequence.prompt_token_ids),
                completion=words_of(thumb.sequence.completion_token_ids),
                desirable=thumb.desirable,
            )
            for thumb in thumbs
        ]
        right = [
            (score > 0) == thumb.desirable
            for thumb, score in zip(fresh, self._scores([t.sequence for t in thumbs]), strict=True)
        ]
        self._accuracy += 0.1 * (sum(right) / len(right) - self._accuracy)
        for start in range(0, len(fresh), FRESH):
            new = fresh[start : start + FRESH]
            self._seen += new
            batch = [*new, *self._random.choices(self._seen, k=REWARD_BATCH - FRESH)]
            self._trainer.step({"reward_model": batch})
        if len(self._seen) % (PUBLISHED * len(fresh)) == 0:
            self._publish()

    def groups(self, answers: Answers) -> list[ScoredGroup]:
        """Answers with its scores as rewards."""
        samples = [
            replace(sample, reward=reward)
            for sample, reward in zip(
                scored(answers, conditional=True), self._scores(answers), strict=True
            )
        ]
        return groups_of(samples)

    def _publish(self) -> None:
        self._trainer.save_weights(self._published)
        self._model = load(self._published, 512, "cpu", torch.float32)

    def _scores(self, answers: Answers) -> list[float]:
        """Of the published version, as the service has them."""
        scores = self._model.score(
            [words_of(s.prompt_token_ids) for s in answers],
            [words_of(s.completion_token_ids) for s in answers],
        )
        return [float("nan") if score is None else score for score in scores]
