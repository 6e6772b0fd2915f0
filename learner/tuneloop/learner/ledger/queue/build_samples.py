"""Turn rows of ready samples into the samples that trainers take."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

from sqlalchemy import Connection, select

from tuneloop.learner.ledger.queue import agreement, ratings
from tuneloop.learner.ledger.queue.ratings import Ratings
from tuneloop.learner.ledger.rows import answer_tokens, unpack_ids, unpack_logprobs
from tuneloop.learner.ledger.schema import rankings, rollouts, scores
from tuneloop.learner.samples import (
    JUDGED_OBJECTIVES,
    SCORED_OBJECTIVES,
    CommentedSample,
    DemonstrationSample,
    LabelledText,
    Objective,
    PairSample,
    PolicySample,
    PreferredText,
    RankedText,
    RatedText,
    RewardSample,
    ScoredGroup,
    ScoredSample,
    ThumbSample,
    TokenSequence,
)
from tuneloop.learner.samples.learned_tokens import at_temperature_one
from tuneloop.rollouts import ChatMessage, FinishReason, RolloutSource, prompt_as_text

Sample = PolicySample | RewardSample


class EditTokens(Protocol):
    """Tokenizes what users write of answers, with the policy's tokenizer."""

    def __call__(self, text: str, original: Sequence[int], thought: int = 0) -> tuple[int, ...]:
        """Return the tokens of an edited answer and its end of turn, given the original's.

        The first `thought` of the original's are its thought, which comes before the edit too.
        """
        ...

    def hinted(
        self, prompt: Sequence[int], messages: Sequence[ChatMessage], comment: str
    ) -> tuple[int, ...]:
        """Return a prompt's tokens with a comment on its answer as a hint in it.

        Raises `InvalidRequest` for a comment that cannot be a hint.
        """
        ...


LEAST_TEMPERATURE = 0.1
"""Of rollouts for policy gradients, whose gradients grow with its inverse."""


def problem_of(row: Any) -> str | None:
    """Return why a ready sample cannot be trained on, or None."""
    is_pair = row.rejected_id is not None and row.kind != "follow_up"
    if is_pair and (problem := problem_of_pair(row)):
        return problem
    if row.objective in SCORED_OBJECTIVES:
        if row.chosen_temperature < LEAST_TEMPERATURE:
            return (
                f"sampled at temperature {row.chosen_temperature:g}, below {LEAST_TEMPERATURE:g}: "
                "all but greedily, so no importance ratio says anything"
            )
        if not row.chosen_generation_logprobs:
            return "no policy sampled it: no importance ratio is defined"
    if row.objective in JUDGED_OBJECTIVES and lacks_answer(row):
        return "the answer was cut off in its thought: there is nothing to learn from"
    edited = row.kind == "edit" and row.objective != Objective.SFT
    if edited and text_of(row) == row.chosen_completion_text:
        return "the edit is the answer as it was"
    return None


def lacks_answer(row: Any) -> bool:
    """Return whether a judged rollout, or the other one of a pair, is a thought and no more."""
    is_pair = row.rejected_id is not None and row.kind != "follow_up"
    return any(
        row._mapping[f"{which}_reasoning_tokens"] and not answer_of(row, which)
        for which in ("chosen", *["rejected"] * is_pair)
    )


def answer_of(row: Any, which: str = "chosen") -> bytes:
    """Return the tokens of a rollout's answer as they are stored, without those of its thought."""
    columns = row._mapping
    return answer_tokens(
        columns[f"{which}_completion_tokens"], columns[f"{which}_reasoning_tokens"]
    )


def problem_of_pair(row: Any) -> str | None:
    """Return why one of two completions cannot be preferred to the other, or None."""
    if row.rejected_id == row.completion_id:
        return "a completion compared with itself"
    if row.chosen_prompt_tokens != row.rejected_prompt_tokens:
        return "the completions answer different prompts"
    if answer_of(row) == answer_of(row, "rejected"):
        return "the completions have the same tokens"
    return None


