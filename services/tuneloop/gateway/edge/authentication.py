"""Authentication: a key with the right scope, or no key on this machine alone.

Until a key is created the gateway listens on loopback only (`settings` refuses anything else), and
every program on the machine may do everything. A page of another site can still make a browser on
the machine send requests, so the gateway refuses those whose `Host` is not a name of this machine
(DNS rebinding) or whose `Origin` is another site (request forgery). Behind a proxy, everybody who
reaches the proxy comes from loopback: what a proxy forwards needs a key too, and so does what
another user of the machine sends, as whom a proxy that hides itself runs.
"""

import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tuneloop.errors import PermissionDenied, TuneloopError, Unauthenticated
from tuneloop.gateway.edge import local_user
from tuneloop.gateway.edge.audit import Audit, is_recorded
from tuneloop.gateway.edge.caller import (
    LOCAL,
    PUBLIC,
    Caller,
    address_of,
    caller_of_task,
    client_of,
    network_of,
)
from tuneloop.gateway.edge.limits import AddressLimits, Meter, meter_of_request
from tuneloop.gateway.errors import InvalidApiKey, MissingScope, error_response
from tuneloop.gateway.keys import scopes, store
from tuneloop.gateway.keys.ring import KeyRing
from tuneloop.gateway.settings import GatewaySettings
from tuneloop.ports import is_loopback

PROTECTED = "/v1/"
"""The page, health, metrics and schema contain no user data and need no key."""

READS = ("GET", "HEAD")

FORWARDED = (
    "forwarded",
    "via",
    *(f"x-forwarded-{what}" for what in ("for", "host", "proto", "port", "server", "prefix")),
    "x-real-ip",
    "x-original-forwarded-for",
    "cf-connecting-ip",
    "true-client-ip",
)
"""Headers that proxies add."""

needed_scope = tuple(
    (method, re.compile(path), scope)
    for method, path, scope in (
        ("POST", r"/v1/chat/completions", scopes.Scope.INFER),
        ("POST", r"/v1/completions", scopes.Scope.INFER),
        ("POST", r"/v1/messages(/count_tokens)?", scopes.Scope.INFER),
        ("POST", r"/v1/responses(/.*)?", scopes.Scope.INFER),
        ("GET", r"/v1/responses/.*", scopes.Scope.INFER),
        ("DELETE", r"/v1/responses/.*", scopes.Scope.INFER),
        ("POST", r"/v1/score", scopes.Scope.INFER),
        ("GET", r"/v1/models(/.*)?", scopes.Scope.INFER),
        ("POST", r"/v1/feedback(/batch)?", scopes.Scope.FEEDBACK),
        ("POST", r"/v1/signals", scopes.Scope.FEEDBACK),
        ("POST", r"/v1/open_webui/feedback", scopes.Scope.FEEDBACK),
        ("DELETE", r"/v1/open_webui/feedback", scopes.Scope.FEEDBACK),
        # A caller with an id got it when the feedback was accepted; lists are for admins.
        ("GET", r"/v1/feedback/.+", scopes.Scope.FEEDBACK),
        ("DELETE", r"/v1/feedback/.+", scopes.Scope.FEEDBACK),
        ("GET", r"/v1/receipts/.+", scopes.Scope.FEEDBACK),
        ("DELETE", r"/v1/receipts/.+", scopes.Scope.FEEDBACK),
    )
)
"""By method and path; any other request needs `admin`."""
public_paths = re.compile(r"POST /v1/(feedback|signals)|(GET|DELETE) /v1/receipts/.+")
"""What needs no key where feedback is public: ids of completions and receipts are capabilities."""


def scope_for(method: str, path: str) -> scopes.Scope | None:
    """Return the scope that a request needs, or None if it needs no key."""
    if not path.startswith(PROTECTED):
        return None
    for of_method, pattern, scope in needed_scope:
        if method == of_method and pattern.fullmatch(path):
            return scope
    return scopes.Scope.ADMIN


