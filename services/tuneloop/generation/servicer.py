"""`GenerationService` over gRPC: translates messages, and leaves the work to `Completions`."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tuneloop import tracing, wire
from tuneloop.bus import subjects
from tuneloop.errors import InvalidRequest, NotFound
from tuneloop.generation.completions import Completions, GenerationRequest
from tuneloop.generation.partial_completion import Delta, Final
from tuneloop.generation.schemas.limits import check_schema, check_schemas
from tuneloop.generation.tool_calls import merge_calls
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
from tuneloop.v1 import generation_pb2, generation_pb2_grpc, rollout_pb2

MAX_ID_LENGTH = 256


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Serves one policy."""

    def __init__(self, completions: Completions, *, base_model: str) -> None:
        self.completions = completions
        self.hot_swap = completions.hot_swap
        self.base_model = base_model

    async def Generate(
        self, request: generation_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        """Stream completions; cancelling the call aborts them."""
        self.check_policy(request.policy)
        tracing.annotate(
            {
                "gen_ai.request.model": self.hot_swap.options.policy,
                "gen_ai.response.id": request.completion_id,
            }
        )
        batches = self.completions.stream(request_from_proto(request))
        with_logprobs = request.sampling.HasField("top_logprobs")
        try:
            async for batch in batches:
                for event in join_deltas(batch):
                    if isinstance(event, Final):
                        tracing.annotate({"tuneloop.policy_version": event.policy_version})
                        yield generation_pb2.GenerateResponse(final=final_to_proto(event))
                    else:
                        message = self.delta_to_proto(event, with_logprobs)
                        yield generation_pb2.GenerateResponse(delta=message)
        finally:
            await batches.aclose()

    async def ChooseCandidate(
        self, request: generation_pb2.ChooseCandidateRequest, context: Any
    ) -> generation_pb2.ChooseCandidateResponse:
        """Publish a request's candidates, one of which was answered."""
        self.check_policy(request.policy)
        self.completions.publisher.choose(request.group_id, request.completion_id)
        return generation_pb2.ChooseCandidateResponse()

    async def CountTokens(
        self, request: generation_pb2.CountTokensRequest, context: Any
    ) -> generation_pb2.CountTokensResponse:
        """Count the tokens of a conversation."""
        self.check_policy(request.policy)
        tools = request.tool_use if request.HasField("tool_use") else None
        prompt = chat_from_proto(request.chat, tools)
        count = await self.completions.count_tokens(prompt, request.api_key_id)
        return generation_pb2.CountTokensResponse(prompt_tokens=count)

    async def LoadWeights(
        self, request: generation_pb2.LoadWeightsRequest, context: Any
    ) -> generation_pb2.LoadWeightsResponse:
        """Load a published version and, unless told otherwise, serve it."""
        reference = wire.weights_from_proto(request.weights)
        self.check_policy(reference.policy)
        if request.HasField("activate") and not request.activate:
            await self.hot_swap.load(reference)
            return generation_pb2.LoadWeightsResponse(policy_version=self.hot_swap.serving)
        swap = await self.hot_swap.activate(reference)
        return generation_pb2.LoadWeightsResponse(
            policy_version=swap.policy_version,
            swap_seconds=swap.swap_seconds,
            pause_seconds=swap.pause_seconds,
        )

    async def GetPolicy(
        self, request: generation_pb2.GetPolicyRequest, context: Any
    ) -> generation_pb2.GetPolicyResponse:
        """Describe the policy."""
        self.check_policy(request.policy)
        return generation_pb2.GetPolicyResponse(policy=self.describe_policy())

    async def ListPolicies(
        self, request: generation_pb2.ListPoliciesRequest, context: Any
    ) -> generation_pb2.ListPoliciesResponse:
        """Describe the only policy."""
        return generation_pb2.ListPoliciesResponse(policies=[self.describe_policy()])

    def check_policy(self, name: str) -> None:
        """Raise `NotFound` unless `name` is this policy, or empty."""
        if name not in ("", self.hot_swap.options.policy):
            raise NotFound(
                f"no policy {name!r}; this service has {self.hot_swap.options.policy!r}",
                param="model",
            )

    def describe_policy(self) -> generation_pb2.Policy:
        """Return the policy's current state."""
        engine = self.completions.engine
        return generation_pb2.Policy(
            name=self.hot_swap.options.policy,
            policy_version=self.hot_swap.serving,
            base_model=self.base_model,
            weights_kind=engine.weights_kind.value,
            max_model_len=self.completions.limits.max_model_len,
            loaded_versions=[
                generation_pb2.LoadedVersion(
                    policy_version=loaded.policy_version,
                    leases=loaded.leases,
                    loaded_time=wire.timestamp(loaded.loaded_time),
                )
                for loaded in self.hot_swap.loaded_versions()
            ],
            activated_time=wire.timestamp(self.hot_swap.activated_time),
            engine=engine.name,
            outcomes=[
                generation_pb2.Outcomes(policy_version=v, answered=c.answered, failed=c.failed)
                for v, c in self.completions.outcomes.by_version()
            ],
            counted_by=self.completions.outcomes.counted_by,
            canary=self.describe_canary(),
        )

    def describe_canary(self) -> generation_pb2.Canary | None:
        """Return the version that a share of the users gets, if any."""
        route = self.hot_swap.canary
        if route is None:
            return None
        version = route.weights.policy_version
        return generation_pb2.Canary(
            policy_version=version, share=route.share, loaded=self.hot_swap.holds(route.weights)
        )

    def delta_to_proto(self, delta: Delta, with_logprobs: bool) -> generation_pb2.GenerateDelta:
        """Return a delta as a message, with log-probs if they were requested."""
        message = generation_pb2.GenerateDelta(
            index=delta.index,
            text=delta.text,
            token_ids=delta.token_ids,
            policy_version=delta.policy_version,
            tool_calls=[
                generation_pb2.ToolCallDelta(
                    index=c.index, call_id=c.call_id, name=c.name, arguments=c.arguments
                )
                for c in delta.tool_calls
            ],
        )
        if with_logprobs:
            for token, logprob, top in zip(
                delta.token_ids, delta.logprobs, delta.top_logprobs, strict=True
            ):
                message.logprobs.add(
                    chosen=self.token_to_proto(token, logprob),
                    top=[self.token_to_proto(c.token_id, c.logprob) for c in top],
                )
        return message

    def token_to_proto(self, token_id: int, logprob: float) -> generation_pb2.TokenLogprob:
        """Return a token with its log-prob, its text and its bytes."""
        token = self.completions.tokenization.token_texts[token_id]
        return generation_pb2.TokenLogprob(
            token_id=token_id, token=token.text, token_bytes=token.data, logprob=logprob
        )


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
        traceparent=tracing.traceparent(),
    )


