"""Feedback and its retraction, and their events."""

import math
from typing import assert_never

from tuneloop.errors import CorruptData
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
    Retraction,
    Thumb,
    kind_of_type,
)
from tuneloop.rollouts import SESSION_ID
from tuneloop.v1 import events_pb2
from tuneloop.wire.fields import moment, parse, require, timestamp


def encode_feedback(feedback: Feedback) -> bytes:
    """Return the event bytes of feedback: equal feedback of one trace has equal bytes."""
    return feedback_to_proto(feedback).SerializeToString(deterministic=True)


def feedback_to_proto(feedback: Feedback) -> events_pb2.FeedbackGiven:
    """Feedback."""
    message = events_pb2.FeedbackGiven(
        event_id=feedback.feedback_id,
        policy=feedback.policy,
        tenant=feedback.tenant,
        user_hash=feedback.user_hash,
        completion_id=feedback.completion_id,
        session_id=feedback.session_id,
        accepted_time=timestamp(feedback.accepted_time),
        metadata=dict(feedback.metadata),
        api_key_id=feedback.api_key_id,
        api_key_name=feedback.api_key_name,
        traceparent=feedback.traceparent or None,
    )
    match feedback.judgement:
        case Thumb(up=up):
            value = events_pb2.THUMB_VALUE_UP if up else events_pb2.THUMB_VALUE_DOWN
            message.thumb.value = value
        case Rating(value=rating):
            message.rating.value = rating
        case Comparison(chosen=chosen, rejected=rejected):
            message.comparison.chosen = chosen
            message.comparison.rejected.extend(rejected)
        case Ranking(completion_ids=ids):
            message.ranking.completion_ids.extend(ids)
        case Demonstration(text=text):
            message.demonstration.text = text
        case Comment(text=text):
            message.comment.text = text
        case Metric(name=name, value=bool(boolean)):
            message.metric.name = name
            message.metric.boolean = boolean
        case Metric(name=name, value=number):
            message.metric.name = name
            message.metric.number = number
        case _ as unknown:
            assert_never(unknown)
    return message


def judgement_from_proto(message: events_pb2.FeedbackGiven) -> Judgement:
    """Return the judgement of a message. Raises `CorruptData` if it is missing or empty."""
    judgement: Judgement
    match message.WhichOneof("judgement"):
        case "thumb":
            value = message.thumb.value
            known = (events_pb2.THUMB_VALUE_UP, events_pb2.THUMB_VALUE_DOWN)
            require(value in known, "thumb.value", "must be up or down")
            judgement = Thumb(up=value == events_pb2.THUMB_VALUE_UP)
        case "rating":
            require(math.isfinite(message.rating.value), "rating.value", "must be finite")
            judgement = Rating(value=message.rating.value)
        case "comparison":
            require(bool(message.comparison.chosen), "comparison.chosen", "missing")
            require(len(message.comparison.rejected) > 0, "comparison.rejected", "missing")
            judgement = Comparison(
                chosen=message.comparison.chosen, rejected=tuple(message.comparison.rejected)
            )
        case "ranking":
            ids = tuple(message.ranking.completion_ids)
            require(len(ids) >= 2, "ranking", "needs two completions or more")
            judgement = Ranking(completion_ids=ids)
        case "demonstration":
            require(bool(message.demonstration.text), "demonstration.text", "missing")
            judgement = Demonstration(text=message.demonstration.text)
        case "comment":
            require(bool(message.comment.text), "comment.text", "missing")
            judgement = Comment(text=message.comment.text)
        case "metric":
            judgement = metric_from_proto(message.metric)
        case _:
            raise CorruptData("judgement: missing", param="judgement")
    return judgement


def metric_from_proto(message: events_pb2.Metric) -> Metric:
    """Return a metric. Raises `CorruptData` for a name or value that no gateway accepts."""
    known = METRIC_NAME.fullmatch(message.name) is not None
    require(known, "metric.name", "must be a letter, then letters, digits, _, . or -, 64 at most")
    require(message.WhichOneof("value") is not None, "metric.value", "missing")
    if message.HasField("boolean"):
        return Metric(name=message.name, value=message.boolean)
    # Written so that NaN is refused.
    bounded = abs(message.number) < MAX_NUMBER
    require(bounded, "metric.number", "must be between -1e9 and 1e9")
    return Metric(name=message.name, value=message.number)


def decode_feedback(data: bytes) -> Feedback:
    """Decode the feedback of an event. Raises `CorruptData`."""
    return feedback_from_proto(parse(events_pb2.FeedbackGiven, data))


def feedback_from_proto(message: events_pb2.FeedbackGiven) -> Feedback:
    """Feedback; raises `CorruptData`."""
    for field in ("event_id", "policy", "tenant", "user_hash"):
        require(bool(getattr(message, field)), field, "missing")
    judgement = judgement_from_proto(message)
    check_judged(message, judgement)
    return Feedback(
        feedback_id=message.event_id,
        policy=message.policy,
        tenant=message.tenant,
        user_hash=message.user_hash,
        completion_id=message.completion_id,
        session_id=message.session_id,
        judgement=judgement,
        accepted_time=moment(message.accepted_time, "accepted_time"),
        metadata=dict(message.metadata),
        api_key_id=message.api_key_id,
        api_key_name=message.api_key_name,
        traceparent=message.traceparent,
    )


def check_judged(message: events_pb2.FeedbackGiven, judgement: Judgement) -> None:
    """Raise `CorruptData` unless either a completion is judged, or a session that may be."""
    if not message.session_id:
        require(bool(message.completion_id), "completion_id", "missing")
        return
    require(not message.completion_id, "completion_id", "must not come with a session_id")
    well_formed = SESSION_ID.fullmatch(message.session_id) is not None
    require(well_formed, "session_id", "must be 1 to 128 characters, none a control character")
    kind = kind_of_type[type(judgement)]
    require(kind in OF_SESSIONS, "session_id", f"a {kind} cannot judge a session")


def retraction_event_id(feedback_id: str) -> str:
    """Return the event id of a retraction; ids of feedback have no dot."""
    return f"{feedback_id}.retracted"


def encode_retraction(retraction: Retraction) -> bytes:
    """Event bytes of a retraction."""
    return events_pb2.FeedbackRetracted(
        event_id=retraction_event_id(retraction.feedback_id),
        policy=retraction.policy,
        tenant=retraction.tenant,
        user_hash=retraction.user_hash,
        feedback_id=retraction.feedback_id,
        kind=retraction.kind.value,
        retracted_time=timestamp(retraction.retracted_time),
        api_key_id=retraction.api_key_id,
    ).SerializeToString()


def decode_retraction(data: bytes) -> Retraction:
    """Decode the retraction of an event. Raises `CorruptData`."""
    message = parse(events_pb2.FeedbackRetracted, data)
    for field in ("policy", "tenant", "user_hash", "feedback_id"):
        require(bool(getattr(message, field)), field, "missing")
    require(message.kind in set(FeedbackKind), "kind", f"unknown: {message.kind!r}")
    return Retraction(
        feedback_id=message.feedback_id,
        kind=FeedbackKind(message.kind),
        policy=message.policy,
        tenant=message.tenant,
        user_hash=message.user_hash,
        retracted_time=moment(message.retracted_time, "retracted_time"),
        api_key_id=message.api_key_id,
    )