class Authentication:
    """ASGI middleware that lets authorized requests pass, and counts them for the limits."""

    def __init__(self, app: ASGIApp, *, settings: GatewaySettings, ring: KeyRing) -> None:
        self.app = app
        self.ring = ring
        self.require_key = settings.require_key
        self.proxies = settings.trusted_proxies
        self.on_loopback = is_loopback(settings.host)
        self.trusted_hosts = {host.lower() for host in settings.trusted_hosts}
        self.origins = frozenset(settings.cors_origins)
        self.public_feedback = settings.public_feedback
        self.addresses = AddressLimits(settings.public_feedback_per_minute, ring.clock)
        self.audit = Audit(settings, ring.clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, 403 or 429, or pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        meter, method, path = None, scope["method"], scope["path"]
        if self.proxies:
            scope["client"] = (client_of(scope, self.proxies), 0)
        try:
            caller, meter = self.identify(scope, Headers(scope=scope))
            if meter is not None and method not in READS:
                needed = scope_for(method, path)
                meter.admit(generates=needed is scopes.Scope.INFER)
        except TuneloopError as refusal:
            if isinstance(refusal, Unauthenticated | PermissionDenied):
                self.audit_refusal(scope, refusal)
            response = error_response(refusal, path)
            await response(scope, receive, with_limits(send, meter))
            return
        scope.setdefault("state", {})["caller"] = caller
        if is_recorded(method, path, scope_for(method, path)):
            send = self.with_record(send, scope, caller)
        metered, called = meter_of_request.set(meter), caller_of_task.set(caller)
        try:
            await self.app(scope, receive, with_limits(send, meter))
        finally:
            meter_of_request.reset(metered)
            caller_of_task.reset(called)

    def identify(self, scope: Scope, headers: Headers) -> tuple[Caller, Meter | None]:
        """Return the caller and its limits. Raises if the request may not pass."""
        path, method = scope["path"], scope["method"]
        needed = scope_for(method, path)
        given = given_key(headers)
        key = self.ring.find(given) if given and needed is not None else None
        if key is not None and needed is not None:
            return self.holder(key, needed, f"{method} {path}")
        if self.open_to_all:
            if needed is not None:
                self.check_direct(scope, headers)
            self.check_same_site(headers)
            return LOCAL, None
        if needed is None:
            return PUBLIC, None
        if given:
            raise InvalidApiKey("a wrong key: it is not among this gateway's keys")
        if self.public_feedback and public_paths.fullmatch(f"{method} {path}"):
            self.check_public(scope, headers)
            return PUBLIC, None
        raise Unauthenticated(
            "no key: send 'Authorization: Bearer <key>' or 'x-api-key: <key>'; "
            "`tuneloop keys create` makes one"
        )

    @property
    def open_to_all(self) -> bool:
        """Return whether no key is needed: on loopback, with no key created or required."""
        if not self.on_loopback or self.require_key:
            return False
        return self.require_key is False or self.ring.is_empty

    def holder(
        self, key: store.ApiKey, needed: scopes.Scope, asked: str
    ) -> tuple[Caller, Meter | None]:
        """Return the holder of a key. Raises `InvalidApiKey` and `MissingScope`."""
        if not key.is_active:
            raise InvalidApiKey(f"the key {key.name!r} was revoked")
        if not key.allows(needed):
            has = " and ".join(sorted(key.scopes))
            raise MissingScope(f"{asked[:100]} needs the scope {needed}; {key.name!r} has {has}")
        return holder_of(key), self.ring.meter(key)

    def check_direct(self, scope: Scope, headers: Headers) -> None:
        """Raise if somebody on another machine is behind a request without a key."""
        for name in FORWARDED:
            if name in headers:
                raise PermissionDenied(
                    f"a proxy sent this ({name}), so its sender may be anybody: "
                    "make a key with `tuneloop keys create`"
                )
        if scope["http_version"] == "1.0":
            raise PermissionDenied(
                "HTTP/1.0 is what proxies speak: use HTTP/1.1, or make a key with "
                "`tuneloop keys create`"
            )
        client, server = scope.get("client"), scope.get("server")
        if client and not is_loopback(client[0]):
            raise PermissionDenied(
                f"{client[0]} is not this machine: make a key with `tuneloop keys create`"
            )
        if client and server and local_user.is_foreign(client, server):
            raise PermissionDenied(
                "a proxy, or another user of this machine, sent this: make a key with "
                "`tuneloop keys create`"
            )

    def check_same_site(self, headers: Headers) -> None:
        """Raise if another site is behind a request without a key."""
        host = headers.get("host", "")
        name = (hostname(host) or "").lower()
        if not is_loopback(name) and name not in self.trusted_hosts:
            raise PermissionDenied(
                f"host {name[:100]!r} is not this machine: make a key with `tuneloop keys create`, "
                "or name the host in TUNELOOP_GATEWAY_TRUSTED_HOSTS"
            )
        self.check_origin(headers, optional=True)

    def check_origin(self, headers: Headers, *, optional: bool) -> None:
        """Raise unless the request's page is the gateway's own or one of `cors_origins`."""
        origin = headers.get("origin")
        if origin is None and optional:
            return
        own = origin is not None and host_and_port(origin) == headers.get("host", "")
        if not own and origin not in self.origins:
            raise PermissionDenied(
                f"pages of {(origin or 'no origin')[:100]} may not call: "
                "name it in TUNELOOP_GATEWAY_CORS_ORIGINS"
            )

    def check_public(self, scope: Scope, headers: Headers) -> None:
        """Raise unless an allowed page sends this, and not too often."""
        # Browsers name the origin of what a page reads from its own site only when it writes.
        self.check_origin(headers, optional=scope["method"] == "GET")
        self.addresses.admit(network_of(address_of(scope)))

    def audit_refusal(self, scope: Scope, refusal: TuneloopError) -> None:
        """Record a request that may not pass."""
        given = given_key(Headers(scope=scope))
        key = self.ring.find(given) if given else None
        self.audit.refused(scope, None if key is None else holder_of(key), given, refusal)

    def with_record(self, send: Send, scope: Scope, caller: Caller) -> Send:
        """Wrap `send` to record the request when the response starts, as streams may never end."""

        async def send_with_record(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.audit.answered(scope, caller, message["status"])
            await send(message)

        return send_with_record


def given_key(headers: Headers) -> str:
    """Return the key in a request's headers, right or wrong; empty without one.

    OpenAI's clients send it as a bearer token, Anthropic's in a header of its own; the token counts
    where both are sent.
    """
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and given.strip():
        return given.strip()
    return headers.get("x-api-key", "").strip()


def holder_of(key: store.ApiKey) -> Caller:
    """Return the caller that a key stands for."""
    return Caller(id=key.id, name=f"key:{key.name}", key_name=key.name)


def with_limits(send: Send, meter: Meter | None) -> Send:
    """Wrap `send` to add the headers of the key's limits, as they are when the response starts."""
    if meter is None:
        return send

    async def send_with_limits(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in meter.headers():
                headers[name] = value
        await send(message)

    return send_with_limits


def hostname(host: str) -> str | None:
    """Return the name in a `Host` header, or None if it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def host_and_port(origin: str) -> str | None:
    """Return host and port of an origin, or None if it is malformed."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
