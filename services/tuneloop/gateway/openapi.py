"""`/openapi.json`: FastAPI's document with what it cannot know.

Added are keys and the scope that each operation needs, errors in OpenAI's form in place of
FastAPI's own, streams, response headers, examples, and the forms of fields that take several.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from tuneloop.gateway.edge.authentication import scope_for
from tuneloop.gateway.keys.scopes import Scope
from tuneloop.gateway.openapi_parts import (
    Document,
    answers,
    errors,
    examples,
    free_forms,
    ref,
    response_headers,
    schemas,
    stream_example,
)

DESCRIPTION = """\
A language-model service that learns from its users' feedback while it serves them.

Clients of OpenAI's API work as they are. Each choice of an answer has a `completion_id`: send it to
`/v1/feedback` with a thumb, a comparison or a better answer, and later versions learn from it.
Errors are `{"error": {message, type, param, code}}`.
"""
STREAMS = ("/v1/chat/completions", "/v1/completions")
KEY = "ApiKey"


def install_openapi(app: FastAPI) -> None:
    """Serve the completed document as the application's own."""

    def completed() -> Document:
        if app.openapi_schema is None:
            app.openapi_schema = document(app)
        return app.openapi_schema

    app.openapi = completed  # type: ignore[method-assign]


def document(app: FastAPI) -> Document:
    """The whole document."""
    made: Document = get_openapi(
        title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes
    )
    components = made["components"]
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    components["schemas"].update(schemas)
    for (model, field), form in free_forms.items():
        # A name that is gone is an error here, not a line that says nothing.
        components["schemas"][model]["properties"][field].clear()
        components["schemas"][model]["properties"][field].update(form)
    components["responses"] = {status: error(text) for status, text in errors.items()}
    components["securitySchemes"] = {
        KEY: {
            "type": "http",
            "scheme": "bearer",
            "description": "Made with `tuneloop keys create`. Without any key, on loopback only, "
            "none is needed.",
        }
    }
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            complete(method, path, operation)
    return made


def complete(method: str, path: str, operation: Document) -> None:
    """Add to one operation what it needs and answers."""
    responses = operation["responses"]
    responses.pop("422", None)
    scope = scope_for(method.upper(), path)
    body = operation.get("requestBody")
    if scope is not None:
        secure(operation, scope, public=(method, path) == ("post", "/v1/feedback"))
        for status in statuses(path, takes_body=body is not None):
            responses[status] = {"$ref": f"#/components/responses/{status}"}
    if (method, path) in answers:
        status, name = answers[method, path]
        responses[status]["content"] = {"application/json": {"schema": ref(name)}}
    if path == "/v1/feedback/batch":
        responses["207"] = {**responses["202"], "description": "Some of it was refused."}
    if path == "/readyz":
        responses["503"] = {"description": "No chat would be answered now.", **some_json()}
    if path == "/v1/events":
        responses["200"]["content"] = {"text/event-stream": {}}
    if path == "/v1/export":
        responses["200"]["content"] = {"application/x-ndjson": {"schema": {"type": "string"}}}
    if path in examples and body is not None:
        shown = {name: {"value": value} for name, value in examples[path].items()}
        body["content"]["application/json"]["examples"] = shown
    if path in STREAMS:
        stream(operation)


def secure(operation: Document, scope: Scope, *, public: bool) -> None:
    """Say which key an operation needs."""
    operation["security"] = [{KEY: [scope.value]}, {}]
    note = f"Needs a key with the scope `{scope}`"
    if public:
        note += "; a page of a named site needs none, where the setting `public_feedback` is on"
    operation["description"] = f"{operation.get('description', '')}\n\n{note}.".strip()


def statuses(path: str, *, takes_body: bool) -> list[str]:
    """The errors that an operation under `/v1/` may answer."""
    found = ["400", "401", "403", "429", "503"]
    if "{" in path or takes_body or path == "/v1/policies/rollback":
        found += ["404", "409", "412"]
    if takes_body:
        found.append("413")
    return sorted(found)


def stream(operation: Document) -> None:
    """Say how a completion streams, and which headers steer it."""
    operation["description"] += (
        "\n\nWith `stream: true` the answer is a stream of server-sent events: chunks as "
        "`data: {…}`, comments while nothing comes, and `data: [DONE]`. With "
        "`stream_options.include_usage` the last chunk has `usage` and no choices. A failure after "
        'the first chunk is sent as `data: {"error": {…}}`.'
    )
    answer = operation["responses"]["200"]
    answer["content"]["text/event-stream"] = {
        "examples": {"stream": {"value": stream_example}},
    }
    answer["headers"] = dict(response_headers)
    operation["parameters"] = [
        *operation.get("parameters", []),
        header(
            "Idempotency-Key",
            "The same key with the same body is answered once: a repeat joins or gets the answer.",
            {"type": "string", "minLength": 1, "maxLength": 256},
        ),
        header(
            "x-tuneloop-train", "`false` keeps the completion out of learning.", {"type": "string"}
        ),
    ]


def header(name: str, description: str, schema: Document) -> Document:
    """An optional request header."""
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": schema,
    }


def error(description: str) -> Document:
    """An error's response."""
    return {
        "description": description,
        "content": {"application/json": {"schema": ref("Error")}},
    }


def some_json() -> Document:
    """Content of which only the form is said."""
    schema: dict[str, Any] = {"type": "object"}
    return {"content": {"application/json": {"schema": schema}}}
