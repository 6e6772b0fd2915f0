"""Rollouts, their parts, and the event of a finished one."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tuneloop.errors import CorruptData
from tuneloop.rollouts import (
    SESSION_ID,
    FinishReason,
    PolicyVersionSpan,
    Rollout,
    RolloutSource,
)
from tuneloop.v1 import events_pb2, rollout_pb2
from tuneloop.wire.fields import moment, parse, require, timestamp
from tuneloop.wire.messages import messages_from_proto, messages_to_proto
from tuneloop.wire.sampling import sampling_from_proto, sampling_to_proto

finish_reason_to_proto = {
    FinishReason.STOP: rollout_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: rollout_pb2.FINISH_REASON_LENGTH,
    FinishReason.ABORT: rollout_pb2.FINISH_REASON_ABORT,
}
finish_reason_from_proto = {number: reason for reason, number in finish_reason_to_proto.items()}

source_to_proto = {
    RolloutSource.USER: rollout_pb2.ROLLOUT_SOURCE_USER,
    RolloutSource.PROMPTS: rollout_pb2.ROLLOUT_SOURCE_PROMPTS,
    RolloutSource.EVAL: rollout_pb2.ROLLOUT_SOURCE_EVAL,
    RolloutSource.IMPORT: rollout_pb2.ROLLOUT_SOURCE_IMPORT,
    RolloutSource.CANDIDATE: rollout_pb2.ROLLOUT_SOURCE_CANDIDATE,
}
source_of_proto = {number: source for source, number in source_to_proto.items()}
source_of_proto[rollout_pb2.ROLLOUT_SOURCE_UNSPECIFIED] = RolloutSource.USER


def spans_to_proto(spans: Sequence[PolicyVersionSpan]) -> list[rollout_pb2.PolicyVersionSpan]:
    """Version spans."""
    return [
        rollout_pb2.PolicyVersionSpan(policy_version=s.policy_version, start=s.start, end=s.end)
        for s in spans
    ]


def spans_from_proto(
    spans: Sequence[rollout_pb2.PolicyVersionSpan], tokens: int
) -> tuple[PolicyVersionSpan, ...]:
    """Version spans; they must cover `tokens` tokens without gap or overlap."""
    position = 0
    for span in spans:
        require(
            span.start == position and span.end > span.start,
            "policy_version_spans",
            f"must cover the tokens in order; one starts at {span.start}, not {position}",
        )
        require(span.policy_version >= 0, "policy_version_spans", "versions start at 0")
        position = span.end
    require(position == tokens, "policy_version_spans", f"cover {position} of {tokens} tokens")
    return tuple(
        PolicyVersionSpan(policy_version=s.policy_version, start=s.start, end=s.end) for s in spans
    )


def source_from_proto(number: rollout_pb2.RolloutSource) -> RolloutSource:
    """Return why a completion is sampled. Raises `CorruptData`."""
    require(number in source_of_proto, "source", f"unknown: {number}")
    return source_of_proto[number]


def columns_to_proto(columns: Mapping[str, Any]) -> dict[str, str]:
    """Return the further columns of a prompt, as JSON by name."""
    return {
        name: json.dumps(value, ensure_ascii=False, default=str) for name, value in columns.items()
    }


def columns_from_proto(columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the further columns of a prompt. Raises `CorruptData` naming one that is not JSON."""
    values = {}
    for name, value in columns.items():
        try:
            values[name] = json.loads(value)
        except ValueError as error:
            raise CorruptData(f"columns.{name}: not JSON: {error}", param="columns") from error
    return values


def own_fields(rollout: Rollout) -> dict[str, Any]:
    """Return what a rollout does not share with the others of its request, as fields."""
    return {
        "completion_id": rollout.completion_id,
        "completion_text": rollout.completion_text,
        "completion_token_ids": rollout.completion_token_ids,
        "generation_logprobs": rollout.generation_logprobs,
        "finish_reason": finish_reason_to_proto[rollout.finish_reason],
        "policy_version_spans": spans_to_proto(rollout.policy_version_spans),
        "finished_time": timestamp(rollout.finished_time),
        "reasoning_text": rollout.reasoning_text,
        "reasoning_tokens": rollout.reasoning_tokens,
    }


