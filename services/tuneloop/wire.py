"""The only codec between domain types and protobuf.

`*_to_proto` never fails on a valid domain value. `*_from_proto` and `decode_*` validate and raise
`CorruptData` naming the field, so that whatever reaches domain code is well formed.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from tuneloop.errors import CorruptData
from tuneloop.feedback import (
    Comment,
    Comparison,
    Demonstration,
    Feedback,
    FeedbackKind,
    Judgement,
    Ranking,
    Rating,
    Retraction,
    Thumb,
)
from tuneloop.policies import Activation, LearnerStep, WeightsReference
from tuneloop.rollouts import (
    ChatMessage,
    FinishReason,
    PolicyVersionSpan,
    Rollout,
    RolloutSource,
    SamplingParameters,
    Score,
    ScoredRollout,
    ScorerResult,
    Tool,
    ToolCall,
    ToolUse,
)
from tuneloop.v1 import events_pb2, generation_pb2, reward_pb2, rollout_pb2

M = TypeVar("M", bound=Message)

TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

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
}
source_of_proto = {number: source for source, number in source_to_proto.items()}
source_of_proto[rollout_pb2.ROLLOUT_SOURCE_UNSPECIFIED] = RolloutSource.USER


def parse(message_type: type[M], data: bytes) -> M:
    """Parse `data`, or raise `CorruptData`."""
    try:
        return message_type.FromString(data)
    except DecodeError as error:
        raise CorruptData(f"not a {message_type.DESCRIPTOR.full_name}: {error}") from error


def require(condition: bool, field: str, problem: str) -> None:
    """Raise `CorruptData` naming `field` unless `condition` holds."""
    if not condition:
        raise CorruptData(f"{field}: {problem}", param=field)


def timestamp(when: datetime) -> Timestamp:
    """A protobuf timestamp of an aware datetime."""
    stamp = Timestamp()
    stamp.FromDatetime(when.astimezone(UTC))
    return stamp


def moment(stamp: Timestamp, field: str) -> datetime:
    """An aware datetime of a protobuf timestamp; `CorruptData` where it is absent or no time."""
    require(stamp.seconds > 0, field, "missing")
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise CorruptData(f"{field}: not a time: {error}", param=field) from error


def messages_to_proto(messages: Sequence[ChatMessage]) -> rollout_pb2.ChatPrompt:
    """A conversation."""
    return rollout_pb2.ChatPrompt(
        messages=[
            rollout_pb2.ChatMessage(
                role=m.role,
                content=m.content,
                tool_calls=[
                    rollout_pb2.ToolCall(call_id=c.call_id, name=c.name, arguments=c.arguments)
                    for c in m.tool_calls
                ],
                tool_call_id=m.tool_call_id,
            )
            for m in messages
        ]
    )


def messages_from_proto(chat: rollout_pb2.ChatPrompt) -> tuple[ChatMessage, ...]:
    """A conversation; may be empty."""
    return tuple(
        ChatMessage(
            role=m.role,
            content=m.content,
            tool_calls=tuple(
                ToolCall(call_id=c.call_id, name=c.name, arguments=c.arguments)
                for c in m.tool_calls
            ),
            tool_call_id=m.tool_call_id,
        )
        for m in chat.messages
    )


def tool_use_to_proto(use: ToolUse) -> generation_pb2.ToolUse:
    """Which functions may be called."""
    return generation_pb2.ToolUse(
        tools=[
            generation_pb2.Tool(
                name=t.name, description=t.description, parameters=t.parameters, strict=t.strict
            )
            for t in use.tools
        ],
        required=use.required,
        name=use.name,
        single=use.single,
    )


def tool_use_from_proto(message: generation_pb2.ToolUse) -> ToolUse:
    """Which functions may be called; raises `CorruptData` naming `tools` or `tool_choice`."""
    names = [tool.name for tool in message.tools]
    require(bool(names), "tools", "at least one")
    require(all(map(TOOL_NAME.fullmatch, names)), "tools", f"names must match {TOOL_NAME.pattern}")
    require(len(set(names)) == len(names), "tools", "names must differ")
    require(not message.name or message.name in names, "tool_choice", "names none of the tools")
    for tool in message.tools:
        json_object(tool.parameters or "{}", "tools")
    return ToolUse(
        tools=tuple(
            Tool(name=t.name, description=t.description, parameters=t.parameters, strict=t.strict)
            for t in message.tools
        ),
        required=message.required,
        name=message.name,
        single=message.single,
    )


def json_object(text: str, field: str) -> None:
    """Raise `CorruptData` naming `field` unless `text` is a JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptData(f"{field}: not JSON: {error}", param=field) from error
    require(isinstance(value, dict), field, "must be a JSON object")


