"""Who sends a request."""

import ipaddress
from collections.abc import Collection
from contextvars import ContextVar
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import Scope

from tuneloop.feedback import PUBLIC_ID

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The caller of a request."""

    id: str
    """Identifies the caller: a key's id, or `local` without a key on this machine."""
    name: str
    """For logs."""
    key_name: str = ""
    """The key's name; empty without a key."""

    @property
    def label(self) -> str:
        """What costs and metrics call the caller: the key's name, or `local`."""
        return self.key_name or self.id

    public: bool = False
    """An unknown caller, who may only judge completions whose ids it sends."""


caller_of_task: ContextVar[Caller] = ContextVar("caller_of_task")
"""Who sent the current request; tasks that it starts inherit it."""
LOCAL = Caller(id="local", name="local")
PUBLIC = Caller(id=PUBLIC_ID, name=PUBLIC_ID, public=True)


def caller_of(request: Request) -> Caller:
    """Return the caller of a request, for a handler."""
    caller: Caller = request.state.caller
    return caller


def address_of(scope: Scope) -> str:
    """Return the address that a request came from."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def client_of(scope: Scope, proxies: Collection[Network]) -> str:
    """Return the address of the client: the last in `X-Forwarded-For` that is no trusted proxy.

    Every proxy appends the address that it was called from; whatever stands before what a trusted
    proxy appended may be invented.
    """
    address = address_of(scope)
    if not proxies:
        return address
    hops = ",".join(Headers(scope=scope).getlist("x-forwarded-for")).split(",")
    while hops and is_in(address, proxies):
        before = parse_address(hops.pop().strip())
        if before is None:
            break
        address = str(before)
    return address


def is_in(address: str, networks: Collection[Network]) -> bool:
    """Return whether one of the networks has the address."""
    parsed = parse_address(address)
    return parsed is not None and any(parsed in network for network in networks)


def parse_address(text: str) -> Address | None:
    """Return an address that may have brackets and a port; None if it is none."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return None
    # A socket for both families reports IPv4 addresses so.
    return getattr(parsed, "ipv4_mapped", None) or parsed


def network_of(address: str) -> str:
    """Return the network of one sender: an IPv4 address, or a /64 of IPv6."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.IPv6Network((int(parsed), 64), strict=False))
