"""`GET /v1/feedback`: the feedback in the ledger, with the prompts and answers it is about."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import AfterValidator

from tuneloop import wire
from tuneloop.api.feedback import FeedbackItem, FeedbackPage, Turn
from tuneloop.feedback import FeedbackKind, FeedbackStatus
from tuneloop.gateway.context import CONTROL_TIMEOUT, Gateway, gateway_of
from tuneloop.gateway.feedback.body import judgement_document
from tuneloop.gateway.openai.schemas import INT64_MAX
from tuneloop.rollouts import MAX_TAGS, read_tag
from tuneloop.rpc.status import reply_of
from tuneloop.text.messages import Text
from tuneloop.v1 import learner_pb2

router = APIRouter(tags=["feedback"])


def read_tags(given: tuple[str, ...]) -> tuple[str, ...]:
    """Return tags of a query; raises `ValueError` for one that is not `name=value`."""
    for text in given:
        read_tag(text)
    return given


User = Annotated[Text | None, Query(max_length=512)]
Tags = Annotated[tuple[Text, ...], AfterValidator(read_tags), Query(max_length=MAX_TAGS)]
"""`tag=name=value`, several times for several."""
Hash = Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_-]{1,128}$")]


@router.get("/v1/feedback")
async def list_feedback(
    request: Request,
    *,
    kind: FeedbackKind | None = None,
    value: Literal["up", "down"] | None = None,
    policy_version: Annotated[int | None, Query(ge=0, le=INT64_MAX)] = None,
    user: User = None,
    user_hash: Hash = None,
    status: FeedbackStatus | None = None,
    tag: Tags = (),
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    before: Annotated[str, Query(max_length=200)] = "",
) -> FeedbackPage:
    """List the feedback in the ledger, newest first; `next` of a page is `before` of the next."""
    gateway = gateway_of(request)
    if user is not None:
        user_hash = gateway.ids.user_hash(gateway.settings.tenant, user)
    question = learner_pb2.ListFeedbackRequest(
        kind=kind or "",
        value=value or "",
        policy_version=policy_version,
        user_hash=user_hash or "",
        status=status or "",
        tags=dict(map(read_tag, tag)),
        page_size=limit,
        before=before,
    )
    return await feedback_page(gateway, question)


async def feedback_page(
    gateway: Gateway, question: learner_pb2.ListFeedbackRequest
) -> FeedbackPage:
    """Return a page of the list. Raises `Unavailable` while the learner does not answer."""
    answer: learner_pb2.ListFeedbackResponse = await reply_of(
        gateway.learner.ListFeedback(question, timeout=CONTROL_TIMEOUT)
    )
    return {
        "object": "list",
        "data": [feedback_item(item) for item in answer.feedback],
        "next": answer.next or None,
    }


def feedback_item(item: learner_pb2.RecordedFeedback) -> FeedbackItem:
    """Return feedback with what it is about; null if the rollout is not known."""
    feedback = wire.feedback_from_proto(item.feedback)
    by_id = {c.completion_id: c for c in item.completions}
    # A session names none: those known are its turns, and the last one is what reports count.
    named = feedback.completion_ids or tuple(by_id)
    about = by_id.get(feedback.completion_id or (named[-1] if named else ""))
    messages: list[Turn] = [{"role": m.role, "content": m.content} for m in item.chat.messages]
    return {
        "id": feedback.feedback_id,
        "kind": feedback.kind,
        "status": item.status,
        "completion_id": feedback.completion_id or None,
        "session_id": feedback.session_id or None,
        **judgement_document(feedback.judgement),
        "user_hash": feedback.user_hash,
        "metadata": dict(feedback.metadata),
        "tags": dict(item.tags),
        "accepted_time": feedback.accepted_time.isoformat(),
        "policy_version": version_of(about),
        "prompt": messages or item.prompt_text or None,
        "completion": None if about is None else about.text,
        "completions": [
            {
                "completion_id": completion_id,
                "text": by_id[completion_id].text if completion_id in by_id else None,
                "policy_version": version_of(by_id.get(completion_id)),
            }
            for completion_id in named
        ],
        "used_by_versions": list(item.used_by_versions),
    }


def version_of(completion: learner_pb2.JudgedCompletion | None) -> int | None:
    """Return the version that answered; None for imported text, or if it is not known."""
    if completion is None or completion.policy_version < 0:
        return None
    return completion.policy_version
