"""`/v1/sessions/{id}`: what there is of a session and what learned from it; forget it."""

from fastapi import APIRouter, Request

from tuneloop.api.policies import ForgottenSession, Session
from tuneloop.errors import InvalidRequest
from tuneloop.gateway.context import gateway_of
from tuneloop.gateway.feedback.browse import feedback_item
from tuneloop.gateway.openai.sessions import check_session_id
from tuneloop.gateway.routes.learner import rfc3339
from tuneloop.gateway.routes.lineage import LINEAGE_TIMEOUT, downstream, forgotten_records
from tuneloop.gateway.routes.users import FORGET_TIMEOUT
from tuneloop.rpc.status import reply_of
from tuneloop.v1 import learner_pb2

router = APIRouter(tags=["sessions"])

LEFT_IN_STREAM = (
    "Rows, and events of feedback, are gone. Events of the answers stay in the stream of rollouts "
    "until it drops them by age; they are not recorded again."
)
LEARNED = "Weights are not unlearned: these versions still carry what they learned."


@router.get("/v1/sessions/{session_id:path}")
async def get_session(session_id: str, request: Request) -> Session:
    """Return a session's turns, the feedback on it and them, and the versions that learned."""
    gateway = gateway_of(request)
    question = learner_pb2.GetSessionRequest(
        tenant=gateway.settings.tenant, session_id=checked(session_id)
    )
    answer: learner_pb2.GetSessionResponse = await reply_of(
        gateway.learner.GetSession(question, timeout=LINEAGE_TIMEOUT)
    )
    return {
        "id": session_id,
        "turns": [
            {
                "completion_id": turn.completion_id,
                "policy_version": turn.policy_version,
                "finished_time": rfc3339(turn.finished_time),
                "feedback_ids": list(turn.feedback_ids),
                "used_by_versions": list(turn.used_by_versions),
            }
            for turn in answer.turns
        ],
        "feedback": [feedback_item(item) for item in answer.feedback],
        "policy": downstream(answer.policy),
        "reward_model": downstream(answer.reward_model),
        "rebuild_from": answer.rebuild_from if answer.HasField("rebuild_from") else None,
        "forgotten": forgotten_records(answer.forgotten),
    }


@router.delete("/v1/sessions/{session_id:path}")
async def forget_session(session_id: str, request: Request) -> ForgottenSession:
    """Delete a session's rollouts and the feedback on them; list the versions that learned.

    Weights are not unlearned, and the events of its answers stay in their stream until that drops
    them by age. `rebuild_from` is the last version that had not learned from the session.
    """
    gateway = gateway_of(request)
    question = learner_pb2.ForgetSessionRequest(
        tenant=gateway.settings.tenant, session_id=checked(session_id)
    )
    gateway.conversations.forget(lambda kept: kept.session_id == session_id)
    removed: learner_pb2.ForgetSessionResponse = await reply_of(
        gateway.learner.ForgetSession(question, timeout=FORGET_TIMEOUT)
    )
    learned = removed.policy_versions or removed.reward_model_versions
    return {
        "id": session_id,
        "deleted": True,
        "rollouts_removed": removed.rollouts_removed,
        "feedback_removed": removed.feedback_removed,
        "events_purged": removed.events_purged,
        "events_left_on_disk": removed.events_left_on_disk,
        "policy_versions": list(removed.policy_versions),
        "descended_versions": list(removed.descended_versions),
        "reward_model_versions": list(removed.reward_model_versions),
        "rebuild_from": removed.rebuild_from if removed.HasField("rebuild_from") else None,
        "note": f"{LEFT_IN_STREAM} {LEARNED}" if learned else LEFT_IN_STREAM,
    }


def checked(session_id: str) -> str:
    """Return the id of a path. Raises `InvalidRequest` if no session may be called that."""
    try:
        return check_session_id(session_id)
    except ValueError as error:
        raise InvalidRequest(f"session_id: {error}", param="session_id") from None
