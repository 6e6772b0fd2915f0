"""What the pages show, as the learner would tell it."""

from typing import Any

from support.gateway_fakes import IDS

from tuneloop.v1 import learner_pb2, rollout_pb2


def recorded(number: int, **judgement: Any) -> learner_pb2.RecordedFeedback:
    """Feedback `number`, on a conversation, answered by version 2."""
    user_hash = IDS.user_hash("default", "ann")
    item = learner_pb2.RecordedFeedback(status="accepted", used_by_versions=[3])
    item.feedback.CopyFrom(
        learner_pb2.RecordedFeedback(
            feedback={
                "event_id": f"fb-{number}",
                "policy": "tuneloop",
                "tenant": "default",
                "user_hash": user_hash,
                "completion_id": f"chatcmpl-{number}",
                **judgement,
            }
        ).feedback
    )
    item.feedback.accepted_time.GetCurrentTime()
    item.feedback.metadata["app"] = "shop"
    item.chat.messages.append(rollout_pb2.ChatMessage(role="user", content=f"Question {number}?"))
    item.completions.append(
        learner_pb2.JudgedCompletion(
            completion_id=f"chatcmpl-{number}", text="An *answer*.", policy_version=2
        )
    )
    return item
