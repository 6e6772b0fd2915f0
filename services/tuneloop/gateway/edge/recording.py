"""An answer that runs once, and that several requests may follow, each from its start."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("tuneloop.gateway")

FAILED = "answer_failed"
"""Set in the state of a request whose stream reported a failure after it had started."""
OVERHEAD_BYTES = 2048
"""The approximate size of a recording without its text."""


class Recording:
    """A run of the application: what it sent so far, and its followers.

    The run has no connection of its own. It sees a disconnect when the last follower leaves.
    """

    def __init__(self, fingerprint: bytes, scope: Scope, failed: Callable[[], None]) -> None:
        self.fingerprint = fingerprint
        self.scope = scope
        self.size = OVERHEAD_BYTES
        self.ended = False
        self.followers = 0
        self._on_failure = failed
        """Called as soon as it is known that the answer will not be kept."""
        self._messages: list[Message] = []
        self._error: Exception | None = None
        self._refused = False
        self._complete = False
        self._abandoned = asyncio.Event()
        self._change = asyncio.Event()

    async def run(self, app: ASGIApp, body: bytes) -> None:
        """Let `app` answer `body`; return when it has ended, even if it failed."""
        receive = receive_with_body(body, self._disconnected)
        try:
            await app(self.scope, receive, self._record)
        except Exception as error:
            self._error = error  # raised again by each follower
            if not self.followers:
                logger.exception("an answer failed after its last client had disconnected")
        finally:
            self.ended = True
            if not self.is_replayable:
                self._on_failure()
            elif not self.followers:
                self._merge()
            # It refers to the table that keeps this: a cycle would keep the bytes in memory.
            self._on_failure = ignore_failure
            self._notify()

    @property
    def is_replayable(self) -> bool:
        """Whether the answer succeeded, so that another request may get it."""
        broken = self._refused or self._error is not None
        return self._complete and not broken and not self.scope["state"].get(FAILED, False)

    def join(self) -> None:
        """Add a follower; call `leave` for each."""
        self.followers += 1

    def leave(self) -> None:
        """Remove a follower; without any the run sees a disconnect."""
        self.followers -= 1
        if self.followers:
            return
        if self.ended:
            if self.is_replayable:
                self._merge()
        elif not self._complete:
            # Dropped at once, so that the next request does not join a run that is being stopped.
            self._on_failure()
            self._abandoned.set()

    async def follow(self, send: Send, *, replayed: bool) -> None:
        """Send everything from the start until the end."""
        position = 0
        # After the last piece the server reports a disconnect: do not wait for more.
        while not (self._complete and position == len(self._messages)):
            if position < len(self._messages):
                message = self._messages[position]
                position += 1
                await send(start_recording(message, replayed) if "headers" in message else message)
            elif self.ended:
                break
            else:
                await self._change.wait()
        if self._error is not None:
            raise self._error

    async def _disconnected(self) -> Message:
        await self._abandoned.wait()
        return {"type": "http.disconnect"}

    async def _record(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self._refused = True
            self._on_failure()
        self.size += len(message.get("body", b""))
        self._complete = message["type"] == "http.response.body" and not message.get("more_body")
        self._messages.append(message)
        self._notify()

    def _notify(self) -> None:
        self._change.set()
        self._change = asyncio.Event()

    def _merge(self) -> None:
        """Merge the pieces of a finished answer into one message."""
        start, *rest = self._messages
        body = b"".join(message.get("body", b"") for message in rest)
        self._messages = [start, {"type": "http.response.body", "body": body}]


def ignore_failure() -> None:
    """Do nothing: the table was already told."""


def start_recording(message: Message, replayed: bool) -> Message:
    """Return a copy of the response's start, as middleware writes into its headers."""
    headers: list[Any] = list(message["headers"])
    if replayed:
        headers.append((b"idempotent-replayed", b"true"))
    return {**message, "headers": headers}


def receive_with_body(body: bytes, then: Receive) -> Receive:
    """Return a `receive` that returns a body read before, then what `then` returns."""
    given = False

    async def receive() -> Message:
        nonlocal given
        if given:
            return await then()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


T = TypeVar("T")


async def run_until_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return `work`'s result; cancel it and raise `ClientDisconnect` if the client leaves first."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
