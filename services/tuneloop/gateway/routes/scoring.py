"""`POST /v1/score`: the reward service over HTTP."""

from fastapi import APIRouter, Request

from tuneloop import wire
from tuneloop.api.feedback import ScorerResult, Scores
from tuneloop.gateway.context import gateway_of
from tuneloop.gateway.edge.limits import BYTES_PER_TOKEN, meter_of_request
from tuneloop.gateway.openai.schemas import ScoreRequest
from tuneloop.rollouts import Score
from tuneloop.rpc.status import reply_of
from tuneloop.text.messages import conversation
from tuneloop.v1 import reward_pb2

router = APIRouter(tags=["feedback"])

SCORE_TIMEOUT = 60.0


@router.post("/v1/score")
async def score(body: ScoreRequest, request: Request) -> Scores:
    """Score completions of one prompt; null if no scorer could score one.

    It costs the key tokens: a quarter of the bytes of the prompt, for each completion, and of all
    completions.
    """
    gateway = gateway_of(request)
    message = reward_pb2.ScoreRolloutsRequest(completions=body.completions)
    if body.messages is None:
        message.text = body.prompt or ""
    else:
        message.chat.CopyFrom(wire.messages_to_proto(conversation(body.messages)))
    if (meter := meter_of_request.get()) is not None:
        completions = sum(len(text.encode()) for text in body.completions)
        prompts = (message.ByteSize() - completions) * len(body.completions)
        cost = (prompts + completions) // BYTES_PER_TOKEN
        meter.check_tokens(cost)
        meter.charge(cost)
    answer: reward_pb2.ScoreRolloutsResponse = await reply_of(
        gateway.reward.ScoreRollouts(message, timeout=SCORE_TIMEOUT)
    )
    scores = [wire.score_from_proto(s) for s in answer.scores]
    return {
        "scores": [s.reward for s in scores],
        "reward_model_version": answer.reward_model_version,
        "results": [results(s) for s in scores],
    }


def results(score: Score) -> list[ScorerResult]:
    """Return the results of the scorers behind one reward."""
    return [
        {"scorer": r.scorer, "score": r.score, "weight": r.weight, "informative": r.informative}
        for r in score.results
    ]
