"""`/healthz` (the process runs), `/readyz` (a chat would be answered now) and `/metrics`."""

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import Response

from tuneloop.api.learner import Health, Readiness
from tuneloop.errors import TuneloopError, Unavailable
from tuneloop.gateway.context import Gateway, gateway_of
from tuneloop.gateway.errors import shown_message
from tuneloop.rpc.probe import is_serving
from tuneloop.rpc.status import reply_of
from tuneloop.v1 import generation_pb2

READY_TIMEOUT = 2.0
GENERATION_SERVICE = "tuneloop.v1.GenerationService"

router = APIRouter(tags=["operations"])


@router.get("/healthz")
async def healthz() -> Health:
    """Answer 200 while the process runs."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    responses={503: {"model": Readiness, "description": "No chat would be answered now."}},
)
async def readyz(request: Request, response: Response) -> Readiness:
    """Answer 200 if generation serves this gateway's policy, else 503 with the reason."""
    gateway = gateway_of(request)
    try:
        policy = await served_policy(gateway)
    except TuneloopError as error:
        response.status_code = 503
        response.headers["retry-after"] = "1"
        return {"status": "unavailable", "reason": shown_message(error)}
    return {
        "status": "ready",
        "policy": policy.name,
        "policy_version": policy.policy_version,
        # Feedback needs the bus; answers do not.
        "feedback": "accepted" if gateway.bus.connected else "unavailable",
    }


async def served_policy(gateway: Gateway) -> generation_pb2.Policy:
    """Return the policy that generation serves; raises if a chat would fail."""
    if not await is_serving(gateway.generation_channel, GENERATION_SERVICE):
        raise Unavailable("generation is not serving yet")
    request = generation_pb2.GetPolicyRequest(policy=gateway.settings.policy)
    answer: generation_pb2.GetPolicyResponse = await reply_of(
        gateway.generation.GetPolicy(request, timeout=READY_TIMEOUT)
    )
    return answer.policy


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Prometheus text, unless it has a port of its own."""
    if gateway_of(request).settings.metrics_port is not None:
        raise HTTPException(404, "metrics are served at a port of their own")
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
