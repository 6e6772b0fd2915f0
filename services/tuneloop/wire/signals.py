"""Signals and their events."""

from tuneloop.feedback import Signal, SignalKind
from tuneloop.v1 import events_pb2
from tuneloop.wire.fields import moment, parse, require, timestamp


def signal_event_id(signal: Signal) -> str:
    """Return the event id of a signal: its own id is unique for its user only."""
    return f"signal-{signal.user_hash}-{signal.signal_id}"


def encode_signal(signal: Signal) -> bytes:
    """Return the event bytes of a signal."""
    return events_pb2.SignalGiven(
        event_id=signal.signal_id,
        policy=signal.policy,
        tenant=signal.tenant,
        user_hash=signal.user_hash,
        completion_id=signal.completion_id,
        kind=signal.kind.value,
        distance=signal.distance,
        accepted_time=timestamp(signal.accepted_time),
        metadata=dict(signal.metadata),
        api_key_id=signal.api_key_id,
        traceparent=signal.traceparent or None,
    ).SerializeToString(deterministic=True)


def decode_signal(data: bytes) -> Signal:
    """Decode the signal of an event. Raises `CorruptData`."""
    message = parse(events_pb2.SignalGiven, data)
    for field in ("event_id", "policy", "tenant", "user_hash", "completion_id"):
        require(bool(getattr(message, field)), field, "missing")
    require(message.kind in set(SignalKind), "kind", f"unknown: {message.kind!r}")
    kind = SignalKind(message.kind)
    has_distance = message.HasField("distance")
    require(has_distance == (kind is SignalKind.EDITED), "distance", "belongs to an edit, and only")
    require(0 <= message.distance <= 1, "distance", "must be between 0 and 1")
    return Signal(
        signal_id=message.event_id,
        kind=kind,
        policy=message.policy,
        tenant=message.tenant,
        user_hash=message.user_hash,
        completion_id=message.completion_id,
        accepted_time=moment(message.accepted_time, "accepted_time"),
        distance=message.distance if has_distance else None,
        metadata=dict(message.metadata),
        api_key_id=message.api_key_id,
        traceparent=message.traceparent,
    )
