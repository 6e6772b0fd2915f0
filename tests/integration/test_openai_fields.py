"""Each field of OpenAI's bodies does what the table in docs/api.md says of it."""

from typing import Any

import httpx
import pytest
from openai.types import completion_create_params as text_params
from openai.types.chat import completion_create_params as chat_params
from support.gateway_stack import Stack
from support.openai_fields import BODIES, CHAT, FIELDS, OURS, TEXT, OpenAIField

from tuneloop.v1 import generation_pb2

CASES = [(field, endpoint) for field in (*FIELDS, *OURS) for endpoint in field.endpoints]


async def send(
    stack: Stack, endpoint: str, body: dict[str, Any]
) -> tuple[generation_pb2.GenerateRequest | None, httpx.Response]:
    stack.generation.requests.clear()
    async with httpx.AsyncClient(base_url=stack.url, timeout=20) as http:
        response = await http.post(endpoint, json=body)
    requests = stack.generation.requests
    return (requests[0] if requests else None), response


def without_id(request: generation_pb2.GenerateRequest | None) -> generation_pb2.GenerateRequest:
    assert request is not None
    copy = generation_pb2.GenerateRequest()
    copy.CopyFrom(request)
    copy.ClearField("completion_id")
    # Without a user it is the completion's id.
    copy.ClearField("route_by")
    return copy


@pytest.mark.parametrize(
    ("field", "endpoint"), CASES, ids=[f"{field.name} {endpoint}" for field, endpoint in CASES]
)
async def test_a_field_is_what_the_table_says(
    shared_stack: Stack, field: OpenAIField, endpoint: str
) -> None:
    plain = BODIES[endpoint] | field.beside
    before, plain_response = await send(shared_stack, endpoint, plain)
    request, response = await send(shared_stack, endpoint, plain | {field.name: field.value})
    if field.support == "refused":
        assert response.status_code == 400
        assert response.json()["error"]["param"] == field.name
        return
    assert response.status_code == 200, response.text
    if field.support == "ignored":
        assert without_id(request) == without_id(before)
    elif field.effect is not None:
        assert field.effect(request, response)
        assert not field.effect(before, plain_response)


@pytest.mark.parametrize(("endpoint", "params"), [(CHAT, chat_params), (TEXT, text_params)])
async def test_the_table_knows_every_field_of_the_openai_package(
    endpoint: str, params: Any
) -> None:
    bodies = (params.CompletionCreateParamsBase, params.CompletionCreateParamsStreaming)
    known = {field.name for field in FIELDS if endpoint in field.endpoints}
    assert {name for body in bodies for name in body.__annotations__} <= known
