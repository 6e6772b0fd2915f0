"""A connection to NATS, made in the background and retried until it succeeds.

nats-py reconnects by itself, but gives up in a few cases (an authorization error, for example);
then this creates a new client. Requests in flight are interrupted when the connection is lost,
since their answers will not come: callers see `Unavailable` at once rather than a timeout.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import nats.errors
from nats.aio.client import Client

from tuneloop.backoff import Backoff
from tuneloop.bus import metrics
from tuneloop.bus.access import Access
from tuneloop.errors import InvalidRequest, SettingsError, Unavailable

logger = logging.getLogger("tuneloop.bus")

RETRY_AFTER_SECONDS = 2.0
CANCEL_AGAIN_SECONDS = 1.0
REPORT_EVERY_SECONDS = 60.0
SCHEMES = ("nats", "tls", "ws", "wss")
DENIED = re.compile(r'permissions violation for (publish|subscription) to "([^"]+)"', re.IGNORECASE)


def check_url(url: str) -> None:
    """Raise `SettingsError` unless `url` is one or several NATS URLs separated by commas."""
    for part in url.split(","):
        split = urlsplit(part.strip())
        if split.scheme not in SCHEMES or not split.hostname:
            raise SettingsError(
                f"nats_url: must look like nats://host:4222, got {without_passwords(part)!r}",
                param="nats_url",
            )


def without_passwords(url: str) -> str:
    """Return the URLs without user and password."""
    return re.sub(r"//[^/,@]*@", "//", url)


class NatsConnection:
    """A client of NATS whose requests fail as soon as the connection does."""

    def __init__(self, url: str, *, name: str, access: Access | None = None) -> None:
        check_url(url)
        self.url = without_passwords(url)
        """For messages."""
        self._name = name
        self._options: dict[str, Any] = {
            "servers": [part.strip() for part in url.split(",")],
            "name": name,
            # Answers arrive on subjects of its own, which no other identity may subscribe to.
            "inbox_prefix": f"_INBOX.{name}",
            "max_reconnect_attempts": -1,
            "reconnect_time_wait": 0.25,
            "connect_timeout": 2,
            "ping_interval": 10,
            "max_outstanding_pings": 2,
            "error_cb": self._report,
            "disconnected_cb": self._on_disconnected,
            "reconnected_cb": self._on_connected,
        }
        if access is not None:
            self._options |= access.options()
        self.epoch = 0
        """Increases with every connection: when it changed, state on the server may be gone."""
        self._client: Any = None
        self._connected = asyncio.Event()
        self._waiting: dict[asyncio.Timeout, str] = {}
        """The subject of each request in flight."""
        self._denied: dict[asyncio.Timeout, str] = {}
        self._problem = ""
        self._task: asyncio.Task[None] | None = None
        self._reported = 0.0

    async def start(self, wait: float) -> None:
        """Start to connect; return when connected, or after `wait` seconds."""
        self._task = asyncio.create_task(self._keep_connected(), name="bus-connection")
        try:
            async with asyncio.timeout(wait):
                await self._connected.wait()
        except TimeoutError:
            logger.warning("the event bus at %s cannot be reached yet; still trying", self.url)

    @property
    def connected(self) -> bool:
        """Whether a request could be sent now."""
        return self._client is not None and bool(self._client.is_connected)

    @property
    def client(self) -> Any:
        """The nats-py client; raises `Unavailable` while there is no connection."""
        if not self.connected:
            raise self.unavailable()
        return self._client

    def unavailable(self, problem: str = "cannot be reached") -> Unavailable:
        """Return the error to raise while the bus is down."""
        known = f": {self._problem}" if self._problem and not self.connected else ""
        return Unavailable(f"the event bus {problem}{known}", retry_after=RETRY_AFTER_SECONDS)

    @asynccontextmanager
    async def waiting(self, seconds: float, subject: str = "") -> AsyncIterator[Any]:
        """Yield the client; raise `Unavailable` after `seconds`, or when the connection is lost.

        Also raises it at once if the server denies the request on `subject`.
        """
        client = self.client
        scope = asyncio.timeout(seconds)
        cancellations = _cancellations()
        try:
            async with scope:
                self._waiting[scope] = subject
                yield client
            # Before Python 3.12 `asyncio.wait_for`, which nats-py uses, loses a cancellation that
            # comes together with the answer.
            if _cancellations() > cancellations:
                raise asyncio.CancelledError
        except (TimeoutError, OSError) as error:
            denied = self._denied.pop(scope, None)
            if denied is not None:
                raise self.unavailable(f"does not allow {self._name} {denied}") from error
            problem = "did not answer in time" if self.connected else "was lost while it was asked"
            raise self.unavailable(problem) from error
        except nats.errors.MaxPayloadError as error:
            raise InvalidRequest("the event is larger than the event bus accepts") from error
        except nats.errors.NoRespondersError as error:
            self.note_loss()
            raise self.unavailable(f"has lost the stream of {subject}") from error
        except nats.errors.Error as error:
            raise self.unavailable(f"failed: {error}") from error
        finally:
            self._waiting.pop(scope, None)
            self._denied.pop(scope, None)

    def note_loss(self) -> None:
        """Have everything prepared again: the server has lost what was on it."""
        self.epoch += 1

    async def request(
        self,
        subject: str,
        data: bytes,
        *,
        seconds: float,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """Send a request and return the answer's bytes. Raises `Unavailable`."""
        async with self.waiting(seconds, subject) as client:
            sent = dict(headers) if headers else None
            message = await client.request(subject, data, timeout=seconds + 1, headers=sent)
        answer: bytes = message.data
        return answer

    async def close(self) -> None:
        """Flush, disconnect and stop."""
        if self._task is not None:
            # Before Python 3.12 `asyncio.wait_for`, which nats-py uses, can lose a cancellation.
            while not self._task.done():
                self._task.cancel()
                await asyncio.wait({self._task}, timeout=CANCEL_AGAIN_SECONDS)
        if self._client is None:
            return
        if self._client.is_connected:
            try:
                await self._client.flush(timeout=2)
            except (TimeoutError, nats.errors.Error) as error:
                logger.warning("the event bus did not take the last messages: %s", error)
        await self._client.close()
        metrics.connected.set(0)

    async def _keep_connected(self) -> None:
        delays = Backoff()
        while True:
            closed = asyncio.Event()
            client = Client()
            self._client = client
            try:
                await client.connect(**self._options, closed_cb=_callback_that_sets(closed))
                await self._on_connected()
                delays.reset()
                await closed.wait()
                logger.warning("the event bus closed the connection; connecting again")
            except (OSError, nats.errors.Error, TimeoutError) as error:
                await self._report(error)
            except asyncio.CancelledError:
                if not client.is_connected:
                    await client.close()
                raise
            await asyncio.sleep(delays.next_delay())

    async def _on_connected(self) -> None:
        if self.epoch:
            metrics.reconnects.inc()
            logger.info("the event bus can be reached again")
        self.epoch += 1
        self._reported = 0.0
        self._problem = ""
        metrics.connected.set(1)
        self._connected.set()

    async def _on_disconnected(self) -> None:
        metrics.connected.set(0)
        for scope in list(self._waiting):
            _interrupt(scope)

    def _interrupt_denied(self, verb: str, subject: str) -> None:
        """Interrupt the requests that the server refused: no answer will come."""
        what = f"to {'publish' if verb == 'publish' else 'subscribe'} to {subject}"
        logger.error("the event bus does not allow %s %s", self._name, what)
        for scope, asked in list(self._waiting.items()):
            if asked.lower() == subject:
                self._denied[scope] = what
                _interrupt(scope)

    async def _report(self, error: Exception) -> None:
        denied = DENIED.search(str(error))
        if denied is not None:
            # nats-py reports it in lower case.
            self._interrupt_denied(denied[1].lower(), denied[2].lower())
            return
        if not self.connected:
            self._problem = str(error) or type(error).__name__
        # nats-py reports every attempt, four a second: one line a minute is enough.
        now = time.monotonic()
        if now - self._reported >= REPORT_EVERY_SECONDS or self.connected:
            self._reported = now
            logger.warning("event bus at %s: %s", self.url, error or type(error).__name__)


def _cancellations() -> int:
    """Return how often the current task was asked to end."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _interrupt(scope: asyncio.Timeout) -> None:
    if scope.when() is not None:
        scope.reschedule(asyncio.get_running_loop().time())


def _callback_that_sets(event: asyncio.Event) -> Any:
    async def callback() -> None:
        event.set()

    return callback
