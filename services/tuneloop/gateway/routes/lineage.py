"""`/v1/lineage`: the versions that learned from feedback, from a user, a key, tenant or tag."""

from collections.abc import Iterable
from typing import Annotated

from fastapi import APIRouter, Path, Request

from tuneloop.api.policies import (
    Downstream,
    FeedbackLineage,
    ForgottenRecord,
    SenderLineage,
    UserLineage,
)
from tuneloop.gateway.context import Gateway, gateway_of
from tuneloop.gateway.feedback.effects import effects_in
from tuneloop.gateway.routes.learner import rfc3339, share_of_version
from tuneloop.rollouts import MAX_TAG_NAME, MAX_TAG_VALUE
from tuneloop.rpc.status import reply_of
from tuneloop.text.messages import Text
from tuneloop.v1 import learner_pb2

router = APIRouter(tags=["lineage"])

LINEAGE_TIMEOUT = 30.0

SenderName = Annotated[str, Path(min_length=1, max_length=64)]
TagText = Annotated[Text, Path(min_length=2, max_length=MAX_TAG_NAME + 1 + MAX_TAG_VALUE)]
FeedbackId = Annotated[str, Path(min_length=1, max_length=128)]


@router.get("/v1/lineage/feedback/{feedback_id}")
async def feedback_lineage(feedback_id: FeedbackId, request: Request) -> FeedbackLineage:
    """Return the samples of a feedback event, and the versions that learned from them."""
    answer: learner_pb2.GetFeedbackLineageResponse = await reply_of(
        gateway_of(request).learner.GetFeedbackLineage(
            learner_pb2.GetFeedbackLineageRequest(feedback_id=feedback_id), timeout=LINEAGE_TIMEOUT
        )
    )
    return {
        "id": answer.feedback_id,
        "kind": answer.kind,
        "status": answer.status,
        "user_hash": answer.user_hash,
        "completion_ids": list(answer.completion_ids),
        "accepted_time": rfc3339(answer.accepted_time),
        "samples": [
            {
                "sample_id": sample.sample_id,
                "objective": sample.objective,
                "state": sample.state,
                "steps": list(sample.steps),
            }
            for sample in answer.samples
        ],
        "policy": downstream(answer.policy),
        "reward_model": downstream(answer.reward_model),
        "effects": effects_in(answer),
    }


@router.get("/v1/lineage/users/{user_id:path}")
async def user_lineage(user_id: str, request: Request) -> UserLineage:
    """Return counts of a user's data and the versions that learned from it, forgotten data too."""
    gateway = gateway_of(request)
    answer: learner_pb2.GetUserLineageResponse = await reply_of(
        gateway.learner.GetUserLineage(
            learner_pb2.GetUserLineageRequest(user_hash=user_hash_of(gateway, user_id)),
            timeout=LINEAGE_TIMEOUT,
        )
    )
    return {
        "id": user_id,
        "rollouts": answer.rollouts,
        "feedback": answer.feedback,
        "signals": answer.signals,
        "samples": dict(sorted(answer.samples.items())),
        "policy": downstream(answer.policy),
        "reward_model": downstream(answer.reward_model),
        "rebuild_from": answer.rebuild_from if answer.HasField("rebuild_from") else None,
        "forgotten": forgotten_records(answer.forgotten),
    }


def forgotten_records(records: Iterable[learner_pb2.ForgottenRecord]) -> list[ForgottenRecord]:
    """Return the records that a user or a session was forgotten."""
    return [
        {
            "time": rfc3339(record.time),
            "rollouts": record.rollouts,
            "feedback": record.feedback,
            "policy_versions": list(record.policy_versions),
            "reward_model_versions": list(record.reward_model_versions),
        }
        for record in records
    ]


@router.get("/v1/lineage/keys/{name}")
async def key_lineage(name: SenderName, request: Request) -> SenderLineage:
    """Return what the feedback of an API key trained, by the key's name or id.

    `local` is feedback without a key on this machine, `public` that of web pages without a key.
    """
    return await sender_lineage(gateway_of(request), name, {"api_key": name})


@router.get("/v1/lineage/tenants/{name}")
async def tenant_lineage(name: SenderName, request: Request) -> SenderLineage:
    """Return what the feedback of a tenant trained."""
    return await sender_lineage(gateway_of(request), name, {"tenant": name})


@router.get("/v1/lineage/tags/{tag:path}")
async def tag_lineage(tag: TagText, request: Request) -> SenderLineage:
    """Return what was trained by answers to requests with a tag, which is `name=value`."""
    return await sender_lineage(gateway_of(request), tag, {"tag": tag})


async def sender_lineage(gateway: Gateway, name: str, sender: dict[str, str]) -> SenderLineage:
    """Return what the feedback of a sender trained."""
    answer: learner_pb2.GetSenderLineageResponse = await reply_of(
        gateway.learner.GetSenderLineage(
            learner_pb2.GetSenderLineageRequest(**sender), timeout=LINEAGE_TIMEOUT
        )
    )
    return {
        "id": name,
        "feedback": answer.feedback,
        "retracted": answer.retracted,
        "users": answer.users,
        "samples": dict(sorted(answer.samples.items())),
        "policy": downstream(answer.policy),
        "reward_model": downstream(answer.reward_model),
        "versions": [share_of_version(part) for part in answer.versions],
        "rebuild_from": answer.rebuild_from if answer.HasField("rebuild_from") else None,
    }


def downstream(message: learner_pb2.Reach) -> Downstream:
    """Return the versions whose own steps used it, and their descendants."""
    return {"direct": list(message.direct), "descended": list(message.descended)}


def user_hash_of(gateway: Gateway, user_id: str) -> str:
    """Return the hash of a user in events and in the ledger."""
    return gateway.ids.user_hash(gateway.settings.tenant, user_id)
