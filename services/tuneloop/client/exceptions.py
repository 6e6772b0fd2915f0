"""Turns failed responses and connections into `tuneloop.errors`, and decides on retries."""

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

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

error_of_status: Mapping[int, type[TuneloopError]] = {
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    412: FailedPrecondition,
    429: Overloaded,
    # A proxy answers 502 or 504 if the gateway does not answer.
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}
"""The inverse of the gateway's table; other 4xx are `InvalidRequest`."""

error_of_type: Mapping[str, type[TuneloopError]] = {
    "invalid_request_error": InvalidRequest,
    "authentication_error": Unauthenticated,
    "permission_error": PermissionDenied,
    "conflict_error": Conflict,
    "rate_limit_error": Overloaded,
    "service_unavailable_error": Unavailable,
}
"""For an error inside a stream, whose status was 200."""

NEVER_AGAIN = (httpx.ReadTimeout, httpx.WriteTimeout, httpx.UnsupportedProtocol)
"""The service may still be at work, or the URL is wrong."""

LONGEST_WAIT = 60.0
"""The longest `Retry-After` that the client waits for by itself."""


def error_from_response(response: httpx.Response) -> TuneloopError:
    """Return the error of an unsuccessful response, whose body has been read."""
    status = response.status_code
    kind = kind_of_status(status)
    try:
        details = response.json()["error"]
        message = str(details["message"])
    except (ValueError, KeyError, TypeError):
        url = response.request.url
        return kind(f"{url} answered with status {status}", retry_after=retry_after(response))
    return add_details(kind(message, retry_after=retry_after(response)), details)


def kind_of_status(status: int) -> type[TuneloopError]:
    """Return the class of the error for a status."""
    default = InvalidRequest if 400 <= status < 500 else TuneloopError
    return error_of_status.get(status, default)


def error_from_document(details: Mapping[str, Any], status: int | None = None) -> TuneloopError:
    """Return the error of `{"error": details}`; its type decides if there is no status."""
    if status is not None:
        kind = kind_of_status(status)
    else:
        kind = error_of_type.get(str(details.get("type")), TuneloopError)
    return add_details(kind(str(details.get("message"))), details)


def add_details(error: TuneloopError, details: Mapping[str, Any]) -> TuneloopError:
    """Add the parameter and the code that the service named."""
    error.param = details.get("param")
    if details.get("code"):
        error.reason = str(details["code"]).upper()
    return error


def error_from_transport(url: str, error: httpx.TransportError) -> TuneloopError:
    """Return the error of a connection that failed or broke."""
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return Unavailable(f"no answer from {url} in time: {type(error).__name__}")
    problem = str(error) or type(error).__name__
    return Unavailable(
        f"no answer from {url}: {problem}. Is it running? Start it with: tuneloop up"
    )


def retry_after(response: httpx.Response) -> float | None:
    """Return `Retry-After` in seconds; the header may also be a date."""
    value = response.headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def pause_before_retry(attempt: int, error: TuneloopError) -> float | None:
    """Return the seconds to wait after failed attempt `attempt` (0, 1 …), or None to give up."""
    if not isinstance(error, Overloaded | Unavailable):
        return None
    if error.retry_after is None:
        # Many clients fail at once: the random part keeps them from coming back at once.
        return min(8.0, 0.5 * 2.0**attempt) * random.uniform(0.75, 1.0)  # noqa: S311
    return error.retry_after if error.retry_after <= LONGEST_WAIT else None
