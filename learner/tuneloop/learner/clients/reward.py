"""The reward service, as the gate uses it."""

from collections.abc import Sequence

import grpc

from tuneloop.learner.data.tokenize import PromptTokens
from tuneloop.rollouts import Score
from tuneloop.rpc.status import error_from_rpc
from tuneloop.v1 import reward_pb2, reward_pb2_grpc
from tuneloop.wire import messages_to_proto, score_from_proto

SCORE_SECONDS = 60.0


class RewardClient:
    """Scores answers to one prompt against each other."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = reward_pb2_grpc.RewardServiceStub(channel)

    async def scores(self, asked: PromptTokens, completions: Sequence[str]) -> list[Score]:
        """Return one score for each completion, by the same scorers. Raises `TuneloopError`."""
        request = reward_pb2.ScoreRolloutsRequest(
            chat=messages_to_proto(asked.messages) if asked.messages else None,
            text=None if asked.messages else asked.text,
            completions=completions,
        )
        try:
            answer = await self._stub.ScoreRollouts(request, timeout=SCORE_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
        return [score_from_proto(score) for score in answer.scores]
