"""`RewardService` over gRPC: translates messages, and leaves the work to `Scoring`."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

from tuneloop import wire
from tuneloop.errors import InvalidRequest, Overloaded
from tuneloop.reward.scorer import ScoringInput
from tuneloop.reward.scoring import Scoring
from tuneloop.rollouts import ChatMessage, prompt_as_text
from tuneloop.v1 import reward_pb2, reward_pb2_grpc

MAX_COMPLETIONS = 256
MAX_WAITING = 64
"""Calls that may wait for the scoring thread."""


class RewardServicer(reward_pb2_grpc.RewardServiceServicer):
    """Scores on demand, with the same scorers as the stream."""

    def __init__(self, scoring: Scoring, executor: Executor) -> None:
        self._scoring = scoring
        self._executor = executor
        self._waiting = 0

    async def ScoreRollouts(
        self, request: reward_pb2.ScoreRolloutsRequest, context: Any
    ) -> reward_pb2.ScoreRolloutsResponse:
        """Score several completions of one prompt."""
        candidates = inputs_from_request(request)
        if self._waiting >= MAX_WAITING:
            raise Overloaded(f"{MAX_WAITING} calls wait to be scored", retry_after=1)
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            batch = await loop.run_in_executor(self._executor, self._scoring.score, candidates)
        finally:
            self._waiting -= 1
        return reward_pb2.ScoreRolloutsResponse(
            scores=[wire.score_to_proto(score) for score in batch.scores],
            reward_model_version=batch.reward_model_version,
        )


def inputs_from_request(request: reward_pb2.ScoreRolloutsRequest) -> list[ScoringInput]:
    """Return the completions to score. Raises `InvalidRequest` naming the field at fault."""
    messages: Sequence[ChatMessage] = ()
    match request.WhichOneof("prompt"):
        case "chat":
            messages = wire.messages_from_proto(request.chat)
            if not messages:
                raise InvalidRequest("messages: must not be empty", param="messages")
        case "text":
            pass
        case _:
            raise InvalidRequest("give messages or a prompt", param="messages")
    if not 1 <= len(request.completions) <= MAX_COMPLETIONS:
        raise InvalidRequest(
            f"completions: give 1 to {MAX_COMPLETIONS}, not {len(request.completions)}",
            param="completions",
        )
    prompt = prompt_as_text(messages, request.text)
    return [
        ScoringInput(prompt=prompt, completion=completion, messages=tuple(messages))
        for completion in request.completions
    ]
