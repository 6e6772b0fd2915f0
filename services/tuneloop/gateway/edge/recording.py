"""An answer that runs once and that several requests may follow, each from its beginning."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("tuneloop.gateway")

FAILED = "answer_failed"
"""Set in the state of a request whose stream reported a failure after it had begun."""
OVERHEAD_BYTES = 2048
"""About what a recording needs beside its text."""


class Recording:
    """One run of the application: what it sent so far, and who listens.

    The run has no connection of its own. It sees a disconnect when the last follower has left.
    """

    def __init__(self, fingerprint: bytes, scope: Scope, failed: Callable[[], None]) -> None:
        self.fingerprint = fingerprint
        self.scope = scope
        self.size = OVERHEAD_BYTES
        self.ended = False
        self.followers = 0
        self._failed = failed
        """Called as soon as it is known that the answer is none worth keeping."""
        self._messages: list[Message] = []
        self._error: Exception | None = None
        self._refused = False
        self._complete = False
        self._abandoned = asyncio.Event()
        self._change = asyncio.Event()

    async def run(self, app: ASGIApp, body: bytes) -> None:
        """Let `app` answer `body`; returns when it has ended, however it did."""
        receive = with_body(body, self._disconnected)
        try:
            await app(self.scope, receive, self._record)
        except Exception as error:
            self._error = error  # raised again by each follower
            if not self.followers:
                logger.exception("an answer failed that nobody waits for any more")
        finally:
            self.ended = True
            if not self.good:
                self._failed()
            elif not self.followers:
                self._merge()
            # It leads back to whoever keeps this: without it the bytes go with the last reference.
            self._failed = nothing
            self._notify()

    @property
    def good(self) -> bool:
        """Whether the answer ended well: another request may have it."""
        broken = self._refused or self._error is not None
        return self._complete and not broken and not self.scope["state"].get(FAILED, False)

    def join(self) -> None:
        """One more follows; `leave` has to follow."""
        self.followers += 1

    def leave(self) -> None:
        """One fewer follows; without any the run is told that nobody listens."""
        self.followers -= 1
        if self.followers:
            return
        if self.ended:
            if self.good:
                self._merge()
        elif not self._complete:
            # Gone at once, so that whoever comes next does not join what is being stopped.
            self._failed()
            self._abandoned.set()

    async def follow(self, send: Send, *, replayed: bool) -> None:
        """Send everything from the beginning, and go on until the end."""
        position = 0
        # Once the last piece is sent the server reports a disconnect, so it must not be awaited.
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
            self._failed()
        self.size += len(message.get("body", b""))
        self._complete = message["type"] == "http.response.body" and not message.get("more_body")
        self._messages.append(message)
        self._notify()

    def _notify(self) -> None:
        self._change.set()
        self._change = asyncio.Event()

    def _merge(self) -> None:
        """Make one message of a finished answer's many pieces."""
        start, *rest = self._messages
        body = b"".join(message.get("body", b"") for message in rest)
        self._messages = [start, {"type": "http.response.body", "body": body}]


def nothing() -> None:
    """Nobody needs to be told any more."""


def start_recording(message: Message, replayed: bool) -> Message:
    """The response's start as a copy: middleware writes into its headers."""
    headers: list[Any] = list(message["headers"])
    if replayed:
        headers.append((b"idempotent-replayed", b"true"))
    return {**message, "headers": headers}


def with_body(body: bytes, then: Receive) -> Receive:
    """A `receive` that gives a body that was read before, then what `then` gives."""
    given = False

    async def receive() -> Message:
        nonlocal given
        if given:
            return await then()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


T = TypeVar("T")


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """`work`'s result; cancels it and raises `ClientDisconnect` when the client goes away first."""
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
