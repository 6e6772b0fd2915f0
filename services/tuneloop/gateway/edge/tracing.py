"""Puts a span around each HTTP request, in the caller's trace if it names one."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tuneloop import tracing
from tuneloop.gateway.edge.edge import method_of, route_of

UNTRACED = frozenset({"/metrics", "/healthz", "/readyz"})
"""Paths that machines request every few seconds."""


class Traced:
    """ASGI middleware, used only if tracing is on."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on inside a span, which is renamed once the route is known."""
        if scope["type"] != "http" or scope["path"] in UNTRACED:
            await self.app(scope, receive, send)
            return

        starts: list[Message] = []

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                starts.append(message)
            await send(message)

        method = method_of(scope)
        parent = Headers(scope=scope).get(tracing.TRACEPARENT, "")
        with tracing.span(method, kind="server", parent=parent):
            try:
                await self.app(scope, receive, noted)
            finally:
                # Only now: where a stream starts, the current span is that of its generation.
                for start in starts:
                    annotate_answer(start)
                route = route_of(scope)
                tracing.rename(f"{method} {route}")
                tracing.annotate({"http.request.method": method, "http.route": route})


def annotate_answer(start: Message) -> None:
    """Record in the current span how the request was answered."""
    headers = Headers(raw=start["headers"])
    status = int(start["status"])
    tracing.annotate({"http.response.status_code": status})
    if status >= 500:
        tracing.mark_failed(str(status))
    if "x-completion-id" in headers:
        tracing.annotate({"tuneloop.completion_id": headers["x-completion-id"]})