def text_of(row: Any) -> str:
    """Return what a user wrote: the edited answer, the comment, or their next message."""
    if row.kind == "follow_up":
        _, text = json.loads(row.rejected_messages)[-1]
        return str(text)
    return str(json.loads(row.payload)["text"])


class Builder:
    """Builds the samples of one read of the ledger."""

    def __init__(
        self,
        connection: Connection,
        edit_tokens: EditTokens | None,
        *,
        higher_is_better: bool = True,
    ) -> None:
        """`higher_is_better` is of the metric that is the reward."""
        self._connection = connection
        self._edit_tokens = edit_tokens
        self._sign = 1.0 if higher_is_better else -1.0
        self._metrics: dict[tuple[str, bool], Ratings] = {}

    def build(self, row: Any) -> Sample:
        """Return the sample of a row that has no problem.

        Raises `InvalidRequest` for a comment that cannot be a hint.
        """
        match row.objective:
            case Objective.KTO:
                return ThumbSample(
                    sample_id=row.sample_id,
                    sequence=judged_sequence(row, "chosen"),
                    desirable=row.verdict == "up",
                    weight=row.weight,
                )
            case Objective.SFT:
                return DemonstrationSample(
                    sample_id=row.sample_id,
                    sequence=self._edited(row),
                    shows_thought=bool(
                        row.chosen_source == RolloutSource.IMPORT
                        and row.chosen_reasoning_text.strip()
                    ),
                )
            case Objective.DPO:
                return self._pair(row)
            case Objective.SDFT:
                return self._commented(row)
            case Objective.PPO | Objective.GRPO:
                return self._of_policy_gradient(row)
        return self._reward_sample(row)

    def _of_policy_gradient(self, row: Any) -> ScoredSample | ScoredGroup:
        scored = self.scored(row)
        if row.objective == Objective.PPO:
            return scored
        # What is expected is the mean of the user's ratings or values, which is 0. Who judges an
        # answer that was cut has said what that costs.
        return ScoredGroup(
            sample_id=row.sample_id,
            samples=(scored,),
            baseline=0.0,
            cut_share=float(not scored.stopped),
        )

    def scored(self, row: Any) -> ScoredSample:
        """Return a rollout with its reward: its score, a user's rating or a metric."""
        match row.kind:
            case "rating":
                reward = self._rating(row)
            case "metric":
                reward = self._measured(row)
            case _:
                reward = reward_of(self._connection, row.completion_id)
        return ScoredSample(
            sample_id=row.sample_id,
            sequence=sequence_of(row, "chosen"),
            reward=reward,
            policy_version=row.chosen_oldest_version,
            stopped=row.chosen_finish_reason == FinishReason.STOP,
            weight=row.weight,
        )

    def _pair(self, row: Any) -> PairSample:
        edited = row.kind == "edit"
        if edited:
            # A user who wrote a better answer did not press the wrong button.
            flip_rate = 0.0
        elif row.kind == "siblings":
            flip_rate = agreement.flip_rate_of_siblings(self._flip_rate)
        else:
            flip_rate = self._flip_rate
        return PairSample(
            sample_id=row.sample_id,
            chosen=self._edited(row) if edited else judged_sequence(row, "chosen"),
            rejected=judged_sequence(row, "chosen" if edited else "rejected"),
            flip_rate=flip_rate,
            weight=row.weight,
        )

    def _commented(self, row: Any) -> CommentedSample:
        assert self._edit_tokens is not None, "comments are taken with the policy's tokenizer"
        sequence = judged_sequence(row, "chosen")
        hinted = self._edit_tokens.hinted(sequence.prompt_token_ids, messages_of(row), text_of(row))
        return CommentedSample(
            sample_id=row.sample_id, sequence=sequence, hinted_prompt_token_ids=hinted
        )

    def _edited(self, row: Any) -> TokenSequence:
        """Return the edited answer after the rollout's prompt and its thought."""
        assert self._edit_tokens is not None, "edits are taken with the policy's tokenizer"
        original = judged_sequence(row, "chosen")
        thought = original.reasoning_tokens
        edited = self._edit_tokens(text_of(row), original.completion_token_ids, thought)
        return replace(original, completion_token_ids=edited, generation_logprobs=())

    def _reward_sample(self, row: Any) -> RewardSample:
        common = {"sample_id": row.sample_id, "prompt": prompt_of(row), "weight": row.weight}
        answer = row.chosen_completion_text
        match row.kind:
            case "thumb":
                return LabelledText(**common, completion=answer, desirable=row.verdict == "up")
            case "rating":
                return RatedText(**common, completion=answer, rating=self._rating(row))
            case "edit":
                return PreferredText(**common, chosen=text_of(row), rejected=answer)
            case "ranking":
                return RankedText(**common, completions=self._ranked(row.feedback_id))
        return PreferredText(**common, chosen=answer, rejected=row.rejected_completion_text)

    def _ranked(self, feedback_id: str) -> tuple[str, ...]:
        query = (
            select(rollouts.c.completion_text)
            .join(rankings, rankings.c.completion_id == rollouts.c.completion_id)
            .where(rankings.c.feedback_id == feedback_id)
            .order_by(rankings.c.position)
        )
        return tuple(self._connection.execute(query).scalars())

    def _rating(self, row: Any) -> float:
        value = float(json.loads(row.payload)["value"])
        return self._ratings.standardised(row.user_hash, value)

    def _measured(self, row: Any) -> float:
        """Return a metric's value as a reward, in deviations from the mean of its user's values."""
        judgement = json.loads(row.payload)
        name, value = judgement["name"], judgement["value"]
        which = (name, isinstance(value, bool))
        if which not in self._metrics:
            own = ratings.measured(name, is_boolean=which[1])
            self._metrics[which] = ratings.read(self._connection, own)
        return self._sign * self._metrics[which].standardised(row.user_hash, float(value))

    @cached_property
    def _ratings(self) -> Ratings:
        return ratings.read(self._connection)

    @cached_property
    def _flip_rate(self) -> float:
        return agreement.flip_rate(self._connection)