def rollout_to_proto(rollout: Rollout) -> rollout_pb2.Rollout:
    """A rollout."""
    return rollout_pb2.Rollout(
        **own_fields(rollout),
        group_id=rollout.group_id,
        policy=rollout.policy,
        tenant=rollout.tenant,
        user_hash=rollout.user_hash,
        chat=messages_to_proto(rollout.messages) if rollout.messages else None,
        prompt_text=rollout.prompt_text,
        prompt_token_ids=rollout.prompt_token_ids,
        sampling=sampling_to_proto(rollout.sampling),
        source=source_to_proto[rollout.source],
        columns=columns_to_proto(rollout.columns),
        session_id=rollout.session_id,
        tags=dict(rollout.tags),
    )


def own_from_proto(message: rollout_pb2.Rollout) -> dict[str, Any]:
    """Return the values of `own_fields`; lengths, log-probs and spans are checked."""
    tokens = len(message.completion_token_ids)
    require(bool(message.completion_id), "completion_id", "missing")
    require(tokens > 0, "completion_token_ids", "missing")
    require(min(message.completion_token_ids) >= 0, "token_ids", "must not be negative")
    require(
        len(message.generation_logprobs) == tokens,
        "generation_logprobs",
        f"{len(message.generation_logprobs)} for {tokens} tokens",
    )
    require(
        all(math.isfinite(p) and p <= 1e-3 for p in message.generation_logprobs),
        "generation_logprobs",
        "must be finite and at most 0",
    )
    require(message.finish_reason in finish_reason_from_proto, "finish_reason", "missing")
    require(
        0 <= message.reasoning_tokens <= tokens,
        "reasoning_tokens",
        f"{message.reasoning_tokens} of {tokens} tokens",
    )
    return {
        "completion_id": message.completion_id,
        "completion_text": message.completion_text,
        "completion_token_ids": tuple(message.completion_token_ids),
        "generation_logprobs": tuple(message.generation_logprobs),
        "finish_reason": finish_reason_from_proto[message.finish_reason],
        "policy_version_spans": spans_from_proto(message.policy_version_spans, tokens),
        "finished_time": moment(message.finished_time, "finished_time"),
        "reasoning_text": message.reasoning_text,
        "reasoning_tokens": message.reasoning_tokens,
    }


def rollout_from_proto(message: rollout_pb2.Rollout, traceparent: str) -> Rollout:
    """A rollout; ids, lengths, log-probs and spans are checked."""
    own = own_from_proto(message)
    for field in ("group_id", "policy", "tenant", "user_hash"):
        require(bool(getattr(message, field)), field, "missing")
    require(len(message.prompt_token_ids) > 0, "prompt_token_ids", "missing")
    require(min(message.prompt_token_ids) >= 0, "token_ids", "must not be negative")
    session_id = message.session_id
    well_formed = not session_id or SESSION_ID.fullmatch(session_id) is not None
    require(well_formed, "session_id", "must be 1 to 128 characters, none a control character")
    return Rollout(
        **own,
        group_id=message.group_id,
        policy=message.policy,
        tenant=message.tenant,
        user_hash=message.user_hash,
        messages=messages_from_proto(message.chat),
        prompt_text=message.prompt_text,
        prompt_token_ids=tuple(message.prompt_token_ids),
        sampling=sampling_from_proto(message.sampling),
        source=source_from_proto(message.source),
        columns=columns_from_proto(message.columns),
        session_id=session_id,
        tags=dict(message.tags),
        traceparent=traceparent,
    )


def rollout_event_id(rollout: Rollout) -> str:
    """Event id of a finished rollout."""
    return f"rollout-{rollout.completion_id}"


def encode_rollout_generated(rollout: Rollout, *siblings: Rollout) -> bytes:
    """Event bytes of a finished rollout, and of others of its request."""
    return events_pb2.RolloutGenerated(
        event_id=rollout_event_id(rollout),
        rollout=rollout_to_proto(rollout),
        siblings=[rollout_pb2.Rollout(**own_fields(sibling)) for sibling in siblings],
        traceparent=rollout.traceparent or None,
    ).SerializeToString()


def decode_rollouts_generated(data: bytes) -> tuple[Rollout, ...]:
    """Decode the rollouts of an event, at least one. Raises `CorruptData`."""
    message = parse(events_pb2.RolloutGenerated, data)
    first = rollout_from_proto(message.rollout, message.traceparent)
    siblings = [replace(first, **own_from_proto(sibling)) for sibling in message.siblings]
    ids = {first.completion_id, *(sibling.completion_id for sibling in siblings)}
    require(len(ids) == 1 + len(siblings), "siblings", "have the same completion_id")
    return (first, *siblings)