def tags_from_proto(request: generation_pb2.GenerateRequest) -> Mapping[str, str]:
    """Return the tags of a request. Raises `InvalidRequest`."""
    try:
        return check_tags(dict(request.tags))
    except ValueError as error:
        raise InvalidRequest(f"tags: {error}", param="tags") from None


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
            return chat_from_proto(request.chat, tools)
        case "text":
            return Prompt(text=request.text)
        case "tokens":
            return Prompt(token_ids=tuple(request.tokens.token_ids))
        case _:
            raise InvalidRequest("prompt: missing", param="prompt")


def chat_from_proto(chat: rollout_pb2.ChatPrompt, tools: generation_pb2.ToolUse | None) -> Prompt:
    """Return a conversation, with the tools that may be called in it."""
    messages = wire.messages_from_proto(chat)
    if tools is None:
        return Prompt(messages=messages)
    tool_use = wire.tool_use_from_proto(tools)
    check_schemas([tool.parameters or "{}" for tool in tool_use.tools], "tools")
    return Prompt(messages=messages, tool_use=tool_use)


def join_deltas(events: Sequence[Delta | Final]) -> list[Delta | Final]:
    """Join the deltas of each completion into one, up to its final."""
    result: list[Delta | Final] = []
    open_delta: dict[int, int] = {}
    for event in events:
        at = open_delta.get(event.index)
        if isinstance(event, Final):
            open_delta.pop(event.index, None)
            result.append(event)
        elif at is None:
            open_delta[event.index] = len(result)
            result.append(event)
        else:
            result[at] = add_deltas(result[at], event)
    return result


def add_deltas(first: Delta | Final, second: Delta) -> Delta:
    """Join two deltas of one completion."""
    if not isinstance(first, Delta):
        raise AssertionError("only deltas are joined")
    return Delta(
        index=first.index,
        text=first.text + second.text,
        token_ids=first.token_ids + second.token_ids,
        logprobs=first.logprobs + second.logprobs,
        top_logprobs=first.top_logprobs + second.top_logprobs,
        policy_version=second.policy_version,
        tool_calls=merge_calls(first.tool_calls + second.tool_calls),
    )


def final_to_proto(final: Final) -> generation_pb2.GenerateFinal:
    """Return the end of a completion as a message."""
    return generation_pb2.GenerateFinal(
        index=final.index,
        completion_id=final.completion_id,
        token_ids=final.token_ids,
        generation_logprobs=final.logprobs,
        finish_reason=wire.finish_reason_to_proto[final.finish_reason],
        policy_version_spans=wire.spans_to_proto(final.policy_version_spans),
        usage=generation_pb2.Usage(
            prompt_tokens=final.prompt_tokens, completion_tokens=len(final.token_ids)
        ),
        policy_version=final.policy_version,
        stop_sequence=final.stop_sequence,
        candidate_text=final.candidate_text,
    )
