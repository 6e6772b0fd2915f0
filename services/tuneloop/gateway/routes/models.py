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
    """Every policy that can be named as `model`."""
    return {"object": "list", "data": [model(p) for p in await policies(request)]}


@router.get("/v1/models/{model_id}")
async def get_model(model_id: str, request: Request) -> Model:
    """One policy."""
    for policy in await policies(request):
        if policy.name == model_id:
            return model(policy)
    raise ModelNotFound(f"no model {model_id[:100]!r}", param="model")


async def policies(request: Request) -> list[generation_pb2.Policy]:
    """The policies that this gateway lets callers use."""
    gateway = gateway_of(request)
    answer: generation_pb2.ListPoliciesResponse = await reply_of(
        gateway.generation.ListPolicies(
            generation_pb2.ListPoliciesRequest(), timeout=CONTROL_TIMEOUT
        )
    )
    return [p for p in answer.policies if p.name == gateway.settings.policy]


def model(policy: generation_pb2.Policy) -> Model:
    """A policy in OpenAI's form, with what clients of vLLM look for."""
    return {
        "id": policy.name,
        "object": "model",
        "created": policy.activated_time.seconds,
        "owned_by": "tuneloop",
        "root": policy.base_model,
        "max_model_len": policy.max_model_len,
        "policy_version": policy.policy_version,
    }
