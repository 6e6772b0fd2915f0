"""`/v1/policies`: the versions, their origin, and which one serves."""

import asyncio
import json
import math
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from tuneloop.api.policies import (
    Activated,
    CanaryShare,
    Decision,
    MetricFigures,
    PolicyList,
    PolicyVersion,
    PolicyVersionDetails,
    Rebuilt,
    Serving,
    Traffic,
)
from tuneloop.errors import InvalidRequest, NotFound, TuneloopError, Unavailable
from tuneloop.gateway.context import CONTROL_TIMEOUT, Gateway, gateway_of
from tuneloop.gateway.openai.schemas import INT64_MAX
from tuneloop.gateway.routes.learner import actor_of, evaluation, optional_field, rfc3339
from tuneloop.gateway.routes.lineage import user_hash_of
from tuneloop.rpc.status import reply_of
from tuneloop.text.messages import Text
from tuneloop.v1 import generation_pb2, learner_pb2

router = APIRouter(tags=["policies"])

RELEASE_TIMEOUT = 30.0
REBUILD_TIMEOUT = 300.0
"""The learner finishes the current step first."""

Version = Annotated[int, Path(ge=0, le=INT64_MAX)]


class RollBackRequest(BaseModel):
    """The version to go back to."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    policy_version: int | None = Field(None, ge=0, le=INT64_MAX)
    """None: the last good version before the stable one."""


class RebuildRequest(BaseModel):
    """The start of the new training: a version, or the last one before a user, key or tenant."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    policy_version: int | None = Field(None, ge=0, le=INT64_MAX)
    before_user: Text | None = Field(None, min_length=1, max_length=512)
    """Start from the last version that had not learned from this user."""
    before_key: Text | None = Field(None, min_length=1, max_length=64)
    """Retract all feedback that came with this API key (name or id), and start from the last
    version that had not learned from it."""
    before_tenant: Text | None = Field(None, min_length=1, max_length=64)
    """The same for a tenant."""


@router.get("/v1/policies")
async def list_policies(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    before: Annotated[int | None, Query(ge=0, le=INT64_MAX)] = None,
) -> PolicyList:
    """List the newest versions, with what serves now.

    Each half is null while its service does not answer; 503 only if neither does.
    """
    return await policies_document(gateway_of(request), limit, before)


async def policies_document(gateway: Gateway, limit: int, before: int | None) -> PolicyList:
    """Return the newest versions and what serves. Raises `Unavailable` if neither is known."""
    serving, versions = await asyncio.gather(
        get_serving(gateway), get_versions(gateway, limit, before), return_exceptions=True
    )
    for outcome in (serving, versions):
        if isinstance(outcome, BaseException) and not isinstance(outcome, TuneloopError):
            raise outcome
    if isinstance(serving, TuneloopError) and isinstance(versions, TuneloopError):
        raise Unavailable(
            f"neither generation nor the learner answers: check that they run ({serving.message})",
            retry_after=1.0,
        ) from serving
    return {
        "object": "list",
        "policy": gateway.settings.policy,
        "policy_version": None if isinstance(serving, BaseException) else serving["policy_version"],
        "serving": None if isinstance(serving, BaseException) else serving,
        "data": None if isinstance(versions, BaseException) else versions,
    }


@router.get("/v1/policies/{version}")
async def get_policy_version(version: Version, request: Request) -> PolicyVersionDetails:
    """Return a version's manifest, lineage and decisions."""
    gateway = gateway_of(request)
    answer: learner_pb2.GetLineageResponse = await reply_of(
        gateway.learner.GetLineage(
            learner_pb2.GetLineageRequest(policy=gateway.settings.policy, policy_version=version),
            timeout=RELEASE_TIMEOUT,
        )
    )
    if not answer.version.policy:
        raise NotFound(f"no version {version} of {gateway.settings.policy}", param="version")
    return {
        **policy_version(answer.version, with_numbers=True),
        "manifest": json.loads(answer.version.manifest_json or "null"),
        "ancestors": list(answer.ancestors),
        "uses": [
            {
                "sample_id": use.sample_id,
                "objective": use.objective,
                "step": use.step,
                "epoch": use.epoch,
                "feedback_id": use.feedback_id or None,
                "completion_ids": [i for i in (use.completion_id, use.rejected_id) if i],
            }
            for use in answer.uses
        ],
        "settings": json.loads(answer.settings_json or "{}"),
    }


