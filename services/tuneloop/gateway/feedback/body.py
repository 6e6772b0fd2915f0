"""The body of feedback: the fields of each kind, and the event it becomes.

Completion ids are checked by their signature only, so feedback may arrive before its rollout is in
the ledger, or days later. The id of a session is the application's own, and nothing about it can be
checked: only a caller with a key, or the local user, may judge a session.
"""

import secrets
from collections.abc import Collection
from datetime import datetime
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from tuneloop import tracing
from tuneloop.api.feedback import Judgement as JudgementDocument
from tuneloop.bus import subjects
from tuneloop.errors import InvalidRequest, PermissionDenied
from tuneloop.feedback import (
    MAX_NUMBER,
    METRIC_NAME,
    OF_SESSIONS,
    Comment,
    Comparison,
    Demonstration,
    Feedback,
    FeedbackKind,
    Judgement,
    Metric,
    Ranking,
    Rating,
    Thumb,
)
from tuneloop.gateway.completion_ids import CompletionId, user_hash_in
from tuneloop.gateway.context import Gateway
from tuneloop.gateway.openai.sessions import SessionId
from tuneloop.text.messages import Text

MAX_COMPLETIONS = 64
MAX_TEXT = 32_768
Id = Annotated[Text, StringConstraints(max_length=256)]
Key = Annotated[Text, StringConstraints(min_length=1, max_length=64)]
Value = Annotated[Text, StringConstraints(max_length=512)]


fields_of_kind = {
    FeedbackKind.THUMB: {"completion_id", "value"},
    FeedbackKind.RATING: {"completion_id", "value"},
    FeedbackKind.COMPARISON: {"chosen", "rejected"},
    FeedbackKind.RANKING: {"ranking"},
    FeedbackKind.DEMONSTRATION: {"completion_id", "text"},
    FeedbackKind.COMMENT: {"completion_id", "text"},
    FeedbackKind.METRIC: {"completion_id", "name", "value"},
}
"""What each kind needs; it takes nothing else but `id`, `user` and `metadata`.

Comparisons and rankings may repeat one of their completions as `completion_id`. The kinds of
`OF_SESSIONS` take `session_id` in the place of `completion_id`.
"""


