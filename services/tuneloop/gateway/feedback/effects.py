"""How much likelier or less likely versions made the texts of feedback that they learned from."""

import math

from tuneloop.api.feedback import Effect
from tuneloop.errors import NotFound, Unavailable
from tuneloop.gateway.context import Gateway
from tuneloop.rpc.status import reply_of
from tuneloop.v1 import learner_pb2

TIMEOUT = 2.0
"""Feedback is shown without its effects rather than late."""
MOST = 100.0
"""Nats: past that no number says more, and its exponential would not fit."""


async def find_lineage(
    gateway: Gateway, feedback_id: str
) -> learner_pb2.GetFeedbackLineageResponse | None:
    """Return what became of feedback; None where the learner is down.

    What the learner has not recorded yet has reached nothing.
    """
    question = learner_pb2.GetFeedbackLineageRequest(feedback_id=feedback_id)
    try:
        answer: learner_pb2.GetFeedbackLineageResponse = await reply_of(
            gateway.learner.GetFeedbackLineage(question, timeout=TIMEOUT)
        )
    except NotFound:
        return learner_pb2.GetFeedbackLineageResponse(feedback_id=feedback_id)
    except Unavailable:
        return None
    return answer


def effects_in(lineage: learner_pb2.GetFeedbackLineageResponse | None) -> list[Effect]:
    """Return the effects of an answer of the learner; none without one."""
    if lineage is None:
        return []
    return [
        {
            "policy_version": effect.policy_version,
            "text": effect.text,
            "completion_id": effect.completion_id or None,
            "tokens": effect.tokens,
            "logprob_before": effect.logprob_before,
            "logprob_after": effect.logprob_after,
            "times_as_likely": times_as_likely(effect.logprob_before, effect.logprob_after),
        }
        for effect in lineage.effects
    ]


def times_as_likely(before: float, after: float) -> float:
    """Return exp(after - before)."""
    return math.exp(max(-MOST, min(MOST, after - before)))
