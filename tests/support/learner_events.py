"""Events the learner takes in, made by hand, and a trainer that only counts."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

from tuneloop.errors import CorruptData, InvalidRequest
from tuneloop.feedback import (
    Comment,
    Comparison,
    Demonstration,
    Feedback,
    Judgement,
    Metric,
    Ranking,
    Rating,
    Signal,
    SignalKind,
    Thumb,
    signal_id,
)
from tuneloop.learner.batching.batch import ids_of
from tuneloop.learner.guards.hints import problem_of_hint
from tuneloop.learner.models.memory import run_in_smaller_passes
from tuneloop.learner.samples import Reference, TokenSequence, sequences_of, tokens_of
from tuneloop.learner.samples.learned_tokens import as_learned
from tuneloop.learner.trainer.base import StepResult
from tuneloop.rollouts import (
    ChatMessage,
    FinishReason,
    PolicyVersionSpan,
    Rollout,
    RolloutSource,
    SamplingParameters,
    Score,
    ScoredRollout,
    ScorerResult,
)

START = datetime(2026, 1, 1, tzinfo=UTC)


def make_rollout(
    completion_id: str,
    *,
    group_id: str = "",
    user: str = "u1",
    version: int = 0,
    prompt: Sequence[int] = (1, 5, 6),
    completion: Sequence[int] = (),
    temperature: float = 0.7,
    text: str = "Hello.",
    policy: str = "tuneloop",
    n: int = 1,
    source: RolloutSource = RolloutSource.USER,
    thought: int = 0,
) -> Rollout:
    """Return a rollout; its three tokens follow from its id where none are given.

    The first `thought` of them are what the model thought.
    """
    if not completion:
        number = crc32(completion_id.encode())
        completion = (3 + number % 40, 3 + number // 40 % 40, 2)
    return Rollout(
        completion_id=completion_id,
        group_id=group_id or f"group-{completion_id}",
        policy=policy,
        tenant="default",
        user_hash=user,
        messages=(ChatMessage(role="user", content="Hi"),),
        prompt_text="<user>Hi",
        completion_text=text,
        prompt_token_ids=tuple(prompt),
        completion_token_ids=tuple(completion),
        generation_logprobs=(-0.5,) * len(completion),
        finish_reason=FinishReason.STOP,
        policy_version_spans=(
            PolicyVersionSpan(policy_version=version, start=0, end=len(completion)),
        ),
        sampling=SamplingParameters(temperature=temperature, n=n),
        finished_time=START,
        source=source,
        reasoning_text="Let me see." if thought else "",
        reasoning_tokens=thought,
    )


def make_turn(
    completion_id: str,
    number: int,
    *,
    session_id: str = "s",
    second: float | None = None,
    tenant: str = "default",
    **kwargs: Any,
) -> Rollout:
    """Return the rollout of turn `number` of a session, from 0, which finished in that second."""
    turns = [
        ChatMessage(role=role, content=f"{text} {n}")
        for n in range(number + 1)
        for role, text in (("user", "Question"), ("assistant", "Answer"))
    ]
    values = {"prompt": (1, 5, 10 + number), "text": f"Answer {number}"} | kwargs
    return replace(
        make_rollout(completion_id, **values),
        messages=tuple(turns[:-1]),
        session_id=session_id,
        tenant=tenant,
        finished_time=START + timedelta(seconds=number if second is None else second),
    )


def make_feedback(
    feedback_id: str,
    completion_id: str,
    judgement: Judgement,
    *,
    user: str = "u1",
    second: float = 0,
    policy: str = "tuneloop",
    session_id: str = "",
    tenant: str = "default",
) -> Feedback:
    return Feedback(
        feedback_id=feedback_id,
        policy=policy,
        tenant=tenant,
        user_hash=user,
        completion_id=completion_id,
        session_id=session_id,
        judgement=judgement,
        accepted_time=START + timedelta(seconds=second),
    )


def make_thumb(feedback_id: str, completion_id: str, up: bool = True, **kwargs: Any) -> Feedback:
    return make_feedback(feedback_id, completion_id, Thumb(up=up), **kwargs)


def make_comparison(feedback_id: str, chosen: str, *rejected: str, **kwargs: Any) -> Feedback:
    return make_feedback(
        feedback_id, chosen, Comparison(chosen=chosen, rejected=rejected), **kwargs
    )


def make_ranking(feedback_id: str, *completion_ids: str, **kwargs: Any) -> Feedback:
    ranking = Ranking(completion_ids=completion_ids)
    return make_feedback(feedback_id, completion_ids[0], ranking, **kwargs)


def make_rating(feedback_id: str, completion_id: str, value: float, **kwargs: Any) -> Feedback:
    return make_feedback(feedback_id, completion_id, Rating(value=value), **kwargs)


def make_metric(
    feedback_id: str, completion_id: str, name: str, value: bool | float, **kwargs: Any
) -> Feedback:
    return make_feedback(feedback_id, completion_id, Metric(name=name, value=value), **kwargs)


def make_edit(feedback_id: str, completion_id: str, text: str, **kwargs: Any) -> Feedback:
    return make_feedback(feedback_id, completion_id, Demonstration(text=text), **kwargs)


def make_comment(feedback_id: str, completion_id: str, text: str, **kwargs: Any) -> Feedback:
    return make_feedback(feedback_id, completion_id, Comment(text=text), **kwargs)


class LetterTokens:
    """Token ids of what users write, a letter each, for tests without a tokenizer."""

    def __call__(self, text: str, original: Sequence[int], thought: int = 0) -> tuple[int, ...]:
        return (*original[:thought], *(ord(letter) for letter in text), original[-1])

    def hinted(
        self, prompt: Sequence[int], messages: Sequence[ChatMessage], comment: str
    ) -> tuple[int, ...]:
        if problem := problem_of_hint(comment):
            raise InvalidRequest(problem)
        return (*prompt, *(ord(letter) for letter in comment))


edit_tokens = LetterTokens()


def make_signal(
    completion_id: str,
    kind: str = "copied",
    *,
    user: str = "u1",
    second: float = 0,
    distance: float | None = None,
    id: str = "",
) -> Signal:
    return Signal(
        signal_id=id or signal_id(completion_id, SignalKind(kind)),
        kind=SignalKind(kind),
        policy="tuneloop",
        tenant="default",
        user_hash=user,
        completion_id=completion_id,
        accepted_time=START + timedelta(seconds=second),
        distance=0.5 if kind == "edited" and distance is None else distance,
        api_key_id="local",
    )


def make_score(
    completion_id: str,
    reward: float | None = 1.0,
    *,
    informative: bool = True,
    reward_model_version: int = 1,
) -> ScoredRollout:
    result = ScorerResult(scorer="reward_model", score=reward, weight=1.0, informative=informative)
    return ScoredRollout(
        completion_id=completion_id,
        policy="tuneloop",
        score=Score(reward=reward, results=(result,)),
        reward_model_version=reward_model_version,
        scored_time=START,
    )


class CountingTrainer:
    """A trainer whose weights are the list of samples it was trained on."""

    needs_reference = frozenset({"kto", "dpo", "ppo", "grpo"})

    def __init__(self) -> None:
        self.learned: list[str] = []
        self.refuses: set[str] = set()
        """Ids it says cannot be learned from."""
        self.fails_on: set[str] = set()
        """Ids it falls over."""
        self.skips_on: dict[str, str] = {}
        """Ids of samples that a guard skips the step for, and its reason."""
        self.too_large: set[str] = set()
        """Ids that there is not enough memory for."""
        self.token_budget = 1024
        self.most_tokens = 1024
        """The largest token budget that there is enough memory for."""
        self.full_batch: int | None = None
        """Samples of a full step; without it steps do not say what part of one they are."""
        self.breaks_on: set[str] = set()
        """Ids that make its weights not finite."""
        self.broken = False
        self.while_writing: Callable[[], None] = lambda: None
        """Called while a checkpoint is being written, in the thread that writes it."""
        self.referred: list[TokenSequence] = []
        """Sequences whose reference log-probs were computed."""
        self.measured: list[TokenSequence] = []
        """Sequences whose log-probs were asked for."""

    def step(self, samples: Mapping[str, Sequence[Any]]) -> StepResult:
        return run_in_smaller_passes(self, lambda: self._take_step(samples))

    def _take_step(self, samples: Mapping[str, Sequence[Any]]) -> StepResult:
        ids = [
            f"{name}:{sample_id}"
            for name, group in samples.items()
            for sample in group
            for sample_id in ids_of(sample)
        ]
        for name in ids:
            sample_id = name.split(":")[1]
            if sample_id in self.refuses:
                raise InvalidRequest(f"sample {sample_id}: too long", param=sample_id)
            if sample_id in self.fails_on:
                raise RuntimeError("a kernel failed")
            if sample_id in self.too_large:
                raise MemoryError("cannot allocate 9 bytes")
        if self.token_budget > self.most_tokens:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        reasons = [self.skips_on.get(name.split(":")[1], "") for name in ids]
        if any(reasons):
            return StepResult(metrics={}, skipped=True, reason=max(reasons))
        self.learned += ids
        self.broken = any(name.split(":")[1] in self.breaks_on for name in ids)
        metrics = {"loss": 1.0 / len(self.learned), "kl": 0.1}
        if self.full_batch is not None:
            metrics["evidence"] = min(1.0, len(ids) / self.full_batch)
        logprobs = {
            tokens_of(s): (s, -1.0 * len(s.completion_token_ids))
            for group in samples.values()
            for sample in group
            for s in sequences_of(sample)
        }
        return StepResult(metrics=metrics, logprobs=logprobs)

    def reference_logprobs(self, sequences: Sequence[TokenSequence]) -> list[tuple[float, ...]]:
        self.referred += sequences
        return [(-0.25,) * len(sequence.completion_token_ids) for sequence in sequences]

    def references(self, sequences: Sequence[TokenSequence]) -> list[Reference]:
        return [Reference(logprobs=found) for found in self.reference_logprobs(sequences)]

    def logprobs(self, sequences: Sequence[TokenSequence]) -> list[tuple[float, ...]]:
        self.measured += sequences
        return [(-0.75,) * len(sequence.completion_token_ids) for sequence in sequences]

    def finite(self) -> bool:
        return not self.broken

    def limit_tokens(self, token_budget: int) -> None:
        self.token_budget = token_budget

    def check(self, objective: str, sample: Any) -> None:
        pass

    def as_learned(self, sample: Any) -> Any:
        return as_learned(sample, "policy_gradient")

    def stage_checkpoint(self, position: Mapping[str, Any]) -> Callable[[Path], None]:
        return partial(self._write, json.dumps(self.learned))

    def _write(self, state: str, folder: Path) -> None:
        unfinished = folder.with_name(f".unfinished-{folder.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        self.while_writing()
        (unfinished / "state.json").write_text(state)
        unfinished.rename(folder)

    def load_checkpoint(self, folder: Path) -> None:
        try:
            self.learned = json.loads((folder / "state.json").read_text())
            self.broken = False
        except (OSError, ValueError) as error:
            raise CorruptData(f"checkpoint {folder.name}: {error}") from error

    def save_weights(self, folder: Path) -> None:
        header = json.dumps({"__metadata__": {"learned": json.dumps(self.learned)}}).encode()
        data = len(header).to_bytes(8, "little") + header
        (folder / "adapter_model.safetensors").write_bytes(data)
        (folder / "adapter_config.json").write_text("{}")
