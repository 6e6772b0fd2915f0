"""Who sends a request."""

import ipaddress
from dataclasses import dataclass

from fastapi import Request
from starlette.types import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The caller of a request."""

    id: str
    """Identifies the caller: a key's id, or `local` without a key on this machine."""
    name: str
    """For logs."""
    key_name: str = ""
    """The key's name; empty without a key."""
    public: bool = False
    """An unknown caller, who may only judge completions whose ids it sends."""


LOCAL = Caller(id="local", name="local")
PUBLIC = Caller(id="public", name="public", public=True)


def caller_of(request: Request) -> Caller:
    """Return the caller of a request, for a handler."""
    caller: Caller = request.state.caller
    return caller


def address_of(scope: Scope) -> str:
    """Return the address that a request came from."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def network_of(address: str) -> str:
    """Return the network of one sender: an IPv4 address, or a /64 of IPv6."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.IPv6Network((int(parsed), 64), strict=False))
