"""`DELETE /v1/users/{id}`: forget an end user."""

from fastapi import APIRouter, Request

from tuneloop.api.policies import ForgottenUser
from tuneloop.gateway.context import gateway_of
from tuneloop.gateway.routes.lineage import user_hash_of
from tuneloop.rpc.status import reply_of
from tuneloop.v1 import learner_pb2

router = APIRouter(tags=["users"])

FORGET_TIMEOUT = 480.0
"""The learner finishes the current step, after it overwrote events for up to two minutes."""
NOTE = (
    "Rows and events are gone. Weights are not unlearned: these versions still carry what they "
    "learned."
)


@router.delete("/v1/users/{user_id:path}")
async def forget_user(user_id: str, request: Request) -> ForgottenUser:
    """Delete a user's rollouts and feedback; list the versions that learned from them.

    Weights are not unlearned. `rebuild_from` is the last version that had not learned from them,
    where `POST /v1/policies/rebuild` starts.
    """
    gateway = gateway_of(request)
    user_hash = user_hash_of(gateway, user_id)
    gateway.conversations.forget(lambda kept: kept.user_hash == user_hash)
    removed: learner_pb2.ForgetUserResponse = await reply_of(
        gateway.learner.ForgetUser(
            learner_pb2.ForgetUserRequest(user_hash=user_hash), timeout=FORGET_TIMEOUT
        )
    )
    return {
        "id": user_id,
        "deleted": True,
        "rollouts_removed": removed.rollouts_removed,
        "feedback_removed": removed.feedback_removed,
        "events_purged": removed.events_purged,
        "events_left_on_disk": removed.events_left_on_disk,
        "policy_versions": list(removed.policy_versions),
        "descended_versions": list(removed.descended_versions),
        "reward_model_versions": list(removed.reward_model_versions),
        "rebuild_from": removed.rebuild_from if removed.HasField("rebuild_from") else None,
        "note": NOTE if removed.policy_versions or removed.reward_model_versions else None,
    }
