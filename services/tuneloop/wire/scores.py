"""Scores, and the event of a scored rollout."""

import math

from tuneloop.rollouts import Score, ScoredRollout, ScorerResult
from tuneloop.v1 import events_pb2, reward_pb2
from tuneloop.wire.fields import moment, parse, require, timestamp


def score_to_proto(score: Score) -> reward_pb2.Score:
    """A score."""
    return reward_pb2.Score(
        reward=score.reward,
        results=[
            reward_pb2.ScorerResult(
                scorer=r.scorer, score=r.score, weight=r.weight, informative=r.informative
            )
            for r in score.results
        ],
    )


def score_from_proto(message: reward_pb2.Score) -> Score:
    """A score; numbers must be finite."""
    for result in message.results:
        require(bool(result.scorer), "scorer", "missing")
        require(math.isfinite(result.score), f"score of {result.scorer}", "must be finite")
    require(math.isfinite(message.reward), "reward", "must be finite")
    return Score(
        reward=message.reward if message.HasField("reward") else None,
        results=tuple(
            ScorerResult(
                scorer=r.scorer,
                score=r.score if r.HasField("score") else None,
                weight=r.weight,
                informative=r.informative,
            )
            for r in message.results
        ),
    )


def score_event_id(scored: ScoredRollout) -> str:
    """Event id of a score: one for each completion and version of the reward model."""
    return f"score-{scored.completion_id}-{scored.reward_model_version}"


def encode_rollout_scored(scored: ScoredRollout) -> bytes:
    """Event bytes of a score."""
    return events_pb2.RolloutScored(
        event_id=score_event_id(scored),
        policy=scored.policy,
        completion_id=scored.completion_id,
        score=score_to_proto(scored.score),
        reward_model_version=scored.reward_model_version,
        scored_time=timestamp(scored.scored_time),
        traceparent=scored.traceparent or None,
    ).SerializeToString()


def decode_rollout_scored(data: bytes) -> ScoredRollout:
    """Decode the score of an event. Raises `CorruptData`."""
    message = parse(events_pb2.RolloutScored, data)
    require(bool(message.completion_id), "completion_id", "missing")
    require(bool(message.policy), "policy", "missing")
    return ScoredRollout(
        completion_id=message.completion_id,
        policy=message.policy,
        score=score_from_proto(message.score),
        reward_model_version=message.reward_model_version,
        scored_time=moment(message.scored_time, "scored_time"),
        traceparent=message.traceparent,
    )