def judged_sequence(row: Any, which: str) -> TokenSequence:
    """Return `sequence_of` as the losses of preferences and demonstrations take it."""
    return at_temperature_one(sequence_of(row, which))


def sequence_of(row: Any, which: str) -> TokenSequence:
    """Return prompt and completion of the `chosen` or the `rejected` rollout of a row."""
    columns = row._mapping
    return TokenSequence(
        prompt_token_ids=unpack_ids(columns[f"{which}_prompt_tokens"]),
        completion_token_ids=unpack_ids(columns[f"{which}_completion_tokens"]),
        generation_logprobs=unpack_logprobs(columns[f"{which}_generation_logprobs"]),
        temperature=columns[f"{which}_temperature"] or 1.0,
        reasoning_tokens=columns[f"{which}_reasoning_tokens"],
    )


def prompt_of(row: Any) -> str:
    """Return the prompt as the reward model reads it."""
    return prompt_as_text(messages_of(row), row.chosen_prompt_text)


def messages_of(row: Any) -> list[ChatMessage]:
    """Return the conversation that was answered; none of a plain prompt."""
    turns = json.loads(row.chosen_messages)
    return [ChatMessage(role=role, content=content) for role, content in turns]


def reward_of(connection: Connection, completion_id: str) -> float:
    """Return the newest reward model's reward, from an informative score if there is one."""
    query = (
        select(scores.c.reward)
        .where(scores.c.completion_id == completion_id, scores.c.reward.is_not(None))
        .order_by(scores.c.informative.desc(), scores.c.reward_model_version.desc())
        .limit(1)
    )
    return float(connection.execute(query).scalar_one())
