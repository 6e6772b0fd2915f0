"""`GET /v1/models`: the policies, as OpenAI's models."""

from fastapi import APIRouter, Request

from tuneloop.api.openai import Model, ModelList
from tuneloop.gateway.context import CONTROL_TIMEOUT, gateway_of
from tuneloop.gateway.errors import ModelNotFound
from tuneloop.rpc.status import reply_of
from tuneloop.v1 import generation_pb2

router = APIRouter(tags=["OpenAI"])


@router.get("/v1/models")
async def list_models(request: Request) -> ModelList:
    """List the policies that can be named as `model`."""
    return {"object": "list", "data": [model(p) for p in await policies(request)]}


@router.get("/v1/models/{model_id}")
async def get_model(model_id: str, request: Request) -> Model:
    """Return one policy."""
    for policy in await policies(request):
        if policy.name == model_id:
            return model(policy)
    raise ModelNotFound(f"no model {model_id[:100]!r}; GET /v1/models lists them", param="model")


async def policies(request: Request) -> list[generation_pb2.Policy]:
    """Return the policies that callers may use."""
    gateway = gateway_of(request)
    answer: generation_pb2.ListPoliciesResponse = await reply_of(
        gateway.generation.ListPolicies(
            generation_pb2.ListPoliciesRequest(), timeout=CONTROL_TIMEOUT
        )
    )
    return [p for p in answer.policies if p.name == gateway.settings.policy]


def model(policy: generation_pb2.Policy) -> Model:
    """Return a policy in OpenAI's form, with the members that clients of vLLM read."""
    return {
        "id": policy.name,
        "object": "model",
        "created": policy.activated_time.seconds,
        "owned_by": "tuneloop",
        "root": policy.base_model,
        "max_model_len": policy.max_model_len,
        "policy_version": policy.policy_version,
    }
