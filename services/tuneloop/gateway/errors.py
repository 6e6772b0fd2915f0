"""Errors in OpenAI's form: `{"error": {message, type, param, code}}` and an HTTP status.

    InvalidRequest
    └── PreviousResponseNotFound  not known here    code previous_response_not_found
    NotFound
    ├── ModelNotFound           the model field names no policy         code model_not_found
    ├── ItemNotFound            a reference to an item not known here   code item_not_found
    ├── CompletionNotFound      forged, foreign or misspelt id          code completion_not_found
    └── FeedbackNotFound        no feedback with this id                code feedback_not_found
    Unauthenticated
    └── InvalidApiKey           a wrong or a revoked key                code invalid_api_key
    PermissionDenied
    └── MissingScope            the key is not for this                 code missing_scope
    Overloaded
    ├── RateLimitExceeded       too much in a minute                    code rate_limit_exceeded
    └── QuotaExceeded           too much in a day                       code insufficient_quota
    Conflict
    ├── FeedbackRetracted       the id is of retracted feedback         code feedback_retracted
    └── IdempotencyKeyReused    the key came with another body          code idempotency_key_reused

Paths under `/v1/messages` answer Anthropic's form instead, see `anthropic.errors`.

The code is the error's `reason` in lower case. 429 and 503 carry `Retry-After`.
"""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from tuneloop.api.openai import Error
from tuneloop.errors import (
    Conflict,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Overloaded,
    PermissionDenied,
    TuneloopError,
    Unauthenticated,
    Unavailable,
)
from tuneloop.gateway.anthropic.errors import anthropic_error, speaks_anthropic

logger = logging.getLogger("tuneloop.gateway")

UNKNOWN_FAILURE = "a part of the service failed; the gateway's log has the reason"
INTERNAL = re.compile(r"[/\\@<>{}]|\d+\.\d+\.\d+|:\d")
"""In paths, URLs, addresses and representations of objects."""
DEFAULT_RETRY_AFTER = 1.0


class ModelNotFound(NotFound):
    """The model field names no policy of this service."""

    reason = "MODEL_NOT_FOUND"


class PreviousResponseNotFound(InvalidRequest):
    """A response that this gateway does not know, or no more; status 400, as OpenAI's."""

    reason = "PREVIOUS_RESPONSE_NOT_FOUND"


class ItemNotFound(NotFound):
    """An item of a response that this gateway does not know, or no more."""

    reason = "ITEM_NOT_FOUND"


class CompletionNotFound(NotFound):
    """A completion id that this gateway did not make."""

    reason = "COMPLETION_NOT_FOUND"


class FeedbackNotFound(NotFound):
    """No feedback with this id."""

    reason = "FEEDBACK_NOT_FOUND"


class FeedbackRetracted(Conflict):
    """The id of retracted feedback."""

    reason = "FEEDBACK_RETRACTED"


class InvalidApiKey(Unauthenticated):
    """A key that is unknown or revoked."""

    reason = "INVALID_API_KEY"


class MissingScope(PermissionDenied):
    """A valid key without the scope that is needed."""

    reason = "MISSING_SCOPE"


class RateLimitExceeded(Overloaded):
    """The key's limit for a minute is used up."""

    reason = "RATE_LIMIT_EXCEEDED"


class QuotaExceeded(Overloaded):
    """The key's quota for the day is used up."""

    reason = "INSUFFICIENT_QUOTA"


class IdempotencyKeyReused(Conflict):
    """An idempotency key that came with another body before."""

    reason = "IDEMPOTENCY_KEY_REUSED"


status_of_error: Mapping[type[TuneloopError], tuple[int, str]] = {
    InvalidRequest: (400, "invalid_request_error"),
    Unauthenticated: (401, "authentication_error"),
    PermissionDenied: (403, "permission_error"),
    NotFound: (404, "invalid_request_error"),
    Conflict: (409, "conflict_error"),
    FailedPrecondition: (412, "invalid_request_error"),
    QuotaExceeded: (429, "insufficient_quota"),
    Overloaded: (429, "rate_limit_error"),
    Unavailable: (503, "service_unavailable_error"),
    TuneloopError: (500, "server_error"),
}

names_of_path: Mapping[str, Mapping[str, str]] = {
    "/v1/messages": {"response_format": "output_config.format"},
    "/v1/responses": {
        "messages": "input",
        "max_tokens": "max_output_tokens",
        "response_format": "text.format",
    },
}
"""Parameters of a chat that have another name under a path."""

code_of_http_status = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


