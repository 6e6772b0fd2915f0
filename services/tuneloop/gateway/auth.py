"""Who may call: a bearer key where one is set, else only this machine's own pages and programs.

Without a key the gateway listens on loopback alone (`settings` refuses anything else). A browser
on the machine can still be led here by a foreign page, so that requests are refused whose `Host`
is not a name of this machine (DNS rebinding) or whose `Origin` is another site (request forgery).
"""

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from tuneloop.errors import PermissionDenied, TuneloopError, Unauthenticated
from tuneloop.gateway.errors import error_response
from tuneloop.gateway.settings import GatewaySettings, is_loopback

PROTECTED = "/v1/"
"""The page, health and metrics hold nothing of users and need no key."""


class Guard:
    """ASGI middleware that lets through who may call."""

    def __init__(self, app: ASGIApp, *, settings: GatewaySettings) -> None:
        self.app = app
        self.key = settings.key
        self.trusted_hosts = {host.lower() for host in settings.trusted_hosts}
        self.origins = frozenset(settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 or 403, or pass on."""
        if scope["type"] == "http":
            refusal = self.refusal(scope["path"], Headers(scope=scope))
            if refusal is not None:
                await error_response(refusal)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def refusal(self, path: str, headers: Headers) -> TuneloopError | None:
        """Why the request may not pass, or None."""
        if self.key is None:
            return self.foreign(headers)
        if not path.startswith(PROTECTED):
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(
            given.strip().encode(), self.key.encode()
        ):
            return None
        problem = "a wrong key" if given else "no key"
        return Unauthenticated(f"{problem}: send 'Authorization: Bearer <TUNELOOP_API_KEY>'")

    def foreign(self, headers: Headers) -> TuneloopError | None:
        """Without a key: whether another site is behind the request."""
        host = headers.get("host", "")
        name = (urlsplit(f"//{host}").hostname or "").lower()
        if not is_loopback(name) and name not in self.trusted_hosts:
            return PermissionDenied(
                f"host {name!r} is not this machine: set TUNELOOP_API_KEY, "
                "or name it in TUNELOOP_GATEWAY_TRUSTED_HOSTS"
            )
        origin = headers.get("origin")
        if origin is None or origin in self.origins or urlsplit(origin).netloc == host:
            return None
        return PermissionDenied(
            f"pages of {origin} may not call: name it in TUNELOOP_GATEWAY_CORS_ORIGINS"
        )
