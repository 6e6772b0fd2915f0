"""Where the service is, and the defaults of its clients."""

import os
from dataclasses import dataclass
from typing import Any, cast

import httpx

from tuneloop.client.calls import ChatOptions

DEFAULT_URL = "http://127.0.0.1:8000"
CONNECT_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """The settings of both clients."""

    url: str
    api_key: str | None
    model: str
    user: str | None
    timeout: float
    max_retries: int

    def http(self) -> dict[str, Any]:
        """Return the arguments of the httpx client."""
        return {
            "base_url": self.url,
            "headers": {"authorization": f"Bearer {self.api_key}"} if self.api_key else {},
            "timeout": httpx.Timeout(self.timeout, connect=CONNECT_SECONDS),
        }

    def with_defaults(self, options: ChatOptions) -> ChatOptions:
        """Add this client's model and user to the options of a chat that name none."""
        named = {"model": self.model, "user": self.user}
        return cast(ChatOptions, {**named, **options})


def connection(
    url: str | None,
    *,
    api_key: str | None,
    model: str,
    user: str | None,
    timeout: float,
    max_retries: int,
) -> Connection:
    """Return the arguments, completed from TUNELOOP_URL and TUNELOOP_API_KEY."""
    url = url or os.environ.get("TUNELOOP_URL") or DEFAULT_URL
    return Connection(
        # OpenAI's clients take a base URL that ends with the version of the API.
        url=url.rstrip("/").removesuffix("/v1"),
        api_key=api_key or os.environ.get("TUNELOOP_API_KEY") or None,
        model=model,
        user=user,
        timeout=timeout,
        max_retries=max_retries,
    )