def status_and_type(error: TuneloopError) -> tuple[int, str]:
    """Return HTTP status and OpenAI type, by the nearest class in the tree."""
    for ancestor in type(error).__mro__:
        if ancestor in status_of_error:
            return status_of_error[ancestor]
    raise AssertionError("TuneloopError itself is in the table")


def error_body(error: TuneloopError, path: str = "") -> Error:
    """Return the JSON body of an error of a request to `path`, which a stream sends too."""
    _, error_type = status_and_type(error)
    message, param = shown_message(error), error.param
    names = next((names for root, names in names_of_path.items() if path.startswith(root)), {})
    if param is not None and param in names:
        if message.startswith(param):
            message = names[param] + message.removeprefix(param)
        param = names[param]
    return error_document(message, error_type, param, error.reason.lower())


def shown_message(error: TuneloopError) -> str:
    """Return an error's message as callers see it.

    Where the service is at fault that is what failed, without what a transport, a database or the
    system said about it: addresses, paths and texts of others' libraries are for the log.
    """
    if status_and_type(error)[0] < 500:
        return error.message
    failed = re.split(r": | \(|\n", error.message, maxsplit=1)[0]
    shown = UNKNOWN_FAILURE if INTERNAL.search(failed) else failed
    if shown != error.message:
        logger.warning("%s: %s", type(error).__name__, error.message)
    return shown


def error_document(message: str, error_type: str, param: str | None, code: str) -> Error:
    """Return an error in OpenAI's form."""
    return {"error": {"message": message, "type": error_type, "param": param, "code": code}}


def answer_error(
    path: str, status: int, error: Error, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Return the HTTP response of an error, in the form of the API that the path is of."""
    if not speaks_anthropic(path):
        return JSONResponse(error, status_code=status, headers=headers)
    status, document = anthropic_error(status, error)
    headers = {**(headers or {}), "request-id": document["request_id"]}
    return JSONResponse(document, status_code=status, headers=headers)


def error_response(error: TuneloopError, path: str) -> JSONResponse:
    """Return the HTTP response of an error of a request to `path`."""
    status, _ = status_and_type(error)
    headers = {}
    if status in (429, 503):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after or DEFAULT_RETRY_AFTER)))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, QuotaExceeded | IdempotencyKeyReused):
        # OpenAI's clients retry 429 and 409 unless this header says not to.
        headers["x-should-retry"] = "false"
    return answer_error(path, status, error_body(error, path), headers)


def http_error_response(error: HTTPException, path: str) -> JSONResponse:
    """Return the HTTP response of an error of the framework."""
    code = code_of_http_status.get(error.status_code, "invalid_request")
    content = error_document(str(error.detail), "invalid_request_error", None, code)
    return answer_error(path, error.status_code, content, error.headers)


def invalid_request(problems: Sequence[Any]) -> InvalidRequest:
    """Return the first of pydantic's errors, with the parameter as the caller wrote it."""
    problem = problems[0]
    if problem["type"] == "json_invalid":
        detail = problem.get("ctx", {}).get("error", "not JSON")
        return InvalidRequest(f"the body is not JSON: {detail}")
    path = [part for part in problem["loc"] if part not in ("body", "path", "query")]
    param = dotted_path(path)
    message = str(problem["msg"]).removeprefix("Value error, ")
    if param is None and problem["type"] in ("model_attributes_type", "dict_type", "model_type"):
        message = "must be a JSON object, sent with 'Content-Type: application/json'"
    return InvalidRequest(f"{param or 'body'}: {message}", param=param)


def dotted_path(path: Sequence[str | int]) -> str | None:
    """Return `("messages", 0, "role")` as `messages[0].role`, or None for the whole body."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or None


def install_error_handlers(app: FastAPI) -> None:
    """Make the application answer every error in OpenAI's form, or in Anthropic's."""

    async def known(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, TuneloopError)
        if status_and_type(error)[0] == 500:
            logger.error("%s: %s", type(error).__name__, error.message)
        return error_response(error, request.scope["path"])

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return error_response(invalid_request(error.errors()), request.scope["path"])

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return http_error_response(error, request.scope["path"])

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        # Starlette raises the error again after this response, so the server logs the traceback.
        path = request.scope["path"]
        logger.error("%s %s failed: %s", request.method, path, type(error).__name__)
        content = error_document(
            "the gateway failed; its log has the reason", "server_error", None, "internal"
        )
        return answer_error(path, 500, content)

    app.add_exception_handler(TuneloopError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)