@router.post("/v1/policies/{version}/promote")
async def promote(version: Version, request: Request) -> Activated:
    """Make a published version the one that serves."""
    gateway = gateway_of(request)
    message = learner_pb2.PromoteRequest(
        policy=gateway.settings.policy, policy_version=version, actor=actor_of(request)
    )
    answer: learner_pb2.PromoteResponse = await reply_of(
        gateway.learner.Promote(message, timeout=RELEASE_TIMEOUT)
    )
    return {"policy": gateway.settings.policy, "policy_version": answer.policy_version}


@router.post("/v1/policies/rollback")
async def roll_back(request: Request, body: RollBackRequest | None = None) -> Activated:
    """Roll back to an earlier version: the last good one before the stable, or the one named.

    The versions after it are quarantined, and training uses what they learned from again.
    """
    gateway = gateway_of(request)
    message = learner_pb2.RollBackRequest(
        policy=gateway.settings.policy,
        policy_version=None if body is None else body.policy_version,
        actor=actor_of(request),
    )
    answer: learner_pb2.RollBackResponse = await reply_of(
        gateway.learner.RollBack(message, timeout=RELEASE_TIMEOUT)
    )
    return {"policy": gateway.settings.policy, "policy_version": answer.policy_version}


@router.post("/v1/policies/rebuild")
async def rebuild(body: RebuildRequest, request: Request) -> Rebuilt:
    """Quarantine the versions after one, and train again from there on the remaining feedback.

    `restored_version` is the version whose checkpoint was left: that one, or 0, the base model.
    """
    gateway = gateway_of(request)
    starts = (body.policy_version, body.before_user, body.before_key, body.before_tenant)
    if sum(start is not None for start in starts) != 1:
        raise InvalidRequest(
            "policy_version: give one of policy_version, before_user, before_key, before_tenant",
            param="policy_version",
        )
    user = body.before_user
    message = learner_pb2.RebuildPolicyRequest(
        policy=gateway.settings.policy,
        policy_version=body.policy_version,
        before_user_hash=None if user is None else user_hash_of(gateway, user),
        before_api_key=body.before_key,
        before_tenant=body.before_tenant,
        actor=actor_of(request),
    )
    answer: learner_pb2.RebuildPolicyResponse = await reply_of(
        gateway.learner.RebuildPolicy(message, timeout=REBUILD_TIMEOUT)
    )
    return {
        "policy": gateway.settings.policy,
        "policy_version": answer.policy_version,
        "restored_version": answer.restored_version,
        "left_behind": list(answer.left_behind),
        "samples_put_back": answer.samples_put_back,
        "feedback_retracted": answer.feedback_retracted,
    }


async def get_serving(gateway: Gateway) -> Serving:
    """Return what generation serves and has loaded."""
    request = generation_pb2.GetPolicyRequest(policy=gateway.settings.policy)
    answer: generation_pb2.GetPolicyResponse = await reply_of(
        gateway.generation.GetPolicy(request, timeout=CONTROL_TIMEOUT)
    )
    policy = answer.policy
    return {
        "policy_version": policy.policy_version,
        "activated_time": rfc3339(policy.activated_time),
        "base_model": policy.base_model,
        "weights_kind": policy.weights_kind,
        "engine": policy.engine,
        "max_model_len": policy.max_model_len,
        "loaded_versions": [v.policy_version for v in policy.loaded_versions],
        "canary": canary(policy.canary) if policy.HasField("canary") else None,
    }


async def find_serving_version(gateway: Gateway) -> int | None:
    """Return the version that serves; None while generation does not answer."""
    try:
        return (await get_serving(gateway))["policy_version"]
    except Unavailable:
        return None


