"""`GenerationService` over gRPC: translates messages, and leaves the work to `Completions`."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from tuneloop import tracing, wire
from tuneloop.errors import NotFound, Unavailable
from tuneloop.generation.completions import Completions
from tuneloop.generation.formats.tool_calls import merge_calls
from tuneloop.generation.partial_completion import Delta, Final
from tuneloop.generation.requests import chat_from_proto, request_from_proto
from tuneloop.v1 import generation_pb2, generation_pb2_grpc


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
        if request.redacted and self.completions.publisher.redactor is None:
            raise Unavailable(
                "the gateway redacts personal data and generation does not: set "
                "TUNELOOP_REDACT_ENTITIES for both"
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
        prompt = chat_from_proto(request.chat, tools, request.template_options)
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
            reasoning=delta.reasoning,
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
        reasoning=first.reasoning + second.reasoning,
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
        reasoning_tokens=final.reasoning_tokens,
        candidate_text=final.candidate_text,
    )
