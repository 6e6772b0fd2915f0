"""Fields of request bodies: what a test sends, and what must come of it.

`test_request_fields` sends each to the gateway; `docs.render_api` makes the tables of docs/api.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

Effect = Callable[[Any, httpx.Response], bool]
"""Whether the request to generation, or the HTTP answer, shows what the field asks for."""


@dataclass(frozen=True, kw_only=True)
class RequestField:
    """One field of one or more endpoints."""

    name: str
    value: Any
    """Asks for something that is not the default."""
    support: Literal["yes", "ignored", "refused"]
    endpoints: tuple[str, ...]
    note: str = ""
    effect: Effect | None = None
    """For supported fields; it must not be there without the field."""
    beside: dict[str, Any] = field(default_factory=dict)
    """Fields that this one needs."""


def sampled(name: str, expected: Any) -> Effect:
    """The sampling parameter `name` is `expected`."""
    return lambda request, _: getattr(request.sampling, name) == expected


def streamed(request: Any, response: httpx.Response) -> bool:
    return response.headers["content-type"].startswith("text/event-stream")


def of_a_user(request: Any, response: httpx.Response) -> bool:
    from support.gateway_fakes import IDS

    return bool(request.user_hash == IDS.user_hash("default", "ann"))
