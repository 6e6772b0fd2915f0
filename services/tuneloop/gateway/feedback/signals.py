"""`/v1/signals`: what users do with completions, stored before it is acknowledged.

A signal is no judgement. Its stream drops the oldest when it is full, so signals may be lost where
feedback is not. Each has an id, chosen by the client or made of its completion and kind: of one
user the first with an id counts, whatever a repeat says.
"""

import asyncio
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from tuneloop import tracing, wire
from tuneloop.api.feedback import (
    ShareWithInterval,
    SignalKindReport,
    SignalReport,
    SignalsAccepted,
)
from tuneloop.bus import subjects
from tuneloop.errors import InvalidRequest, PermissionDenied
from tuneloop.feedback import Signal, SignalKind, signal_id
from tuneloop.gateway import metrics
from tuneloop.gateway.completion_ids import user_hash_in
from tuneloop.gateway.context import Gateway, gateway_of
from tuneloop.gateway.edge.caller import Caller, caller_of
from tuneloop.gateway.edge.limits import meter_of_request
from tuneloop.gateway.edge.redaction import redact_signal
from tuneloop.gateway.feedback.body import Id, Key, Value
from tuneloop.gateway.routes.learner import optional_field
from tuneloop.rpc.status import reply_of
from tuneloop.text.messages import Text
from tuneloop.v1 import learner_pb2

router = APIRouter(tags=["feedback"])

MAX_SIGNALS = 100
MAX_PUBLIC_SIGNALS = 8
"""In a request without a key, since addresses are limited by requests."""
ACCEPTED = 202
REPORT_TIMEOUT = 30.0


class SignalRequest(BaseModel):
    """One thing that a user did with a completion."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    id: str | None = None
    """Of one user the first signal with an id counts; absent: each kind once for a completion."""
    kind: SignalKind
    completion_id: Id
    distance: float | None = Field(None, ge=0, le=1)
    """Of an edit: the share of the answer that was changed, 0 to 1."""
    user: Text | None = Field(None, max_length=512)
    metadata: Annotated[dict[Key, Value] | None, Field(max_length=16)] = None


class SignalBatch(BaseModel):
    """What users did, in any order."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    signals: list[SignalRequest] = Field(min_length=1, max_length=MAX_SIGNALS)


@router.post("/v1/signals", status_code=ACCEPTED, response_model=SignalsAccepted)
async def give_signals(body: SignalBatch, request: Request) -> JSONResponse:
    """Accept up to 100 signals: 202 once all are stored durably, or none is accepted.

    Each counts as a request against the key's limits.
    """
    gateway, caller = gateway_of(request), caller_of(request)
    if gateway.settings.signals == "off":
        raise PermissionDenied("this service takes no signals (TUNELOOP_GATEWAY_SIGNALS is off)")
    if caller.public and len(body.signals) > MAX_PUBLIC_SIGNALS:
        raise InvalidRequest(
            f"signals: at most {MAX_PUBLIC_SIGNALS} without a key", param="signals"
        )
    now = datetime.now(UTC)
    signals = [signal_of(gateway, given, now, caller) for given in body.signals]
    if (meter := meter_of_request.get()) is not None and len(signals) > 1:
        meter.admit_rest(len(signals) - 1)
    if gateway.redactor is not None:
        signals = [await redact_signal(gateway.redactor, signal) for signal in signals]
    for signal in signals:
        gateway.signal_admission.admit(signal)
    with tracing.span("publish signals", kind="producer"):
        await asyncio.gather(*(store(gateway, signal) for signal in signals))
    return JSONResponse(
        {
            "object": "list",
            "data": [{"id": signal.signal_id, "status": "accepted"} for signal in signals],
        },
        status_code=ACCEPTED,
    )


def signal_of(gateway: Gateway, body: SignalRequest, now: datetime, caller: Caller) -> Signal:
    """Return the event of a body. Raises `InvalidRequest` and `CompletionNotFound`."""
    if (body.distance is not None) != (body.kind is SignalKind.EDITED):
        problem = "needs it" if body.distance is None else "has none"
        raise InvalidRequest(f"distance: {body.kind} {problem}", param="distance")
    tenant = gateway.settings.tenant
    about = gateway.ids.check(tenant, body.completion_id, "completion_id")
    by = about.user_hash if body.user is None else gateway.ids.user_hash(tenant, body.user)
    if caller.public and by != user_hash_in(about.value):
        raise PermissionDenied("user: only a key may name another user", param="user")
    default_id = signal_id(about.value, body.kind)
    return Signal(
        signal_id=default_id if body.id is None else subjects.token(body.id, "id"),
        kind=body.kind,
        policy=gateway.settings.policy,
        tenant=tenant,
        user_hash=by,
        completion_id=about.value,
        accepted_time=now,
        distance=body.distance,
        metadata=body.metadata or {},
        api_key_id=caller.id,
        traceparent=tracing.traceparent(),
    )


@router.get("/v1/signals/report")
async def signal_report(request: Request) -> SignalReport:
    """Return what signals were found to predict: for each kind how many, and how thumbs differ."""
    answer: learner_pb2.GetSignalReportResponse = await reply_of(
        gateway_of(request).learner.GetSignalReport(
            learner_pb2.GetSignalReportRequest(), timeout=REPORT_TIMEOUT
        )
    )
    return {
        "answers": answer.answers,
        "rated": answer.rated,
        "up": answer.base,
        "learned": answer.learned,
        "kinds": [kind_document(kind) for kind in answer.kinds],
    }


def kind_document(kind: learner_pb2.SignalKindReport) -> SignalKindReport:
    """Return what one kind of signal predicts."""
    return {
        "kind": kind.kind,
        "count": kind.count,
        "rated": kind.rated,
        "up_with": share_document(kind.up_with) if kind.HasField("up_with") else None,
        "up_without": share_document(kind.up_without) if kind.HasField("up_without") else None,
        "gain": optional_field(kind, "gain"),
        "gain_low": optional_field(kind, "gain_low"),
        "used": kind.used,
        "reason": kind.reason,
        "chance": optional_field(kind, "chance"),
    }


def share_document(share: learner_pb2.ShareWithInterval) -> ShareWithInterval:
    """Return a share with its interval."""
    return {"value": share.value, "low": share.low, "high": share.high}


async def store(gateway: Gateway, signal: Signal) -> None:
    """Store a signal durably. Raises `Unavailable`."""
    receipt = await gateway.bus.publish(
        subjects.signal(signal.policy, signal.kind.value, signal.user_hash),
        wire.encode_signal(signal),
        event_id=wire.signal_event_id(signal),
    )
    if not receipt.duplicate:
        metrics.signals_accepted.labels(signal.kind.value).inc()
