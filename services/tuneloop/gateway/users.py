"""`DELETE /v1/users/{id}`: forget an end user."""

from typing import Any

from fastapi import APIRouter, Request

from tuneloop.gateway.context import gateway_of
from tuneloop.gateway.remote import asked
from tuneloop.v1 import learner_pb2

router = APIRouter(tags=["users"])

FORGET_TIMEOUT = 60.0


@router.delete("/v1/users/{user_id:path}")
async def forget_user(user_id: str, request: Request) -> dict[str, Any]:
    """Remove a user's rollouts and feedback; name the versions that had learned from them."""
    gateway = gateway_of(request)
    user_hash = gateway.ids.user_hash(gateway.settings.tenant, user_id)
    removed: learner_pb2.ForgetUserResponse = await asked(
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
        "policy_versions": list(removed.policy_versions),
    }
