"""Each field of a request's body does what the tables in docs/api.md say of it."""

from typing import Any

import httpx
import pytest
from anthropic.types import message_count_tokens_params as count_params
from anthropic.types import message_create_params as message_params
from anthropic.types.beta import message_create_params as beta_params
from openai.types import completion_create_params as text_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params as response_params
from support import anthropic_fields, openai_fields, responses_fields
from support.gateway_stack import Stack
from support.openai_fields import CHAT, TEXT
from support.request_fields import RequestField

from tuneloop.v1 import generation_pb2

BODIES = openai_fields.BODIES | {
    anthropic_fields.MESSAGES: anthropic_fields.BODY,
    responses_fields.RESPONSES: responses_fields.BODY,
}
CASES = [
    (field, endpoint)
    for module in (openai_fields, anthropic_fields, responses_fields)
    for field in (*module.FIELDS, *module.OURS)
    for endpoint in field.endpoints
]


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
    if copy.session_id == request.completion_id:
        copy.ClearField("session_id")
    return copy


@pytest.mark.parametrize(
    ("field", "endpoint"), CASES, ids=[f"{field.name} {endpoint}" for field, endpoint in CASES]
)
async def test_a_field_is_what_the_table_says(
    shared_stack: Stack, field: RequestField, endpoint: str
) -> None:
    plain = BODIES[endpoint] | field.beside
    before, plain_response = await send(shared_stack, endpoint, plain)
    request, response = await send(shared_stack, endpoint, plain | {field.name: field.value})
    if field.support == "refused":
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["message"].startswith(f"{field.name}: ")
        assert error.get("param", field.name) == field.name
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
    known = {field.name for field in openai_fields.FIELDS if endpoint in field.endpoints}
    assert {name for body in bodies for name in body.__annotations__} <= known


def test_the_table_knows_every_field_of_a_response() -> None:
    bodies = (
        response_params.ResponseCreateParamsBase,
        response_params.ResponseCreateParamsStreaming,
    )
    known = {field.name for field in responses_fields.FIELDS}
    assert {name for body in bodies for name in body.__annotations__} <= known


@pytest.mark.parametrize(
    "params",
    [
        message_params.MessageCreateParamsBase,
        message_params.MessageCreateParamsStreaming,
        beta_params.MessageCreateParamsBase,
        count_params.MessageCountTokensParams,
    ],
)
def test_the_table_knows_every_field_of_the_anthropic_package(params: Any) -> None:
    known = {field.name for field in anthropic_fields.FIELDS}
    # A header, which is accepted.
    assert params.__annotations__.keys() - {"betas"} <= known
