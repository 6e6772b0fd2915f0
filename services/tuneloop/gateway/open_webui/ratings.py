"""`/v1/open_webui/feedback`: ratings of Open WebUI become feedback, and follow its changes.

Open WebUI changes a rating in place, while feedback here is new under a new id. So a rating is up
to four series of feedback, one for each thing it says (`SERIES`), each with ids that count up:
`owui-<id of the rating>-thumb-0`, `-1` and so on. What the rating says now is given if it differs
from the last of its series; all of a series is retracted when the rating no longer says it. So any
call may be repeated, at any time and from any gateway.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import PlainTextResponse

from tuneloop import wire
from tuneloop.errors import PermissionDenied
from tuneloop.feedback import FeedbackStatus
from tuneloop.gateway.context import CONTROL_TIMEOUT, Gateway, gateway_of
from tuneloop.gateway.edge.caller import LOCAL, Caller, caller_of
from tuneloop.gateway.errors import FeedbackNotFound
from tuneloop.gateway.feedback import store
from tuneloop.gateway.feedback.body import MAX_TEXT, FeedbackRequest, judgement_of
from tuneloop.gateway.feedback.routes import accept, find, retract
from tuneloop.gateway.feedback.store import StoredFeedback
from tuneloop.gateway.open_webui.requests import answer_name, is_open_webui
from tuneloop.rpc.status import reply_of
from tuneloop.text.messages import Text
from tuneloop.v1 import learner_pb2

router = APIRouter(include_in_schema=False)

SERIES = ("thumb", "rating", "comment", "comparison")
"""By the kind of feedback."""
RATING = "open_webui"
"""The metadata that holds the id of the rating."""
PAGE = 1000
YOUNG = 1800.0
"""Seconds. Feedback stays on the stream for an hour at least: all that younger ratings gave."""
FRONTMATTER = """title: tuneloop
description: Tells tuneloop how its answers are rated, so that the model learns from it.
required_open_webui_version: 0.10.0
"""
SOURCE = f'"""\n{FRONTMATTER}"""\n\n{Path(__file__).with_name("function.py").read_text()}'
"""What Open WebUI runs to tell of its ratings."""

Id = Annotated[Text, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_:-]+$")]


class Stored(BaseModel):
    """A rating as Open WebUI stores it, without its snapshot of the chat."""

    model_config = ConfigDict(hide_input_in_errors=True, use_attribute_docstrings=True)

    type: str
    user_id: Text = Field(max_length=512)
    data: dict[str, Any] | None = None
    meta: dict[str, Any] | None = None
    created_at: int = 0
    """Unix seconds."""


class Sibling(BaseModel):
    """Another answer to the message that the rated one answers."""

    message_id: Id
    model_id: Text
    results: int = Field(0, ge=0)


class RatingBody(BaseModel):
    """A rating as it is now, and what its chat says of the answer."""

    model_config = ConfigDict(hide_input_in_errors=True, use_attribute_docstrings=True)

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    feedback: Stored | None = None
    """None: it was deleted."""
    asked_by: Text | None = Field(None, max_length=512)
    """For whom the answer was; the rater if that is not known."""
    results: int = Field(0, ge=0)
    """Of tools, in the answer."""
    siblings: list[Sibling] = Field([], max_length=63)
    """Those that nobody liked."""


@router.get("/open-webui/tuneloop.py")
async def function_source() -> PlainTextResponse:
    """Return the function that Open WebUI runs, for its "Import From Link"."""
    return PlainTextResponse(SOURCE, media_type="text/x-python")


@router.post("/v1/open_webui/feedback")
async def follow_rating(body: RatingBody, request: Request) -> dict[str, object]:
    """Make the feedback what the rating says now; 200 once that is stored durably."""
    gateway, caller = gateway_of(request), caller_of(request)
    check_caller(gateway, caller)
    says = judgements_in(gateway, body) if body.feedback is not None else {}
    standing = [
        found
        for series in SERIES
        if (found := await follow_series(gateway, caller, body, series, says.get(series)))
    ]
    return {
        "id": body.id,
        "status": "accepted" if standing else "none",
        "feedback": standing,
        # Of the thumb, if there is one.
        "receipt": gateway.ids.receipt(gateway.settings.tenant, standing[0]) if standing else None,
    }


@router.delete("/v1/open_webui/feedback")
async def retract_ratings(request: Request, user_id: str = "") -> dict[str, object]:
    """Retract what came of all ratings of a user, or of every rating that came with this key."""
    gateway, caller = gateway_of(request), caller_of(request)
    check_caller(gateway, caller)
    user_hash = gateway.ids.user_hash(gateway.settings.tenant, user_id) if user_id else ""
    count, before = 0, ""
    while True:
        question = learner_pb2.ListFeedbackRequest(
            user_hash=user_hash, status="accepted", page_size=PAGE, before=before
        )
        page: learner_pb2.ListFeedbackResponse = await reply_of(
            gateway.learner.ListFeedback(question, timeout=CONTROL_TIMEOUT)
        )
        for item in page.feedback:
            feedback = wire.feedback_from_proto(item.feedback)
            if RATING in feedback.metadata and feedback.api_key_id == caller.id:
                found = await find(gateway, feedback.feedback_id)
                count += await retract(gateway, found, caller)
        before = page.next
        if not before:
            return {"retracted": count}


def check_caller(gateway: Gateway, caller: Caller) -> None:
    """Raise `PermissionDenied` unless the settings name the caller."""
    if not is_open_webui(gateway.settings, caller):
        name = LOCAL.name if caller is LOCAL else caller.key_name
        raise PermissionDenied(
            f"{name!r} is no Open WebUI: name it in TUNELOOP_GATEWAY_OPEN_WEBUI, "
            f"like '[\"{name}\"]'"
        )


async def follow_series(
    gateway: Gateway, caller: Caller, rating: RatingBody, series: str, says: FeedbackRequest | None
) -> str | None:
    """Give or retract feedback until the series says it; return the id of what stands."""
    now, row = datetime.now(UTC), rating.feedback
    # Then the learner need not answer.
    young = row is not None and abs(now.timestamp() - row.created_at) < YOUNG
    given: list[StoredFeedback] = []
    prefix, number = f"owui-{rating.id}-{series}-", 0
    while (found := await find_known(gateway, prefix + str(number), young=young)) is not None:
        given += [found] if found.status is not FeedbackStatus.RETRACTED else []
        number += 1
    if says is None:
        for found in given:
            await retract(gateway, found, caller)
        return None
    if given and given[-1].feedback.judgement == judgement_of(gateway, says):
        return given[-1].feedback.feedback_id
    new = says.model_copy(update={"id": prefix + str(number)})
    return (await accept(gateway, new, now, caller))["id"]


async def find_known(gateway: Gateway, feedback_id: str, *, young: bool) -> StoredFeedback | None:
    try:
        return await (store.find(gateway.bus, feedback_id) if young else find(gateway, feedback_id))
    except FeedbackNotFound:
        return None


def judgements_in(gateway: Gateway, body: RatingBody) -> Mapping[str, FeedbackRequest]:
    """Return what the rating says, by series; nothing for an answer of another model."""
    assert body.feedback is not None
    row, data, meta = body.feedback, body.feedback.data or {}, body.feedback.meta or {}
    chat, message = meta.get("chat_id"), meta.get("message_id")
    own = OwnModels(gateway.settings.policy, meta.get("base_models"))
    model = data.get("model_id") or meta.get("model_id")
    if row.type != "rating" or not chat or not message or model not in own:
        return {}

    tenant = gateway.settings.tenant
    user_hash = gateway.ids.user_hash(tenant, body.asked_by or row.user_id)

    def answer(message_id: str, results: int) -> str:
        name = answer_name(str(chat), message_id, results)
        return gateway.ids.make("chatcmpl", tenant, user_hash, name=name)

    about = answer(str(message), body.results)
    others = [answer(s.message_id, s.results) for s in body.siblings if s.model_id in own]
    fields: dict[str, dict[str, Any]] = {}
    thumb = thumb_in(data)
    if thumb is not None:
        fields["thumb"] = {"completion_id": about, "value": thumb}
    if thumb == "up" and others:
        fields["comparison"] = {"chosen": about, "rejected": others}
    if (number := number_in(data)) is not None:
        fields["rating"] = {"completion_id": about, "value": number}
    if words := words_in(data):
        fields["comment"] = {"completion_id": about, "text": words}
    common = {"user": row.user_id, "metadata": {RATING: body.id}}
    return {
        kind: FeedbackRequest.model_validate({"kind": kind, **of_kind, **common})
        for kind, of_kind in fields.items()
    }


class OwnModels:
    """The models of Open WebUI that are this service's: by its name, or made from it."""

    def __init__(self, policy: str, base_models: object) -> None:
        self.policy = policy
        self.bases = base_models if isinstance(base_models, dict) else {}

    def __contains__(self, model: object) -> bool:
        """Return whether a model is; a connection may put a prefix and a dot before the name."""
        base = str(self.bases.get(model) or model)
        return base == self.policy or base.endswith(f".{self.policy}")


def thumb_in(data: Mapping[str, Any]) -> Literal["up", "down"] | None:
    """Return the thumb; None without one. Older versions store it as text."""
    match str(data.get("rating")):
        case "1":
            return "up"
        case "-1":
            return "down"
    return None


def number_in(data: Mapping[str, Any]) -> float | None:
    """Return the number from 1 to 10, if one was chosen."""
    details = data.get("details")
    number = details.get("rating") if isinstance(details, dict) else None
    return float(number) if isinstance(number, int | float) and 1 <= number <= 10 else None


def words_in(data: Mapping[str, Any]) -> str:
    """Return the reason that was chosen and the comment, as text."""
    reason, comment = str(data.get("reason") or ""), str(data.get("comment") or "").strip()
    chosen = "" if reason == "other" else reason.replace("_", " ").strip()
    return ": ".join(part for part in (chosen, comment) if part)[:MAX_TEXT]
