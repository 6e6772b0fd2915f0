"""A policy's versions: references to weights, routing entries, and events."""

from collections.abc import Mapping
from datetime import datetime

from tuneloop.policies import Activation, CanaryRoute, LearnerStep, WeightsReference
from tuneloop.v1 import events_pb2, generation_pb2
from tuneloop.wire.fields import moment, parse, require, timestamp


def weights_to_proto(weights: WeightsReference) -> generation_pb2.WeightsReference:
    """A reference to a version's weights."""
    return generation_pb2.WeightsReference(
        policy=weights.policy,
        policy_version=weights.policy_version,
        uri=weights.uri,
        manifest_sha256=weights.manifest_sha256,
        traceparent=weights.traceparent or None,
    )


def weights_from_proto(message: generation_pb2.WeightsReference) -> WeightsReference:
    """Return a reference to a version's weights. Raises `CorruptData` if a part is missing."""
    for field in ("policy", "uri", "manifest_sha256"):
        require(bool(getattr(message, field)), field, "missing")
    require(message.policy_version > 0, "policy_version", "published versions start at 1")
    return WeightsReference(
        policy=message.policy,
        policy_version=message.policy_version,
        uri=message.uri,
        manifest_sha256=message.manifest_sha256,
        traceparent=message.traceparent,
    )


def encode_routing(weights: WeightsReference) -> bytes:
    """Encode a value of the routing table: the version to serve; version 0 is the base model."""
    return weights_to_proto(weights).SerializeToString()


def decode_routing(data: bytes) -> WeightsReference:
    """Decode a value of the routing table; version 0 has no weights. Raises `CorruptData`."""
    message = parse(generation_pb2.WeightsReference, data)
    if message.policy_version != 0:
        return weights_from_proto(message)
    require(bool(message.policy), "policy", "missing")
    return WeightsReference(
        policy=message.policy,
        policy_version=0,
        uri="",
        manifest_sha256="",
        traceparent=message.traceparent,
    )


def encode_canary(route: CanaryRoute | None, policy: str) -> bytes:
    """Encode a value of the routing table: the canary, or that there is none."""
    if route is None:
        none = generation_pb2.WeightsReference(policy=policy)
        return generation_pb2.CanaryRoute(weights=none).SerializeToString()
    return generation_pb2.CanaryRoute(
        weights=weights_to_proto(route.weights), share=route.share, salt=route.salt
    ).SerializeToString()


def decode_canary(data: bytes) -> CanaryRoute | None:
    """Decode a value of the routing table; None without a canary. Raises `CorruptData`."""
    message = parse(generation_pb2.CanaryRoute, data)
    if message.weights.policy_version == 0:
        return None
    require(0 < message.share <= 1, "share", "must be above 0 and at most 1")
    require(bool(message.salt), "salt", "missing")
    return CanaryRoute(
        weights=weights_from_proto(message.weights), share=message.share, salt=message.salt
    )


def encode_weights_published(weights: WeightsReference, published_time: datetime) -> bytes:
    """Event bytes of a published version."""
    return events_pb2.WeightsPublished(
        event_id=f"weights-{weights.policy}-{weights.policy_version}",
        weights=weights_to_proto(weights),
        published_time=timestamp(published_time),
    ).SerializeToString()


def decode_weights_published(data: bytes) -> WeightsReference:
    """The published version of an event; raises `CorruptData`."""
    return weights_from_proto(parse(events_pb2.WeightsPublished, data).weights)


def activation_event_id(activation: Activation) -> str:
    """Return the event id of a version that started to serve, which may happen several times."""
    return (
        f"activated-{activation.replica}-{activation.policy}-{activation.policy_version}"
        f"-{int(activation.activated_time.timestamp() * 1000)}"
    )


def encode_activation(activation: Activation) -> bytes:
    """Event bytes of a version that began to serve."""
    return events_pb2.PolicyActivated(
        event_id=activation_event_id(activation),
        policy=activation.policy,
        policy_version=activation.policy_version,
        replica=activation.replica,
        activated_time=timestamp(activation.activated_time),
        swap_seconds=activation.swap_seconds,
        traceparent=activation.traceparent or None,
    ).SerializeToString()


def decode_activation(data: bytes) -> Activation:
    """The activation of an event; raises `CorruptData`."""
    message = parse(events_pb2.PolicyActivated, data)
    for field in ("policy", "replica"):
        require(bool(getattr(message, field)), field, "missing")
    return Activation(
        policy=message.policy,
        policy_version=message.policy_version,
        replica=message.replica,
        activated_time=moment(message.activated_time, "activated_time"),
        swap_seconds=message.swap_seconds,
        traceparent=message.traceparent,
    )


def encode_learner_stepped(
    policy: str, step: int, metrics: Mapping[str, float], stepped_time: datetime
) -> bytes:
    """Event bytes of a committed step."""
    return events_pb2.LearnerStepped(
        event_id=f"step-{policy}-{step}",
        policy=policy,
        step=step,
        metrics=dict(metrics),
        stepped_time=timestamp(stepped_time),
    ).SerializeToString()


def decode_learner_stepped(data: bytes) -> LearnerStep:
    """The step of an event; raises `CorruptData`."""
    message = parse(events_pb2.LearnerStepped, data)
    require(bool(message.policy), "policy", "missing")
    return LearnerStep(
        policy=message.policy,
        step=message.step,
        metrics=dict(message.metrics),
        stepped_time=moment(message.stepped_time, "stepped_time"),
    )
