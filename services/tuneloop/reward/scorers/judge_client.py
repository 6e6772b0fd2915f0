"""A client of a model behind any OpenAI-compatible endpoint, with retries."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from tuneloop.backoff import Backoff
from tuneloop.errors import InvalidRequest, SettingsError, Unavailable

FIRST_DELAY = 0.5
LONGEST_DELAY = 30.0
"""Seconds before the second and between later attempts."""
TRANSIENT = (408, 409, 425, 429, 500, 502, 503, 504, 529)
ABOUT_THE_REQUEST = (400, 413, 422)
"""Statuses that refuse the request itself: too long, or against the provider's rules."""

UNLISTED = (httpx.HTTPError, TimeoutError, ValueError, KeyError, TypeError, AttributeError)
"""Errors of an endpoint that does not list its models, or in another format."""

Message = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSettings:
    """The model's address, sampling and retries."""

    url: str
    """With the version: `https://api.openai.com/v1`, `http://127.0.0.1:8000/v1`."""
    model: str
    api_key: str = ""
    temperature: float = 0.7
    max_tokens: int = 512
    timeout_seconds: float = 60.0
    retries: int = 3
    """Attempts after the first."""
    concurrency: int = 8
    """Requests at once."""

    def __post_init__(self) -> None:
        for name, accepted, what in (
            ("url", self.url.startswith(("http://", "https://")), "an http or https URL"),
            ("model", bool(self.model), "the name of a model"),
            ("temperature", 0 <= self.temperature <= 2, "0 to 2"),
            ("max_tokens", self.max_tokens >= 1, "1 or more"),
            ("timeout_seconds", self.timeout_seconds > 0, "greater than 0"),
            ("retries", self.retries >= 0, "0 or more"),
            ("concurrency", self.concurrency >= 1, "1 or more"),
        ):
            if not accepted:
                raise SettingsError(f"judge: {name} must be {what}", param=f"judge_{name}")


class Endpoint:
    """Sends requests to the model. Use it from one event loop."""

    def __init__(
        self, settings: EndpointSettings, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """Take the settings; `transport` replaces the network."""
        self._settings = settings
        key = settings.api_key
        self._client = httpx.AsyncClient(
            base_url=settings.url.rstrip("/"),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            # httpx's timeout is per read, which a reply that trickles in never reaches.
            timeout=httpx.Timeout(None),
            transport=transport,
        )
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._extras_lock = asyncio.Lock()
        self._extras: dict[str, Any] | None = None

    async def complete(self, messages: Sequence[Message]) -> str:
        """Return the model's reply.

        Raises:
            Unavailable: no attempt got a usable answer.
            InvalidRequest: this request is refused, for its length or its content.
            SettingsError: no request can work: wrong key, address or model.

        """
        async with self._slots:
            body = {
                "model": self._settings.model,
                "messages": list(messages),
                "temperature": self._settings.temperature,
                "max_tokens": self._settings.max_tokens,
                **await self._extra_parameters(),
            }
            return await self._post(body)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _extra_parameters(self) -> dict[str, Any]:
        """Return parameters that keep a tuneloop gateway from learning from its own judgements.

        Without them every judgement would be a rollout, which would be judged in turn.
        """
        async with self._extras_lock:
            if self._extras is None:
                try:
                    async with asyncio.timeout(self._settings.timeout_seconds):
                        listed = await self._client.get("/models")
                    models = listed.json()["data"] if listed.is_success else []
                    own = any(model.get("owned_by") == "tuneloop" for model in models)
                except UNLISTED:
                    return {}
                self._extras = {"metadata": {"train": "false"}} if own else {}
        return self._extras

    async def _post(self, body: dict[str, Any]) -> str:
        delays = Backoff(FIRST_DELAY, LONGEST_DELAY)
        for attempt in range(self._settings.retries + 1):
            wait = delays.next_delay()
            try:
                async with asyncio.timeout(self._settings.timeout_seconds):
                    response = await self._client.post("/chat/completions", json=body)
            except TimeoutError:
                problem = f"no reply in {self._settings.timeout_seconds:g} s"
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__} {error}".strip()
            else:
                if response.is_success:
                    if (text := reply_of(response)) is not None:
                        return text
                    problem = "its answer is no chat completion"
                else:
                    problem = self._refusal(response)
                    wait = max(wait, retry_after(response))
            if attempt < self._settings.retries:
                await asyncio.sleep(min(wait, LONGEST_DELAY))
        raise Unavailable(f"judge {self._settings.url}: {problem}")

    def _refusal(self, response: httpx.Response) -> str:
        """Return the problem of a status worth a retry; raise for any other."""
        problem = f"status {response.status_code}: {response.text[:200]}"
        if response.status_code in TRANSIENT:
            return problem
        message = f"judge {self._settings.url}: {problem}"
        if response.status_code in ABOUT_THE_REQUEST:
            raise InvalidRequest(message)
        raise SettingsError(message, param="judge")


def reply_of(response: httpx.Response) -> str | None:
    """Return the text of the first choice, or None."""
    try:
        content = response.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    return content if isinstance(content, str) else None


def retry_after(response: httpx.Response) -> float:
    """Return the seconds that the endpoint asks to wait; 0 if it names none, or a date."""
    try:
        return float(response.headers.get("Retry-After", "0"))
    except ValueError:
        return 0.0