def sampling_to_proto(sampling: SamplingParameters) -> rollout_pb2.SamplingParameters:
    """Sampling parameters."""
    return rollout_pb2.SamplingParameters(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_tokens,
        stop=sampling.stop,
        n=sampling.n,
        seed=sampling.seed,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        top_logprobs=sampling.top_logprobs,
        logit_bias=dict(sampling.logit_bias),
        json_schema=sampling.json_schema,
        structural_tag=sampling.structural_tag,
    )


def sampling_from_proto(message: rollout_pb2.SamplingParameters) -> SamplingParameters:
    """Sampling parameters; ranges are checked here, model limits by the engine."""
    require(0 <= message.temperature <= 2, "temperature", "must be from 0 to 2")
    require(0 < message.top_p <= 1, "top_p", "must be above 0 and at most 1")
    require(message.top_k >= 0, "top_k", "must be 0 (all) or more")
    require(message.max_tokens >= 1, "max_tokens", "must be at least 1")
    require(1 <= message.n <= 64, "n", "must be from 1 to 64")
    require(len(message.stop) <= 16, "stop", "at most 16 strings")
    require(all(message.stop), "stop", "strings must not be empty")
    require(-2 <= message.presence_penalty <= 2, "presence_penalty", "must be from -2 to 2")
    require(-2 <= message.frequency_penalty <= 2, "frequency_penalty", "must be from -2 to 2")
    require(
        not (message.json_schema and message.structural_tag),
        "response_format",
        "a JSON schema and a structural tag exclude each other",
    )
    if message.json_schema:
        json_object(message.json_schema, "response_format")
    if message.structural_tag:
        json_object(message.structural_tag, "structural_tag")
    top_logprobs = message.top_logprobs if message.HasField("top_logprobs") else None
    require(top_logprobs is None or 0 <= top_logprobs <= 20, "top_logprobs", "must be from 0 to 20")
    return SamplingParameters(
        temperature=message.temperature,
        top_p=message.top_p,
        top_k=message.top_k,
        max_tokens=message.max_tokens,
        stop=tuple(message.stop),
        n=message.n,
        seed=message.seed if message.HasField("seed") else None,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        top_logprobs=top_logprobs,
        logit_bias=dict(message.logit_bias),
        json_schema=message.json_schema,
        structural_tag=message.structural_tag,
    )


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
    """Why a completion is sampled; raises `CorruptData`."""
    require(number in source_of_proto, "source", f"unknown: {number}")
    return source_of_proto[number]


def columns_to_proto(columns: Mapping[str, Any]) -> dict[str, str]:
    """What else is known of a prompt: JSON by name."""
    return {
        name: json.dumps(value, ensure_ascii=False, default=str) for name, value in columns.items()
    }


def columns_from_proto(columns: Mapping[str, str]) -> dict[str, Any]:
    """What else is known of a prompt; raises `CorruptData` naming the column that is not JSON."""
    values = {}
    for name, value in columns.items():
        try:
            values[name] = json.loads(value)
        except ValueError as error:
            raise CorruptData(f"columns.{name}: not JSON: {error}", param="columns") from error
    return values


def rollout_to_proto(rollout: Rollout) -> rollout_pb2.Rollout:
    """A rollout."""
    return rollout_pb2.Rollout(
        completion_id=rollout.completion_id,
        group_id=rollout.group_id,
        policy=rollout.policy,
        tenant=rollout.tenant,
        user_hash=rollout.user_hash,
        chat=messages_to_proto(rollout.messages) if rollout.messages else None,
        prompt_text=rollout.prompt_text,
        completion_text=rollout.completion_text,
        prompt_token_ids=rollout.prompt_token_ids,
        completion_token_ids=rollout.completion_token_ids,
        generation_logprobs=rollout.generation_logprobs,
        finish_reason=finish_reason_to_proto[rollout.finish_reason],
        policy_version_spans=spans_to_proto(rollout.policy_version_spans),
        sampling=sampling_to_proto(rollout.sampling),
        finished_time=timestamp(rollout.finished_time),
        source=source_to_proto[rollout.source],
        columns=columns_to_proto(rollout.columns),
    )


