"""The best of several: candidates for one answer, of which the reward service tells the best.

Every candidate is sampled to its end before the answer begins, as none is known to be the best
before. Where nothing can tell, the first is the answer: no request fails for want of a choice. The
chosen one alone is a turn of its session; generation publishes the others as candidates.
"""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from tuneloop import wire
from tuneloop.api.openai import BestOf
from tuneloop.errors import TuneloopError, Unavailable
from tuneloop.gateway import metrics
from tuneloop.gateway.context import CONTROL_TIMEOUT, Gateway
from tuneloop.gateway.edge.limits import meter_of_request
from tuneloop.gateway.errors import shown_message
from tuneloop.gateway.openai.calls import GeneratedAnswer, events
from tuneloop.gateway.openai.generated_events import Event
from tuneloop.rollouts import FinishReason, Score, choice_id
from tuneloop.rpc.status import reply_of
from tuneloop.v1 import generation_pb2, reward_pb2

logger = logging.getLogger("tuneloop.gateway")

SCORE_SECONDS = 30.0
"""How long an answer waits for the scores of its candidates."""

Candidate = list[generation_pb2.GenerateResponse]
"""The events of one completion; the last is its end."""


def answer_events(gateway: Gateway, answer: GeneratedAnswer) -> AsyncGenerator[Event]:
    """Return the events of an answer: as they are sampled, or those of the best candidate."""
    return best_events(gateway, answer) if answer.are_candidates else events(gateway, answer)


async def best_events(gateway: Gateway, answer: GeneratedAnswer) -> AsyncGenerator[Event]:
    """Yield the events of the best candidate, as of the only choice, once it is chosen.

    Raises what `events` raises, and `QuotaExceeded`: each candidate counts as a request.
    """
    if (meter := meter_of_request.get()) is not None:
        meter.admit_rest(answer.n - 1)
    candidates: list[Candidate] = [[] for _ in range(answer.n)]
    async with aclosing(events(gateway, answer)) as sampled:
        async for index, event in sampled:
            candidates[index].append(event)
    answer.best_of = await choose(gateway, answer, candidates)
    metrics.best_of_answers.labels(answer.best_of["chosen_by"]).inc()
    await tell_choice(gateway, answer)
    for event in candidates[answer.best_of["chosen"]]:
        yield 0, event


async def choose(
    gateway: Gateway, answer: GeneratedAnswer, candidates: Sequence[Candidate]
) -> BestOf:
    """Return which candidate is the best by its reward; the first complete one if none can tell."""
    aborted = wire.finish_reason_to_proto[FinishReason.ABORT]
    complete = [i for i, c in enumerate(candidates) if c[-1].final.finish_reason != aborted]
    scores: Sequence[Score] = ()
    version, reason = None, None
    try:
        reply = await score(gateway, answer, candidates)
        scores = [wire.score_from_proto(message) for message in reply.scores]
        version = reply.reward_model_version
    except TuneloopError as error:
        reason = f"the reward service did not score them: {shown_message(error)}"
        logger.warning("the candidates of %s were not scored: %s", answer.group_id, error.message)
    rewards = [finite_or_none(s.reward) for s in scores] or [None] * answer.n
    known = {
        i: reward for i in complete if (reward := rewards[i]) is not None and scores[i].informative
    }
    if reason is None and not known:
        reason = why_none(complete, rewards)
    return {
        "n": answer.n,
        "chosen": max(known, key=known.__getitem__) if known else (complete or [0])[0],
        "chosen_by": "reward" if known else "none",
        "reason": reason,
        "scores": {choice_id(answer.group_id, i): rewards[i] for i in range(answer.n)},
        "reward_model_version": version,
    }


def why_none(complete: Sequence[int], rewards: Sequence[float | None]) -> str:
    """Return why none of the candidates, of which these are complete, was chosen."""
    if not complete:
        return "generation stopped before any was complete"
    told = any(rewards[i] is not None for i in complete)
    return "no scorer is informative yet" if told else "no scorer could score them"


def finite_or_none(reward: float | None) -> float | None:
    """Return a reward that can be compared, and sent as JSON."""
    return reward if reward is not None and math.isfinite(reward) else None


async def score(
    gateway: Gateway, answer: GeneratedAnswer, candidates: Sequence[Candidate]
) -> reward_pb2.ScoreRolloutsResponse:
    """Score the candidates as their rollouts will be. Raises `TuneloopError`."""
    [asked] = answer.requests
    message = reward_pb2.ScoreRolloutsRequest(
        chat=asked.chat, completions=[text_of(candidate) for candidate in candidates]
    )
    reply: reward_pb2.ScoreRolloutsResponse = await reply_of(
        gateway.reward.ScoreRollouts(message, timeout=SCORE_SECONDS)
    )
    if len(reply.scores) != len(candidates):
        raise Unavailable(f"{len(reply.scores)} scores for {len(candidates)} candidates")
    return reply


def text_of(candidate: Candidate) -> str:
    """Return the text of a candidate, with its calls as the model wrote them."""
    pieces = "".join(event.delta.text for event in candidate)
    return candidate[-1].final.candidate_text or pieces


async def tell_choice(gateway: Gateway, answer: GeneratedAnswer) -> None:
    """Tell generation which candidate is the answer; the answer does not depend on it."""
    [asked] = answer.requests
    if not asked.publish_rollout:
        return
    choice = generation_pb2.ChooseCandidateRequest(
        policy=asked.policy, group_id=answer.group_id, completion_id=answer.completion_id
    )
    told = [gateway.replicas.choose(choice, route_by=asked.session_id or answer.group_id)]
    if gateway.canary is not None and gateway.canary.takes(asked):
        canary = gateway.canary.generation
        told.append(reply_of(canary.ChooseCandidate(choice, timeout=CONTROL_TIMEOUT)))
    outcomes = await asyncio.gather(*told, return_exceptions=True)
    if all(isinstance(outcome, BaseException) for outcome in outcomes):
        logger.warning("the choice of %s was lost: %s", answer.completion_id, outcomes[0])
