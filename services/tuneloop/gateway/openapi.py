"""`/openapi.json`: FastAPI's document with what it cannot know.

Documents are the types of `tuneloop.api`. Added here are the docstrings of their members, keys and
the scope that each operation needs, errors in OpenAI's and Anthropic's forms in place of FastAPI's
own, streams with their headers, and examples.
"""

import ast
import inspect
from collections.abc import Mapping
from itertools import pairwise
from types import ModuleType
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from tuneloop.api import anthropic, feedback, learner, openai, policies
from tuneloop.api.anthropic import AnthropicError
from tuneloop.api.openai import ChatCompletionChunk, Error
from tuneloop.gateway.anthropic.errors import OVERLOADED, speaks_anthropic
from tuneloop.gateway.edge.authentication import public_paths, scope_for
from tuneloop.gateway.edge.edge import exposed_headers
from tuneloop.gateway.keys.scopes import Scope

Document = dict[str, Any]

DESCRIPTION = """\
A language-model service that learns from its users' feedback while it serves them.

Clients of OpenAI's and of Anthropic's API work as they are. Each choice of an answer has a
`completion_id`, a message or a response its `id`: send it to `/v1/feedback` with a thumb, a
comparison or a better answer, and later versions learn from it. Errors are `{"error": {message,
type, param, code}}`; those of `/v1/messages` have Anthropic's form.
"""
KEY = "ApiKey"
STRING: Document = {"type": "string"}

errors: Mapping[str, str] = {
    "400": "The request is wrong; `param` names the field.",
    "401": "No key, or a wrong or revoked one.",
    "403": "The key lacks the scope, or another site's page calls where no key is set.",
    "404": "Not found, or a completion id that this service did not give.",
    "409": "The id or the idempotency key came with another body before.",
    "412": "Not possible in this state: a version that is not loaded, for example.",
    "413": "The body is too large.",
    "429": "A limit of the key is used up, or the service is at its limit: see Retry-After.",
    "503": "A part is down or starting: see Retry-After.",
}

MODEL = "tuneloop"
COMPLETION_ID = "chatcmpl-0123456789abcdef01234567fedcba98765432100123456789abcdef0123"
conversation: Document = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
}
examples: Mapping[str, Mapping[str, Document]] = {
    "/v1/chat/completions": {
        "whole": conversation,
        "stream": conversation | {"stream": True, "stream_options": {"include_usage": True}},
        "kept out of learning": conversation | {"metadata": {"train": False}},
        "turn of a session": conversation | {"session_id": "chat-7"},
    },
    "/v1/completions": {"text": {"model": MODEL, "prompt": "The capital of France is"}},
    "/v1/messages": {
        "whole": conversation | {"max_tokens": 256},
        "stream": conversation | {"max_tokens": 256, "stream": True, "system": "Be brief."},
    },
    "/v1/messages/count_tokens": {"conversation": conversation},
    "/v1/responses": {
        "whole": {"model": MODEL, "input": "What is the capital of France?"},
        "stream": {"model": MODEL, "input": "And of Spain?", "stream": True, "store": False},
    },
    "/v1/score": {"answers": {"prompt": "The capital of France?", "completions": ["Paris.", "?"]}},
    "/v1/feedback": {
        "thumb": {"kind": "thumb", "completion_id": COMPLETION_ID, "value": "up"},
        "edited answer": {
            "kind": "demonstration",
            "completion_id": COMPLETION_ID,
            "text": "Paris.",
        },
        "comparison": {
            "id": "my-own-id-1",
            "kind": "comparison",
            "chosen": COMPLETION_ID,
            "rejected": [f"{COMPLETION_ID}.1"],
        },
        "metric": {
            "kind": "metric",
            "completion_id": COMPLETION_ID,
            "name": "task_solved",
            "value": True,
        },
        "whole session": {"kind": "thumb", "session_id": "chat-7", "value": "up"},
    },
    "/v1/signals": {
        "copied and edited": {
            "signals": [
                {"kind": "copied", "completion_id": COMPLETION_ID},
                {"kind": "edited", "completion_id": COMPLETION_ID, "distance": 0.2},
            ]
        },
    },
}
"""Request bodies by path and name."""

