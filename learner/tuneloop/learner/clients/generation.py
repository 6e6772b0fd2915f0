"""Ask the running generation service, as a user's request would."""

from dataclasses import dataclass

import grpc

from tuneloop.errors import Unavailable
from tuneloop.learner.data.prompt_rows import PromptRow
from tuneloop.learner.samples import SampledAnswer
from tuneloop.policies import ServedPolicy, VersionOutcomes, WeightsReference
from tuneloop.rollouts import RolloutSource, SamplingParameters, ToolUse
from tuneloop.rpc.status import error_from_rpc
from tuneloop.v1 import generation_pb2, generation_pb2_grpc
from tuneloop.wire import (
    columns_to_proto,
    messages_to_proto,
    sampling_to_proto,
    source_to_proto,
    tool_use_to_proto,
    weights_to_proto,
)

CONTROL_SECONDS = 5.0
ANSWER_SECONDS = 600.0
LOAD_SECONDS = 120.0
TENANT = "tuneloop"
"""Tenant of rollouts that no user asked for; their user is their source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRequest:
    """A prompt and how to answer it."""

    completion_id: str
    row: PromptRow
    sampling: SamplingParameters
    source: RolloutSource
    policy_version: int | None = None
    """The version that answers; None is the one served."""
    recorded: bool = True
    """Whether the rollouts go out on the bus."""


class GenerationClient:
    """The generation service, as the learner uses it."""

    def __init__(self, channel: grpc.aio.Channel, policy: str) -> None:
        self._stub = generation_pb2_grpc.GenerationServiceStub(channel)
        self._policy = policy

    async def policy(self) -> ServedPolicy:
        """Return what is served and held now; raises `TuneloopError`."""
        request = generation_pb2.GetPolicyRequest(policy=self._policy)
        try:
            answer = await self._stub.GetPolicy(request, timeout=CONTROL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
        return _served_policy(answer.policy)

    async def ask(self, question: PromptRequest) -> None:
        """Have a prompt answered; the rollouts come over the bus. Raises `TuneloopError`."""
        try:
            async for _ in self._stub.Generate(self._request(question), timeout=ANSWER_SECONDS):
                pass
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error

    async def answer(self, question: PromptRequest, seconds: float) -> SampledAnswer:
        """Return the one completion of a prompt, within `seconds`. Raises `TuneloopError`."""
        text, final = "", None
        try:
            async for response in self._stub.Generate(self._request(question), timeout=seconds):
                text += response.delta.text
                if response.HasField("final"):
                    final = response.final
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
        if final is None:
            raise Unavailable(f"{question.completion_id}: generation ended without an answer")
        return SampledAnswer(
            text=text,
            token_ids=tuple(final.token_ids),
            logprobs=tuple(final.generation_logprobs),
            reasoning_tokens=final.reasoning_tokens,
        )

    async def load(self, weights: WeightsReference) -> None:
        """Have a version loaded without serving it. Raises `TuneloopError`."""
        request = generation_pb2.LoadWeightsRequest(
            weights=weights_to_proto(weights), activate=False
        )
        try:
            await self._stub.LoadWeights(request, timeout=LOAD_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error

    def _request(self, question: PromptRequest) -> generation_pb2.GenerateRequest:
        asked = question.row.asked
        return generation_pb2.GenerateRequest(
            completion_id=question.completion_id,
            policy=self._policy,
            chat=messages_to_proto(asked.messages) if asked.messages else None,
            text=None if asked.messages else asked.rendered,
            tool_use=tool_use_to_proto(ToolUse(tools=asked.tools)) if asked.tools else None,
            sampling=sampling_to_proto(question.sampling),
            tenant=TENANT,
            user_hash=question.source.value,
            policy_version=question.policy_version,
            publish_rollout=question.recorded,
            source=source_to_proto[question.source],
            columns=columns_to_proto(question.row.columns),
        )


def _served_policy(policy: generation_pb2.Policy) -> ServedPolicy:
    return ServedPolicy(
        name=policy.name,
        policy_version=policy.policy_version,
        weights_kind=policy.weights_kind,
        leases={held.policy_version: held.leases for held in policy.loaded_versions},
        outcomes=tuple(
            VersionOutcomes(
                policy_version=of_version.policy_version,
                answered=of_version.answered,
                failed=of_version.failed,
            )
            for of_version in policy.outcomes
        ),
        counted_by=policy.counted_by,
        loaded_canary=policy.canary.policy_version if policy.canary.loaded else None,
    )
