"""`/v1/learner`: the learner's status; pause and resume."""

from fastapi import APIRouter, Request
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from tuneloop.api.learner import LearnerState, LearnerStatus, NextVersion
from tuneloop.api.policies import Evaluation, ShareOfVersion
from tuneloop.gateway.context import CONTROL_TIMEOUT, Gateway, gateway_of
from tuneloop.gateway.edge.caller import LOCAL, caller_of
from tuneloop.rpc.status import reply_of
from tuneloop.v1 import learner_pb2

router = APIRouter(tags=["learning"])


def rfc3339(stamp: Timestamp) -> str | None:
    """Return a timestamp as text in UTC, or None if it is not set."""
    return stamp.ToJsonString() if stamp.seconds else None


def optional_field(message: Message, name: str) -> float | None:
    """Return a field of a message, or None if it is not set."""
    return getattr(message, name) if message.HasField(name) else None


def evaluation(message: learner_pb2.Evaluation) -> Evaluation:
    """Return a version's results on the eval prompts; null if not known yet."""
    return {
        "policy_version": message.policy_version,
        "prompts": message.prompts,
        "scored": message.scored,
        "mean_length": message.mean_length,
        "mean_thought_length": message.mean_thought_length,
        "reward_model_version": message.reward_model_version,
        "mean_reward": optional_field(message, "mean_reward"),
        "reward_margin": optional_field(message, "reward_margin"),
        "length_margin": optional_field(message, "length_margin"),
        "thought_length_margin": optional_field(message, "thought_length_margin"),
        "kl": optional_field(message, "kl"),
    }


def next_version(message: learner_pb2.NextVersion) -> NextVersion:
    """Return the progress of the next version."""
    return {
        "steps_done": message.steps_done,
        "steps_wanted": message.steps_wanted,
        "seconds_left": message.seconds_left,
        "evidence": message.evidence,
    }


@router.get("/v1/learner")
async def get_learner(request: Request) -> LearnerStatus:
    """Return the learner's status."""
    return await learner_status(gateway_of(request))


@router.post("/v1/learner/pause")
async def pause(request: Request) -> LearnerState:
    """Pause learning until it is resumed; the service keeps answering, and feedback is kept."""
    gateway = gateway_of(request)
    message = learner_pb2.PauseRequest(actor=actor_of(request))
    answer: learner_pb2.PauseResponse = await reply_of(
        gateway.learner.Pause(message, timeout=CONTROL_TIMEOUT)
    )
    return {"state": answer.state}


@router.post("/v1/learner/resume")
async def resume(request: Request) -> LearnerState:
    """Resume learning."""
    gateway = gateway_of(request)
    message = learner_pb2.ResumeRequest(actor=actor_of(request))
    answer: learner_pb2.ResumeResponse = await reply_of(
        gateway.learner.Resume(message, timeout=CONTROL_TIMEOUT)
    )
    return {"state": answer.state}


def actor_of(request: Request) -> str:
    """Return who calls, for the record: the key's name, else the address."""
    caller = caller_of(request)
    if caller is not LOCAL:
        return caller.name
    return f"http:{request.client.host}" if request.client else "http"


async def learner_status(gateway: Gateway) -> LearnerStatus:
    """Return the learner's status. Raises `Unavailable` while it does not answer."""
    status: learner_pb2.GetStatusResponse = await reply_of(
        gateway.learner.GetStatus(learner_pb2.GetStatusRequest(), timeout=CONTROL_TIMEOUT)
    )
    return {
        "state": status.state,
        "policy": status.policy,
        "step": status.step,
        "policy_version": status.policy_version,
        "reward_model_version": status.reward_model_version,
        "samples": [
            {"objective": s.objective, "ready": s.ready, "used": s.used, "waiting": s.waiting}
            for s in status.samples
        ],
        "last_step_metrics": dict(status.last_step_metrics),
        "last_step_time": rfc3339(status.last_step_time),
        "waiting_for": status.waiting_for,
        "rollouts": status.rollouts,
        "feedback_events": status.feedback_events,
        "progress": [
            {"objective": p.objective, "have": p.have, "want": p.want} for p in status.progress
        ],
        "publish": next_version(status.next_version) if status.HasField("next_version") else None,
        "staleness": optional_field(status, "staleness"),
        "evaluation": evaluation(status.evaluation) if status.HasField("evaluation") else None,
        "base_evaluation": (
            evaluation(status.base_evaluation) if status.HasField("base_evaluation") else None
        ),
        "retracted": [share_of_version(part) for part in status.retracted],
        "learns_from_comments": (
            status.learns_from_comments if status.HasField("learns_from_comments") else None
        ),
        "alarms": [
            {"name": a.name, "since": rfc3339(a.since), "numbers": dict(sorted(a.numbers.items()))}
            for a in status.alarms
        ],
    }


def share_of_version(
    message: learner_pb2.RetractedEvidence | learner_pb2.SenderShare,
) -> ShareOfVersion:
    """Return a part of what a version was trained on."""
    return {
        "policy_version": message.policy_version,
        "samples": message.samples,
        "share": message.share,
    }