stream_example = (
    'data: {"id":"chatcmpl-…","object":"chat.completion.chunk","policy_version":3,'
    '"choices":[{"index":0,"completion_id":"chatcmpl-…","delta":{"content":"Paris."},'
    '"logprobs":null,"finish_reason":null}]}\n\ndata: [DONE]\n\n'
)
message_example = (
    'event: message_start\ndata: {"type":"message_start","message":{"id":"chatcmpl-…",'
    '"policy_version":3,…}}\n\nevent: content_block_start\ndata: {…}\n\n'
    'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    '"delta":{"type":"text_delta","text":"Paris."}}\n\nevent: content_block_stop\ndata: {…}\n\n'
    'event: message_delta\ndata: {…}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n'
)
response_example = (
    'event: response.created\ndata: {"type":"response.created","sequence_number":0,"response":'
    '{"id":"resp_…","policy_version":3,…}}\n\nevent: response.output_text.delta\ndata: '
    '{"type":"response.output_text.delta","sequence_number":4,…,"delta":"Paris."}\n\n'
    'event: response.completed\ndata: {"type":"response.completed",…}\n\n'
)
CHUNKS = (
    "With `stream: true` the answer is a stream of server-sent events: chunks "
    "(`ChatCompletionChunk`, or a completion of one piece) as `data: {…}`, comments while "
    "nothing comes, and `data: [DONE]`. With `stream_options.include_usage` the last chunk has "
    "`usage` and no choices. A failure after the first chunk is sent as "
    '`data: {"error": {…}}`.'
)
EVENTS = (
    "With `stream: true` the answer is a stream of Anthropic's events: `message_start`, "
    "`content_block_start`, `content_block_delta` and `content_block_stop` for each block, "
    "`message_delta` with the stop reason and the usage, `message_stop`; `ping` while nothing "
    "comes. A failure after the first event is sent as `error`."
)
TYPED_EVENTS = (
    "With `stream: true` the answer is a stream of events with a `type` and a `sequence_number`: "
    "`response.created` and `response.in_progress`; for each item `response.output_item.added`, "
    "`response.output_text.delta` or `response.function_call_arguments.delta`, their `done`, and "
    "`response.output_item.done`; then `response.completed` or `response.incomplete` with the "
    "whole answer. A failure after the first event is sent as `response.failed`."
)
streams: Mapping[str, tuple[str, str]] = {
    "/v1/chat/completions": (CHUNKS, stream_example),
    "/v1/completions": (CHUNKS, stream_example),
    "/v1/messages": (EVENTS, message_example),
    "/v1/responses": (TYPED_EVENTS, response_example),
}
"""What is said of the streams of a path, and an example."""
response_headers: Mapping[str, str] = {
    "x-policy-version": "The policy version that answered.",
    "idempotent-replayed": "`true` where an earlier request's answer is given again.",
    **{
        name: "Of the key's limits, as OpenAI's; absent where it has none."
        for name in exposed_headers
        if name.startswith("x-ratelimit-")
    },
}
request_headers: Mapping[str, tuple[str, Document]] = {
    "Idempotency-Key": (
        "The same key with the same body is answered once: a repeat joins or gets the answer.",
        STRING | {"minLength": 1, "maxLength": 256},
    ),
    "x-tuneloop-train": ("`false` keeps the completion out of learning.", STRING),
    "x-session-id": (
        "As `session_id` of the body, where a client cannot send that.",
        STRING | {"minLength": 1, "maxLength": 128},
    ),
}


def install_openapi(app: FastAPI) -> None:
    """Serve the completed document as the application's own."""

    def completed() -> Document:
        if app.openapi_schema is None:
            app.openapi_schema = openapi_document(app)
        return app.openapi_schema

    app.openapi = completed  # type: ignore[method-assign]