def canary(message: generation_pb2.Canary) -> CanaryShare:
    """Return the version that a share of the users gets."""
    return {
        "policy_version": message.policy_version,
        "share": message.share,
        "loaded": message.loaded,
    }


async def get_versions(gateway: Gateway, limit: int, before: int | None) -> list[PolicyVersion]:
    """Return the learner's newest versions."""
    request = learner_pb2.ListPolicyVersionsRequest(
        policy=gateway.settings.policy, page_size=limit, before_version=before
    )
    answer: learner_pb2.ListPolicyVersionsResponse = await reply_of(
        gateway.learner.ListPolicyVersions(request, timeout=CONTROL_TIMEOUT)
    )
    return [policy_version(version) for version in answer.versions]


def policy_version(
    version: learner_pb2.PolicyVersion, *, with_numbers: bool = False
) -> PolicyVersion:
    """Return a version without its manifest."""
    manifest = json.loads(version.manifest_json or "{}")
    return {
        "policy_version": version.policy_version,
        "parent_version": version.parent_version,
        "state": version.state,
        "algorithms": manifest.get("algorithms", []),
        "metrics": manifest.get("metrics", {}),
        "samples": manifest.get("data", {}).get("samples", {}),
        "created_time": rfc3339(version.created_time),
        "activated_time": rfc3339(version.activated_time),
        "evaluation": evaluation(version.evaluation) if version.HasField("evaluation") else None,
        "traffic": traffic(version.traffic) if version.HasField("traffic") else None,
        "decisions": [decision(d, with_numbers=with_numbers) for d in version.decisions],
    }


def decision(message: learner_pb2.Decision, *, with_numbers: bool) -> Decision:
    """Return a decision about a version; lists leave out its numbers."""
    found: Decision = {
        "kind": message.kind,
        "outcome": message.outcome,
        "reason": message.reason,
        "actor": message.actor,
        "decided_time": rfc3339(message.decided_time),
    }
    if with_numbers:
        found["numbers"] = json.loads(message.numbers_json or "{}")
    return found


def traffic(message: learner_pb2.Traffic) -> Traffic:
    """Return a version's results with users; the rate of thumbs up with its interval."""
    thumbs = message.thumbs_up + message.thumbs_down
    low, high = wilson_interval(message.thumbs_up, thumbs) if thumbs else (None, None)
    return {
        "rollouts": message.rollouts,
        "mean_length": message.mean_length,
        "length_margin": optional_field(message, "length_margin"),
        "mean_thought_length": message.mean_thought_length,
        "thought_length_margin": optional_field(message, "thought_length_margin"),
        "mean_reward": optional_field(message, "mean_reward"),
        "reward_margin": optional_field(message, "reward_margin"),
        "thumbs_up": message.thumbs_up,
        "thumbs_down": message.thumbs_down,
        "thumbs_rate": message.thumbs_up / thumbs if thumbs else None,
        "thumbs_low": low,
        "thumbs_high": high,
        "metrics": [metric_figures(metric) for metric in message.metrics],
    }


def metric_figures(message: learner_pb2.MetricFigures) -> MetricFigures:
    """Return a metric of a version's answers with its interval."""
    low: float | None = None
    high: float | None = None
    if message.is_boolean:
        low, high = wilson_interval(round(message.mean * message.count), message.count)
    elif message.HasField("margin"):
        low, high = message.mean - message.margin, message.mean + message.margin
    return {
        "name": message.name,
        "type": "boolean" if message.is_boolean else "number",
        "count": message.count,
        "mean": message.mean,
        "low": low,
        "high": high,
    }


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a rate, good for few trials and for rates near 0 and 1."""
    rate, z = successes / trials, 1.96
    denominator = 1 + z * z / trials
    middle = rate + z * z / (2 * trials)
    margin = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    return max(0.0, (middle - margin) / denominator), min(1.0, (middle + margin) / denominator)
