"""`/v1/feedback`: feedback on completions and sessions, stored before it is acknowledged.

An id chosen by the client makes the call safe to repeat: the same body gives the same answer,
another body 409.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse

from tuneloop import wire
from tuneloop.api.feedback import (
    Feedback,
    FeedbackAccepted,
    FeedbackBatchResult,
    FeedbackReach,
    FeedbackRefused,
    FeedbackRetracted,
)
from tuneloop.errors import TuneloopError
from tuneloop.feedback import FeedbackStatus
from tuneloop.gateway import metrics
from tuneloop.gateway.context import CONTROL_TIMEOUT, Gateway, gateway_of
from tuneloop.gateway.edge.caller import Caller, caller_of
from tuneloop.gateway.edge.limits import meter_of_request
from tuneloop.gateway.edge.redaction import redact_feedback
from tuneloop.gateway.errors import FeedbackNotFound, error_body, invalid_request, status_and_type
from tuneloop.gateway.feedback import store
from tuneloop.gateway.feedback.body import (
    FeedbackRequest,
    check_own_completion,
    check_public_kind,
    feedback_of,
    judgement_document,
)
from tuneloop.gateway.feedback.effects import effects_in, find_lineage
from tuneloop.gateway.routes.policies import find_serving_version
from tuneloop.rpc.status import reply_of
from tuneloop.v1 import learner_pb2

router = APIRouter(tags=["feedback"])

MAX_BATCH = 1000
AT_ONCE = 64
"""Events of a batch that are published at the same time."""
ACCEPTED = 202
MULTI_STATUS = 207


class FeedbackBatch(BaseModel):
    """Many bodies of feedback."""

    model_config = ConfigDict(
        extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True
    )

    feedback: list[Any] = Field(min_length=1, max_length=MAX_BATCH)
    """Each as for `POST /v1/feedback`; refusing one does not affect the others."""


@router.post("/v1/feedback", status_code=ACCEPTED, response_model=FeedbackAccepted)
async def give_feedback(body: FeedbackRequest, request: Request) -> JSONResponse:
    """Accept feedback: 202 once it is stored durably."""
    answer = await accept(gateway_of(request), body, datetime.now(UTC), caller_of(request))
    return JSONResponse(answer, status_code=ACCEPTED)


@router.post(
    "/v1/feedback/batch",
    status_code=ACCEPTED,
    response_model=FeedbackBatchResult,
    responses={MULTI_STATUS: {"model": FeedbackBatchResult, "description": "Some was refused."}},
)
async def give_feedback_batch(batch: FeedbackBatch, request: Request) -> JSONResponse:
    """Accept feedback, up to 1000 at once: 202 once all is stored durably.

    Each entry counts as a request against the key's limits. 207 where some was refused: each entry
    of `data` is then its acknowledgement, or its error and `status_code`.
    """
    if (meter := meter_of_request.get()) is not None and len(batch.feedback) > 1:
        meter.admit_rest(len(batch.feedback) - 1)
    outcomes = await accept_all(gateway_of(request), batch.feedback, caller_of(request))
    data = [refused_entry(o) if isinstance(o, TuneloopError) else o for o in outcomes]
    refused = any(isinstance(outcome, TuneloopError) for outcome in outcomes)
    return JSONResponse(
        {"object": "list", "data": data}, status_code=MULTI_STATUS if refused else ACCEPTED
    )


@router.get("/v1/feedback/{feedback_id}")
async def get_feedback(feedback_id: str, request: Request) -> Feedback:
    """Return feedback as it was accepted, whether it was retracted, and what it changed."""
    found = await find(gateway_of(request), feedback_id)
    feedback, lineage = found.feedback, await find_lineage(gateway_of(request), feedback_id)
    return {
        "id": feedback.feedback_id,
        "status": found.status,
        "kind": feedback.kind,
        "completion_id": feedback.completion_id or None,
        "session_id": feedback.session_id or None,
        **judgement_document(feedback.judgement),
        "metadata": dict(feedback.metadata),
        "accepted_time": feedback.accepted_time.isoformat(),
        "used_by_versions": [] if lineage is None else list(lineage.policy.direct),
        "effects": effects_in(lineage),
    }


@router.get("/v1/receipts/{receipt}")
async def get_receipt(receipt: str, request: Request) -> FeedbackReach:
    """Return which versions learned from feedback, and whether the one that serves did."""
    gateway = gateway_of(request)
    feedback_id = gateway.ids.feedback_of_receipt(gateway.settings.tenant, receipt)
    found = await find(gateway, feedback_id)
    lineage, serving = await asyncio.gather(
        find_lineage(gateway, feedback_id), find_serving_version(gateway)
    )
    reached = None if lineage is None else lineage.policy
    return {
        "id": feedback_id,
        "kind": found.feedback.kind,
        "status": found.status,
        "accepted_time": found.feedback.accepted_time.isoformat(),
        "policy_versions": None if reached is None else list(reached.direct),
        "serving_version": serving,
        "is_serving": None
        if reached is None or serving is None
        else serving in (*reached.direct, *reached.descended),
        "effects": effects_in(lineage),
    }


@router.delete("/v1/receipts/{receipt}")
async def retract_by_receipt(receipt: str, request: Request) -> FeedbackRetracted:
    """Retract feedback by its receipt."""
    ids, tenant = gateway_of(request).ids, gateway_of(request).settings.tenant
    return await retract_feedback(ids.feedback_of_receipt(tenant, receipt), request)


@router.delete("/v1/feedback/{feedback_id}")
async def retract_feedback(feedback_id: str, request: Request) -> FeedbackRetracted:
    """Retract feedback: no later batch learns from it, and its id cannot be used again."""
    gateway = gateway_of(request)
    await retract(gateway, await find(gateway, feedback_id), caller_of(request))
    return {"id": feedback_id, "status": "retracted"}


async def retract(gateway: Gateway, found: store.StoredFeedback, caller: Caller) -> bool:
    """Retract feedback durably; return False if it already was. Raises `Unavailable`."""
    retracted = await store.retract(gateway.bus, found, api_key_id=caller.id)
    if retracted:
        metrics.feedback_retracted.inc()
    return retracted


async def find(gateway: Gateway, feedback_id: str) -> store.StoredFeedback:
    """Return feedback from the stream, or from the ledger if the stream no longer has it.

    Raises `FeedbackNotFound`, and `Unavailable` while the learner cannot say.
    """
    try:
        return await store.find(gateway.bus, feedback_id)
    except FeedbackNotFound:
        question = learner_pb2.ListFeedbackRequest(feedback_id=feedback_id, page_size=1)
        answer: learner_pb2.ListFeedbackResponse = await reply_of(
            gateway.learner.ListFeedback(question, timeout=CONTROL_TIMEOUT)
        )
        for item in answer.feedback:
            feedback = wire.feedback_from_proto(item.feedback)
            return store.StoredFeedback(feedback=feedback, status=FeedbackStatus(item.status))
        raise


async def accept(
    gateway: Gateway, body: FeedbackRequest, now: datetime, caller: Caller
) -> FeedbackAccepted:
    """Store one body, and return its acknowledgement.

    Raises `TuneloopError`.
    """
    try:
        feedback = replace(
            feedback_of(gateway, body, now), api_key_id=caller.id, api_key_name=caller.key_name
        )
        if caller.public:
            check_public_kind(feedback, gateway.settings.public_feedback_kinds)
            check_own_completion(feedback)
        if gateway.redactor is not None:
            feedback = await redact_feedback(gateway.redactor, feedback)
        gateway.admission.admit(feedback)
        if await store.store(gateway.bus, feedback, chosen_by_client=body.id is not None):
            metrics.feedback_accepted.labels(feedback.kind.value).inc()
    except TuneloopError as error:
        metrics.feedback_refused.labels(error.reason.lower()).inc()
        raise
    receipt = gateway.ids.receipt(gateway.settings.tenant, feedback.feedback_id)
    return {"id": feedback.feedback_id, "status": "accepted", "receipt": receipt}


async def accept_all(
    gateway: Gateway, bodies: Sequence[Any], caller: Caller
) -> list[FeedbackAccepted | TuneloopError]:
    """Store many bodies; return the acknowledgement or the error of each, in order."""
    now = datetime.now(UTC)
    turns = asyncio.Semaphore(AT_ONCE)
    earlier: dict[str, asyncio.Task[Any]] = {}

    async def one(
        body: Any, when: datetime, after: asyncio.Task[Any] | None
    ) -> FeedbackAccepted | TuneloopError:
        if after is not None:
            await after
        async with turns:
            try:
                return await accept(gateway, parse_entry(body), when, caller)
            except TuneloopError as error:
                return error

    tasks = []
    for number, body in enumerate(bodies):
        # In a batch the later entry is the later judgement; of one id the first is stored.
        when = now + timedelta(microseconds=number)
        feedback_id = str(body.get("id")) if isinstance(body, dict) and "id" in body else None
        after = None if feedback_id is None else earlier.get(feedback_id)
        task = asyncio.create_task(one(body, when, after))
        if feedback_id is not None:
            earlier[feedback_id] = task
        tasks.append(task)
    return list(await asyncio.gather(*tasks))


def parse_entry(body: Any) -> FeedbackRequest:
    """Return the body of a batch's entry. Raises `InvalidRequest`."""
    try:
        return FeedbackRequest.model_validate(body)
    except ValidationError as error:
        raise invalid_request(error.errors()) from error


def refused_entry(error: TuneloopError) -> FeedbackRefused:
    """Return the entry of a batch's answer for an error."""
    return {**error_body(error), "status_code": status_and_type(error)[0]}