def openapi_document(app: FastAPI) -> Document:
    """Return the whole document."""
    made: Document = get_openapi(
        title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes
    )
    components = made["components"]
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    for kind in (Error, AnthropicError, ChatCompletionChunk):
        schema = TypeAdapter(kind).json_schema(ref_template="#/components/schemas/{model}")
        components["schemas"].update(schema.pop("$defs", {}))
        components["schemas"][kind.__name__] = schema
    for module in (anthropic, feedback, learner, openai, policies):
        describe_members(module, components["schemas"])
    components["responses"] = {
        status: error_response(text, Error) for status, text in errors.items()
    }
    components["securitySchemes"] = {
        KEY: {
            "type": "http",
            "scheme": "bearer",
            "description": "Made with `tuneloop keys create`; the header `x-api-key` takes it too. "
            "Without any key, on loopback only, none is needed.",
        }
    }
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            complete_operation(method, path, operation)
    return made


def describe_members(module: ModuleType, schemas: Mapping[str, Document]) -> None:
    """Add the docstrings under the members of a module's documents, which pydantic leaves out."""
    described: dict[str, dict[str, str]] = {}
    for kind in ast.parse(inspect.getsource(module)).body:
        if not isinstance(kind, ast.ClassDef):
            continue
        texts = described[kind.name] = {}
        for base in kind.bases:
            texts.update(described.get(ast.unparse(base), {}))
        for member, text in pairwise(kind.body):
            match member, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(str(value))):
                    texts[name] = inspect.cleandoc(value)
        for name, description in texts.items():
            if kind.name in schemas:
                schemas[kind.name]["properties"][name]["description"] = description


def complete_operation(method: str, path: str, operation: Document) -> None:
    """Add to one operation the key it needs, its errors and its examples."""
    responses = operation["responses"]
    responses.pop("422", None)
    scope = scope_for(method.upper(), path)
    body = operation.get("requestBody")
    if scope is not None:
        is_public = public_paths.fullmatch(f"{method.upper()} {path}") is not None
        add_security(operation, scope, public=is_public)
        for status in error_statuses(path, takes_body=body is not None):
            responses[status] = {"$ref": f"#/components/responses/{status}"}
        if speaks_anthropic(path):
            for status in [name for name in responses if name in errors]:
                responses[status] = error_response(errors[status], AnthropicError)
            text = "Generation is at its limit: see Retry-After."
            responses[str(OVERLOADED)] = error_response(text, AnthropicError)
    if path in examples and body is not None:
        shown = {name: {"value": value} for name, value in examples[path].items()}
        body["content"]["application/json"]["examples"] = shown
    if path in streams:
        describe_stream(operation, *streams[path])


def add_security(operation: Document, scope: Scope, *, public: bool) -> None:
    """Say which key an operation needs."""
    operation["security"] = [{KEY: [scope.value]}, {}]
    note = f"Needs a key with the scope `{scope}`"
    if public:
        note += "; a page of a named site needs none, where the setting `public_feedback` is on"
    operation["description"] = f"{operation.get('description', '')}\n\n{note}.".strip()


def error_statuses(path: str, *, takes_body: bool) -> list[str]:
    """Return the errors that an operation under `/v1/` may answer."""
    found = ["400", "401", "403", "429", "503"]
    if "{" in path or takes_body or path == "/v1/policies/rollback":
        found += ["404", "409", "412"]
    if takes_body:
        found.append("413")
    return sorted(found)


def describe_stream(operation: Document, text: str, example: str) -> None:
    """Say how a completion streams, and which headers control it."""
    operation["description"] += f"\n\n{text}"
    answer = operation["responses"]["200"]
    answer["content"]["text/event-stream"] = {"examples": {"stream": {"value": example}}}
    answer["headers"] = {
        name: {"schema": STRING, "description": text} for name, text in response_headers.items()
    }
    operation["parameters"] = [
        *operation.get("parameters", []),
        *(
            {
                "name": name,
                "in": "header",
                "required": False,
                "description": description,
                "schema": schema,
            }
            for name, (description, schema) in request_headers.items()
        ),
    ]


def error_response(description: str, kind: type) -> Document:
    """Return the response of an error; `kind` is its document."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}