class FeedbackRequest(BaseModel):
    """The body. Unknown fields, and those of another kind, are refused by name."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    id: str | None = None
    kind: FeedbackKind
    completion_id: Id | None = None
    session_id: SessionId | None = None
    """Judges a whole session in the place of one completion; a thumb, rating or metric may."""
    name: Annotated[str, StringConstraints(pattern=f"^{METRIC_NAME.pattern}$")] | None = None
    """What a metric measures: a letter, then letters, digits, `_`, `.` or `-`; 64 at most."""
    value: Annotated[
        Any,
        WithJsonSchema(
            {"anyOf": [{"enum": ["up", "down"]}, {"type": ["boolean", "number", "null"]}]}
        ),
    ] = None
    """`up` or `down` for a thumb, a number for a rating, a boolean or a number for a metric."""
    chosen: Id | None = None
    rejected: list[Id] | None = None
    ranking: list[Id] | None = None
    text: Text | None = Field(None, max_length=MAX_TEXT)
    user: Text | None = Field(None, max_length=512)
    metadata: Annotated[dict[Key, Value] | None, Field(max_length=16)] = None

    @field_validator("value")
    @classmethod
    def check_value(cls, value: Any, info: ValidationInfo) -> Any:
        """Check that a thumb is `up` or `down`, and what else has a value a bounded number."""
        kind = info.data.get("kind")
        if value is None:
            return None
        if kind is FeedbackKind.THUMB and value not in ("up", "down"):
            raise ValueError("must be 'up' or 'down'")
        boolean = isinstance(value, bool)
        # Written so that NaN is no number.
        number = isinstance(value, int | float) and not boolean and abs(value) < MAX_NUMBER
        if kind is FeedbackKind.RATING and not number:
            raise ValueError("must be a number between -1e9 and 1e9")
        if kind is FeedbackKind.METRIC and not (number or boolean):
            raise ValueError("must be true, false, or a number between -1e9 and 1e9")
        return value


def check_fields(body: FeedbackRequest) -> None:
    """Raise `InvalidRequest` for a field that is missing, empty or out of place."""
    wanted = fields_of_kind[body.kind]
    if body.session_id is not None:
        if body.kind not in OF_SESSIONS:
            raise InvalidRequest(
                f"session_id: a {body.kind} is on a completion", param="session_id"
            )
        if body.completion_id is not None:
            raise InvalidRequest(
                "session_id: give either completion_id or session_id", param="session_id"
            )
        wanted = wanted - {"completion_id"}
    named = (body.chosen, *(body.rejected or ()), *(body.ranking or ()))
    for name in ("completion_id", "name", "value", "chosen", "rejected", "ranking", "text"):
        given = getattr(body, name)
        blank = isinstance(given, str) and not given.strip()
        if name in wanted and (given is None or given == [] or blank):
            raise InvalidRequest(f"{name}: a {body.kind} needs it", param=name)
        repeated = name == "completion_id" and given in named
        if name not in wanted and given is not None and not repeated:
            raise InvalidRequest(f"{name}: does not belong to a {body.kind}", param=name)


def check_ids(gateway: Gateway, name: str, ids: list[str], least: int) -> tuple[str, ...]:
    """Return the ids, after checking that each is valid and none is repeated."""
    if not least <= len(ids) <= MAX_COMPLETIONS:
        raise InvalidRequest(f"{name}: {least} to {MAX_COMPLETIONS} completions", param=name)
    if len(set(ids)) < len(ids):
        raise InvalidRequest(f"{name}: names a completion twice", param=name)
    for value in ids:
        gateway.ids.check(gateway.settings.tenant, value, name)
    return tuple(ids)


def judgement_of(gateway: Gateway, body: FeedbackRequest) -> Judgement:
    """Return the judgement, after checking every completion id."""
    judgement: Judgement
    match body.kind:
        case FeedbackKind.THUMB:
            judgement = Thumb(up=body.value == "up")
        case FeedbackKind.RATING:
            judgement = Rating(value=float(body.value))
        case FeedbackKind.COMPARISON:
            chosen, rejected = body.chosen or "", body.rejected or []
            if chosen in rejected:
                raise InvalidRequest("rejected: names the chosen completion", param="rejected")
            judgement = Comparison(
                chosen=chosen, rejected=check_ids(gateway, "rejected", rejected, 1)
            )
        case FeedbackKind.RANKING:
            ids = check_ids(gateway, "ranking", body.ranking or [], 2)
            judgement = Ranking(completion_ids=ids)
        case FeedbackKind.DEMONSTRATION:
            judgement = Demonstration(text=body.text or "")
        case FeedbackKind.COMMENT:
            judgement = Comment(text=body.text or "")
        case FeedbackKind.METRIC:
            value = body.value if isinstance(body.value, bool) else float(body.value)
            judgement = Metric(name=body.name or "", value=value)
    return judgement


def feedback_of(gateway: Gateway, body: FeedbackRequest, accepted_time: datetime) -> Feedback:
    """Return the event of a body. Raises `InvalidRequest` and `CompletionNotFound`."""
    check_fields(body)
    feedback_id = subjects.token(body.id, "id") if body.id is not None else new_id()
    settings = gateway.settings
    about = None if body.session_id is not None else judged_completion(gateway, body)
    return Feedback(
        feedback_id=feedback_id,
        policy=settings.policy,
        tenant=settings.tenant,
        # Without a name, the user whom the completion was for has judged it. Whom a session was for
        # is not known here: then nobody in particular has.
        user_hash=(
            about.user_hash
            if body.user is None and about is not None
            else gateway.ids.user_hash(settings.tenant, body.user)
        ),
        completion_id="" if about is None else about.value,
        session_id=body.session_id or "",
        judgement=judgement_of(gateway, body),
        accepted_time=accepted_time,
        metadata=body.metadata or {},
        traceparent=tracing.traceparent(),
    )


def judged_completion(gateway: Gateway, body: FeedbackRequest) -> CompletionId:
    """Return the completion that a body is about, the chosen or first of several, checked."""
    name, first = next(
        (name, value)
        for name, value in (
            ("chosen", body.chosen),
            ("ranking", body.ranking and body.ranking[0]),
            ("completion_id", body.completion_id),
        )
        if value
    )
    return gateway.ids.check(gateway.settings.tenant, first, name)


def new_id() -> str:
    """Return an id for feedback that came without one."""
    return f"fb-{secrets.token_hex(12)}"


def judgement_document(judgement: Judgement) -> JudgementDocument:
    """Return a judgement with the names of the body's fields."""
    match judgement:
        case Thumb(up=up):
            return {"value": "up" if up else "down"}
        case Rating(value=value):
            return {"value": value}
        case Comparison(chosen=chosen, rejected=rejected):
            return {"chosen": chosen, "rejected": list(rejected)}
        case Ranking(completion_ids=ids):
            return {"ranking": list(ids)}
        case Demonstration(text=text) | Comment(text=text):
            return {"text": text}
        case Metric(name=name, value=measured):
            return {"name": name, "value": measured}


def check_public_kind(feedback: Feedback, kinds: Collection[FeedbackKind]) -> None:
    """Raise `PermissionDenied` for a kind that needs a key, or for a session: its id is no secret.

    Who has a completion's id has seen the completion; anybody may guess the id of a session.
    """
    if feedback.session_id:
        raise PermissionDenied("session_id: to judge a session needs a key", param="session_id")
    if feedback.kind not in kinds:
        raise PermissionDenied(
            f"kind: {feedback.kind} needs a key; without one: {', '.join(kinds) or 'none'} "
            "(TUNELOOP_GATEWAY_PUBLIC_FEEDBACK_KINDS)",
            param="kind",
        )


def check_own_completion(feedback: Feedback) -> None:
    """Raise `PermissionDenied` unless the user, and each completion, is the first completion's.

    The ids in `feedback` are checked already.
    """
    if feedback.user_hash != user_hash_in(feedback.completion_id):
        raise PermissionDenied("user: only a key may name another user", param="user")
    match feedback.judgement:
        case Comparison(chosen=chosen, rejected=rejected):
            named = (chosen, *rejected)
        case Ranking(completion_ids=named):
            pass
        case _:
            named = ()
    if any(user_hash_in(completion_id) != feedback.user_hash for completion_id in named):
        raise PermissionDenied(
            "completion_id: only a key may compare the completions of different users",
            param="completion_id",
        )
