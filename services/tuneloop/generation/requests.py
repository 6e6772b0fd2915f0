"""A request to the generation service as a domain value, from its message."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tuneloop import tracing, wire
from tuneloop.bus import subjects
from tuneloop.errors import InvalidRequest
from tuneloop.generation.schemas.limits import check_schema, check_schemas
from tuneloop.rollouts import (
    MAX_BIASES,
    MAX_STOP_CHARACTERS,
    MIN_TEMPERATURE,
    SESSION_ID,
    Prompt,
    RolloutSource,
    SamplingParameters,
    check_tags,
)
from tuneloop.v1 import generation_pb2, rollout_pb2

MAX_ID_LENGTH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A request to the generation service."""

    completion_id: str
    prompt: Prompt
    sampling: SamplingParameters
    tenant: str
    user_hash: str
    policy_version: int | None
    """Serve this version rather than the stable one."""
    publish_rollout: bool
    clip_max_tokens: bool
    route_by: str = ""
    """Decides whether the request is in a canary's share; empty: it never is."""
    source: RolloutSource = RolloutSource.USER
    api_key_id: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)
    session_id: str = ""
    are_candidates: bool = False
    """Whether the completions are held until one of them is chosen."""
    thinking_budget: int | None = None
    """The most tokens of the thought; None: as many as there are of the completion."""
    tags: Mapping[str, str] = field(default_factory=dict)
    traceparent: str = ""
    """Of the call; empty without tracing."""

    @property
    def caller(self) -> str:
        """Who takes turns with others: a key, or what this service asks for itself."""
        return self.api_key_id or self.source.value


def request_from_proto(request: generation_pb2.GenerateRequest) -> GenerationRequest:
    """Return the request as a domain value. Raises `InvalidRequest` naming the field at fault."""
    if not 0 < len(request.completion_id) <= MAX_ID_LENGTH:
        raise InvalidRequest(
            f"completion_id: must have 1 to {MAX_ID_LENGTH} characters", param="completion_id"
        )
    sampling = within_bounds(wire.sampling_from_proto(request.sampling))
    source = wire.source_from_proto(request.source)
    route_by = request.route_by or request.user_hash or request.completion_id
    if request.session_id and SESSION_ID.fullmatch(request.session_id) is None:
        raise InvalidRequest(
            "session_id: must be 1 to 128 characters, none a control character", param="session_id"
        )
    return GenerationRequest(
        completion_id=request.completion_id,
        prompt=prompt_from_proto(request),
        sampling=sampling,
        tenant=subjects.token(request.tenant or "default", "tenant"),
        user_hash=subjects.token(request.user_hash or "anonymous", "user_hash"),
        policy_version=request.policy_version if request.HasField("policy_version") else None,
        publish_rollout=request.publish_rollout if request.HasField("publish_rollout") else True,
        clip_max_tokens=request.clip_max_tokens,
        # Only users' requests take part in a canary, and only if they name no version.
        route_by=route_by
        if source is RolloutSource.USER and not request.HasField("policy_version")
        else "",
        source=source,
        api_key_id=request.api_key_id,
        columns=wire.columns_from_proto(request.columns),
        session_id=request.session_id,
        are_candidates=request.are_candidates,
        tags=tags_from_proto(request),
        thinking_budget=thinking_budget(request),
        traceparent=tracing.traceparent(),
    )


def tags_from_proto(request: generation_pb2.GenerateRequest) -> Mapping[str, str]:
    """Return the tags of a request. Raises `InvalidRequest`."""
    try:
        return check_tags(dict(request.tags))
    except ValueError as error:
        raise InvalidRequest(f"tags: {error}", param="tags") from None


def thinking_budget(request: generation_pb2.GenerateRequest) -> int | None:
    """Return the most tokens of a thought. Raises `InvalidRequest` for less than none."""
    if not request.HasField("thinking_budget"):
        return None
    if request.thinking_budget < 0:
        raise InvalidRequest(
            "thinking_token_budget: must not be negative", param="thinking_token_budget"
        )
    return request.thinking_budget


def within_bounds(sampling: SamplingParameters) -> SamplingParameters:
    """Return a new request's parameters as engines take them. Raises `InvalidRequest`.

    Rollouts of earlier requests may be out of these bounds; they are read all the same.
    """
    for stop in sampling.stop:
        if len(stop) > MAX_STOP_CHARACTERS:
            raise InvalidRequest(
                f"stop: {stop[:16]!r}… has {len(stop)} characters; at most {MAX_STOP_CHARACTERS}",
                param="stop",
            )
    if len(sampling.logit_bias) > MAX_BIASES:
        raise InvalidRequest(
            f"logit_bias: {len(sampling.logit_bias)} tokens; at most {MAX_BIASES}",
            param="logit_bias",
        )
    if sampling.json_schema:
        check_schema(sampling.json_schema, "response_format")
    if sampling.structural_tag:
        check_schema(sampling.structural_tag, "structural_tag")
    if 0 < sampling.temperature < MIN_TEMPERATURE:
        return replace(sampling, temperature=MIN_TEMPERATURE)
    return sampling


def prompt_from_proto(request: generation_pb2.GenerateRequest) -> Prompt:
    """Return the prompt. Raises `InvalidRequest` unless there is exactly one kind."""
    match request.WhichOneof("prompt"):
        case "chat":
            tools = request.tool_use if request.HasField("tool_use") else None
            return chat_from_proto(request.chat, tools, request.template_options)
        case "text":
            return Prompt(text=request.text)
        case "tokens":
            return Prompt(token_ids=tuple(request.tokens.token_ids))
        case _:
            raise InvalidRequest("prompt: missing", param="prompt")


def chat_from_proto(
    chat: rollout_pb2.ChatPrompt,
    tools: generation_pb2.ToolUse | None,
    options: Mapping[str, str],
) -> Prompt:
    """Return a conversation, with the tools that may be called in it, and template options."""
    prompt = Prompt(
        messages=wire.messages_from_proto(chat),
        template_options=wire.template_options_from_proto(options),
    )
    if tools is None:
        return prompt
    tool_use = wire.tool_use_from_proto(tools)
    check_schemas([tool.parameters or "{}" for tool in tool_use.tools], "tools")
    return replace(prompt, tool_use=tool_use)