def rollout_from_proto(message: rollout_pb2.Rollout) -> Rollout:
    """A rollout; ids, lengths, log-probs and spans are checked."""
    for field in ("completion_id", "group_id", "policy", "tenant", "user_hash"):
        require(bool(getattr(message, field)), field, "missing")
    tokens = len(message.completion_token_ids)
    require(len(message.prompt_token_ids) > 0, "prompt_token_ids", "missing")
    require(tokens > 0, "completion_token_ids", "missing")
    require(
        min(message.prompt_token_ids) >= 0 and min(message.completion_token_ids) >= 0,
        "token_ids",
        "must not be negative",
    )
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
    return Rollout(
        completion_id=message.completion_id,
        group_id=message.group_id,
        policy=message.policy,
        tenant=message.tenant,
        user_hash=message.user_hash,
        messages=messages_from_proto(message.chat),
        prompt_text=message.prompt_text,
        completion_text=message.completion_text,
        prompt_token_ids=tuple(message.prompt_token_ids),
        completion_token_ids=tuple(message.completion_token_ids),
        generation_logprobs=tuple(message.generation_logprobs),
        finish_reason=finish_reason_from_proto[message.finish_reason],
        policy_version_spans=spans_from_proto(message.policy_version_spans, tokens),
        sampling=sampling_from_proto(message.sampling),
        finished_time=moment(message.finished_time, "finished_time"),
        source=source_from_proto(message.source),
        columns=columns_from_proto(message.columns),
    )


def score_to_proto(score: Score) -> reward_pb2.Score:
    """A score."""
    return reward_pb2.Score(
        reward=score.reward,
        results=[
            reward_pb2.ScorerResult(
                scorer=r.scorer, score=r.score, weight=r.weight, informative=r.informative
            )
            for r in score.results
        ],
    )


def score_from_proto(message: reward_pb2.Score) -> Score:
    """A score; numbers must be finite."""
    for result in message.results:
        require(bool(result.scorer), "scorer", "missing")
        require(math.isfinite(result.score), f"score of {result.scorer}", "must be finite")
    require(math.isfinite(message.reward), "reward", "must be finite")
    return Score(
        reward=message.reward if message.HasField("reward") else None,
        results=tuple(
            ScorerResult(
                scorer=r.scorer,
                score=r.score if r.HasField("score") else None,
                weight=r.weight,
                informative=r.informative,
            )
            for r in message.results
        ),
    )


def rollout_event_id(rollout: Rollout) -> str:
    """Event id of a finished rollout."""
    return f"rollout-{rollout.completion_id}"


def encode_rollout_generated(rollout: Rollout) -> bytes:
    """Event bytes of a finished rollout."""
    return events_pb2.RolloutGenerated(
        event_id=rollout_event_id(rollout), rollout=rollout_to_proto(rollout)
    ).SerializeToString()


def decode_rollout_generated(data: bytes) -> Rollout:
    """The rollout of an event; raises `CorruptData`."""
    return rollout_from_proto(parse(events_pb2.RolloutGenerated, data).rollout)


def score_event_id(scored: ScoredRollout) -> str:
    """Event id of a score: one for each completion and version of the reward model."""
    return f"score-{scored.completion_id}-{scored.reward_model_version}"


def encode_rollout_scored(scored: ScoredRollout) -> bytes:
    """Event bytes of a score."""
    return events_pb2.RolloutScored(
        event_id=score_event_id(scored),
        policy=scored.policy,
        completion_id=scored.completion_id,
        score=score_to_proto(scored.score),
        reward_model_version=scored.reward_model_version,
        scored_time=timestamp(scored.scored_time),
    ).SerializeToString()


def decode_rollout_scored(data: bytes) -> ScoredRollout:
    """The score of an event; raises `CorruptData`."""
    message = parse(events_pb2.RolloutScored, data)
    require(bool(message.completion_id), "completion_id", "missing")
    require(bool(message.policy), "policy", "missing")
    return ScoredRollout(
        completion_id=message.completion_id,
        policy=message.policy,
        score=score_from_proto(message.score),
        reward_model_version=message.reward_model_version,
        scored_time=moment(message.scored_time, "scored_time"),
    )


def encode_feedback(feedback: Feedback) -> bytes:
    """Event bytes of feedback; deterministic, so that equal feedback has equal bytes."""
    return feedback_to_proto(feedback).SerializeToString(deterministic=True)


