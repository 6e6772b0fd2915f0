"""Feedback as the fake learner's ledger has it."""

from datetime import UTC, datetime

from tuneloop import wire
from tuneloop.feedback import Feedback, Judgement
from tuneloop.v1 import learner_pb2


def recorded(feedback_id: str, judgement: Judgement) -> learner_pb2.RecordedFeedback:
    feedback = Feedback(
        feedback_id=feedback_id,
        policy="tuneloop",
        tenant="default",
        user_hash="ann",
        completion_id="one",
        judgement=judgement,
        accepted_time=datetime(2026, 1, 1, tzinfo=UTC),
    )
    item = learner_pb2.RecordedFeedback(
        feedback=wire.feedback_to_proto(feedback), status="accepted", prompt_text="a question"
    )
    item.completions.add(completion_id="one", text="an answer", policy_version=3)
    return item
