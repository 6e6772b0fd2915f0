"""The first middleware of every request: metrics, security headers, a limit of the body."""

import time
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tuneloop.gateway import metrics
from tuneloop.gateway.errors import answer_error, error_document

CLIENT_WENT_AWAY = 499

security_headers: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

exposed_headers = (
    "x-policy-version",
    "x-completion-id",
    "request-id",
    "retry-after",
    "x-should-retry",
    "idempotent-replayed",
    *(
        f"x-ratelimit-{what}-{unit}"
        for what in ("limit", "remaining", "reset")
        for unit in ("requests", "tokens")
    ),
)
"""The response headers that pages of other sites may read."""


class Edge:
    """ASGI middleware: metrics by route and status, and the headers above on every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and count how it ends."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = CLIENT_WENT_AWAY

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in security_headers.items():
                    headers.setdefault(name, value)
            await send(message)

        started = time.monotonic()
        metrics.in_flight.inc()
        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            metrics.in_flight.dec()
            route = route_of(scope)
            metrics.http_requests.labels(route, method_of(scope), str(status)).inc()
            metrics.http_request_seconds.labels(route).observe(time.monotonic() - started)


def route_of(scope: Scope) -> str:
    """Return the route's pattern: a label must not have values that callers invent."""
    return getattr(scope.get("route"), "path", None) or "other"


def method_of(scope: Scope) -> str:
    """Return the method if it is a standard one."""
    usual = ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH")
    return str(scope["method"]) if scope["method"] in usual else "other"


class BodyLimit:
    """ASGI middleware that refuses a body above `max_bytes`, announced or not."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse by Content-Length, or count the body while it is read."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        problem = f"the body is larger than {self.max_bytes} bytes"
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced) > self.max_bytes:
            content = error_document(problem, "invalid_request_error", None, "body_too_large")
            await answer_error(scope["path"], 413, content)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise HTTPException(413, problem)
            return message

        await self.app(scope, counted, send)