def feedback_to_proto(feedback: Feedback) -> events_pb2.FeedbackGiven:
    """Feedback."""
    message = events_pb2.FeedbackGiven(
        event_id=feedback.feedback_id,
        policy=feedback.policy,
        tenant=feedback.tenant,
        user_hash=feedback.user_hash,
        completion_id=feedback.completion_id,
        accepted_time=timestamp(feedback.accepted_time),
        metadata=dict(feedback.metadata),
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
    return message


def judgement_from_proto(message: events_pb2.FeedbackGiven) -> Judgement:
    """The judgement of a feedback event; raises `CorruptData` where it is missing or empty."""
    match message.WhichOneof("judgement"):
        case "thumb":
            value = message.thumb.value
            known = (events_pb2.THUMB_VALUE_UP, events_pb2.THUMB_VALUE_DOWN)
            require(value in known, "thumb.value", "must be up or down")
            return Thumb(up=value == events_pb2.THUMB_VALUE_UP)
        case "rating":
            require(math.isfinite(message.rating.value), "rating.value", "must be finite")
            return Rating(value=message.rating.value)
        case "comparison":
            require(bool(message.comparison.chosen), "comparison.chosen", "missing")
            require(len(message.comparison.rejected) > 0, "comparison.rejected", "missing")
            return Comparison(
                chosen=message.comparison.chosen, rejected=tuple(message.comparison.rejected)
            )
        case "ranking":
            ids = tuple(message.ranking.completion_ids)
            require(len(ids) >= 2, "ranking", "needs two completions or more")
            return Ranking(completion_ids=ids)
        case "demonstration":
            require(bool(message.demonstration.text), "demonstration.text", "missing")
            return Demonstration(text=message.demonstration.text)
        case "comment":
            require(bool(message.comment.text), "comment.text", "missing")
            return Comment(text=message.comment.text)
        case _:
            raise CorruptData("judgement: missing", param="judgement")


def decode_feedback(data: bytes) -> Feedback:
    """The feedback of an event; raises `CorruptData`."""
    return feedback_from_proto(parse(events_pb2.FeedbackGiven, data))


def feedback_from_proto(message: events_pb2.FeedbackGiven) -> Feedback:
    """Feedback; raises `CorruptData`."""
    for field in ("event_id", "policy", "tenant", "user_hash", "completion_id"):
        require(bool(getattr(message, field)), field, "missing")
    return Feedback(
        feedback_id=message.event_id,
        policy=message.policy,
        tenant=message.tenant,
        user_hash=message.user_hash,
        completion_id=message.completion_id,
        judgement=judgement_from_proto(message),
        accepted_time=moment(message.accepted_time, "accepted_time"),
        metadata=dict(message.metadata),
    )


def retraction_event_id(feedback_id: str) -> str:
    """Event id of a retraction; no id of feedback has a dot in it."""
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
    ).SerializeToString()


def decode_retraction(data: bytes) -> Retraction:
    """The retraction of an event; raises `CorruptData`."""
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
    )


def weights_to_proto(weights: WeightsReference) -> generation_pb2.WeightsReference:
    """A reference to a version's weights."""
    return generation_pb2.WeightsReference(
        policy=weights.policy,
        policy_version=weights.policy_version,
        uri=weights.uri,
        manifest_sha256=weights.manifest_sha256,
    )


def weights_from_proto(message: generation_pb2.WeightsReference) -> WeightsReference:
    """A reference to a version's weights; raises `CorruptData` where a part is missing."""
    for field in ("policy", "uri", "manifest_sha256"):
        require(bool(getattr(message, field)), field, "missing")
    require(message.policy_version > 0, "policy_version", "published versions start at 1")
    return WeightsReference(
        policy=message.policy,
        policy_version=message.policy_version,
        uri=message.uri,
        manifest_sha256=message.manifest_sha256,
    )


def encode_routing(weights: WeightsReference) -> bytes:
    """A value of the routing table: the version to serve; version 0 is the base model."""
    return weights_to_proto(weights).SerializeToString()


def decode_routing(data: bytes) -> WeightsReference:
    """A value of the routing table; version 0 has no weights. Raises `CorruptData`."""
    message = parse(generation_pb2.WeightsReference, data)
    if message.policy_version != 0:
        return weights_from_proto(message)
    require(bool(message.policy), "policy", "missing")
    return WeightsReference(policy=message.policy, policy_version=0, uri="", manifest_sha256="")


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
    """Event id of a version that began to serve, which it may do again after a roll-back."""
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
