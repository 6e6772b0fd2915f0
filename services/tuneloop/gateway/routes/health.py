"""`/healthz`: this process runs. `/readyz`: a chat would be answered now. `/metrics`."""

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, Response

from tuneloop.errors import TuneloopError, Unavailable
from tuneloop.gateway.context import Gateway, gateway_of
from tuneloop.rpc.call import reply_of
from tuneloop.rpc.probe import is_serving
from tuneloop.v1 import generation_pb2

READY_TIMEOUT = 2.0
GENERATION_SERVICE = "tuneloop.v1.GenerationService"

router = APIRouter(tags=["operations"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """200 while the process runs."""
    return {"status": "ok"}


@router.get("/readyz", response_model=None)
async def readyz(request: Request) -> Response:
    """200 when generation serves this gateway's policy, else 503 with the reason."""
    gateway = gateway_of(request)
    try:
        policy = await served_policy(gateway)
    except TuneloopError as error:
        document = {"status": "unavailable", "reason": error.message}
        return JSONResponse(document, status_code=503, headers={"retry-after": "1"})
    return JSONResponse(
        {
            "status": "ready",
            "policy": policy.name,
            "policy_version": policy.policy_version,
            # Answers need no bus; feedback does.
            "feedback": "accepted" if gateway.bus.connected else "unavailable",
        }
    )


async def served_policy(gateway: Gateway) -> generation_pb2.Policy:
    """The policy as generation serves it now; raises where a chat would fail."""
    if not await is_serving(gateway.generation_channel, GENERATION_SERVICE):
        raise Unavailable("generation is not serving yet")
    request = generation_pb2.GetPolicyRequest(policy=gateway.settings.policy)
    answer: generation_pb2.GetPolicyResponse = await reply_of(
        gateway.generation.GetPolicy(request, timeout=READY_TIMEOUT)
    )
    return answer.policy


@router.get("/metrics", include_in_schema=False)
async def metrics() -> Response:
    """Prometheus text."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
