"""Requests made up from the OpenAPI document: none may end in an error of the server's."""

import httpx
import hypothesis
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from support.gateway_fakes import SECRET
from support.gateway_stack import Stack, running_gateway

from tuneloop.gateway.app import create_app
from tuneloop.gateway.edge.authentication import scope_for
from tuneloop.gateway.openapi import examples
from tuneloop.gateway.settings import GatewaySettings

NEVER_ENDS = "/v1/events"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


schema = schemathesis.openapi.from_dict(create_app(GatewaySettings(secret=SECRET)).openapi())


@schema.exclude(path=NEVER_ENDS).parametrize()
@hypothesis.settings(
    max_examples=15,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)
def test_no_request_ends_in_a_server_error(case: schemathesis.Case, shared_stack: Stack) -> None:
    case.call_and_validate(base_url=shared_stack.url, checks=CHECKS, timeout=20)


def test_the_document_says_what_people_need() -> None:
    document = schema.raw_schema
    components = document["components"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation["description"], where
            assert "422" not in operation["responses"], where
            if path.startswith("/v1/"):
                [needed, nothing] = operation["security"]
                assert needed == {"ApiKey": [scope_for(method.upper(), path)]}, where
                assert nothing == {}, where
                assert {"401", "403", "429", "503"} <= operation["responses"].keys(), where
    assert components["securitySchemes"]["ApiKey"]["scheme"] == "bearer"
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert {"application/json", "text/event-stream"} == chat["responses"]["200"]["content"].keys()
    headers = {"Idempotency-Key", "x-tuneloop-train", "x-session-id"}
    assert {p["name"] for p in chat["parameters"]} == headers
    response = document["paths"]["/v1/responses"]["post"]
    assert (
        response["responses"]["200"]["content"].keys() == chat["responses"]["200"]["content"].keys()
    )
    messages = document["paths"]["/v1/messages"]["post"]
    assert messages["parameters"] == chat["parameters"]
    overloaded = messages["responses"]["529"]["content"]["application/json"]["schema"]
    assert overloaded == {"$ref": "#/components/schemas/AnthropicError"}
    for status in components["responses"]:
        assert components["responses"][status]["content"]["application/json"]["schema"] == {
            "$ref": "#/components/schemas/Error"
        }


async def test_the_examples_are_good_requests() -> None:
    """Each is accepted, the completion ids apart, which are made up."""
    async with (
        running_gateway() as running,
        httpx.AsyncClient(base_url=running.url, timeout=20) as http,
    ):
        for path, shown in examples.items():
            for name, body in shown.items():
                response = await http.post(path, json=body)
                made_up = response.status_code == 404 and path in ("/v1/feedback", "/v1/signals")
                assert response.is_success or made_up, (path, name, response.text)
