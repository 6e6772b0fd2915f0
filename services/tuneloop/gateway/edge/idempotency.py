"""Repeated requests: a repeat joins the running answer, or gets the finished one.

An `Idempotency-Key` names a request: with the same body and caller, it is answered once. Clients of
OpenAI and of Anthropic send no such key when they retry, but count their tries in
`x-stainless-retry-count`. A try gets the answer to an earlier try with the same body and caller,
unless two tries had the same number: then the caller sent the same body several times (to sample
several answers, for example), there is no telling which of them was lost, and each retry runs
again.

Only successful answers are kept, for a limited time and up to a number of bytes, in this process.
Requests with neither header pass unchanged.
"""

import asyncio
import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from tuneloop.errors import InvalidRequest, TuneloopError
from tuneloop.gateway import metrics
from tuneloop.gateway.edge.recording import Recording, receive_with_body, run_until_disconnected
from tuneloop.gateway.errors import IdempotencyKeyReused, error_response, http_error_response
from tuneloop.gateway.openai import sessions, training
from tuneloop.gateway.settings import GatewaySettings

PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"})
MAX_KEY = 256
MAX_DIGITS = 9
"""Of a count of retries."""

Name = tuple[str, str, bytes]
"""Caller, header, and its value: a key, or the body's fingerprint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotentRequest:
    """A request that may be a repeat."""

    header: str
    value: str
    body: bytes
    fingerprint: bytes
    """Of the body and the path."""


@dataclass(slots=True, kw_only=True)
class Entry:
    """A recording in the table."""

    recording: Recording
    tries: int = 0
    """The highest try that this answers."""
    twins: int = 0
    """Requests with the same body that run at the same time, unrecorded."""
    ambiguous: bool = False
    """Whether there ever was a twin: then no retry may get this answer."""
    task: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None
    """Runs once the recording and its twins have ended."""


@dataclass(slots=True, kw_only=True)
class RequestTable:
    """Recordings by name: running ones, and successful ones that ended, oldest first."""

    max_bytes: int
    entries: OrderedDict[Name, Entry] = field(default_factory=OrderedDict)
    kept_bytes: int = 0
    """The size of those that ended."""

    def drop(self, name: Name, entry: Entry) -> None:
        """Drop an entry, if it is still the one with that name."""
        if self.entries.get(name) is entry:
            del self.entries[name]
            self.stop_timer(entry)

    def stop_timer(self, entry: Entry) -> None:
        """Stop the timer of an entry."""
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
            self.kept_bytes -= entry.recording.size

    def keep(self, name: Name, entry: Entry, seconds: float) -> None:
        """Keep an entry for `seconds`, or as long as there is room."""
        if self.entries.get(name) is not entry:
            return
        self.stop_timer(entry)
        entry.timer = asyncio.get_running_loop().call_later(seconds, self.drop, name, entry)
        self.kept_bytes += entry.recording.size
        self.entries.move_to_end(name)
        while self.kept_bytes > self.max_bytes:
            self.drop(*next((n, e) for n, e in self.entries.items() if e.timer is not None))


class Idempotency:
    """ASGI middleware that answers a repeated request with the first one's answer."""

    def __init__(self, app: ASGIApp, *, settings: GatewaySettings) -> None:
        self.app = app
        self.seconds = {
            "idempotency-key": settings.idempotency_seconds,
            "x-stainless-retry-count": settings.retry_seconds,
        }
        self.table = RequestTable(max_bytes=settings.idempotency_max_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Join, replay, refuse, or run."""
        told = repeated_request(scope)
        if told is None:
            await self.app(scope, receive, send)
            return
        header, value = told
        if header == "x-stainless-retry-count" and not self.seconds[header]:
            await self.app(scope, receive, send)
            return
        try:
            body = await read_body(receive)
        except ClientDisconnect:
            return
        except HTTPException as error:
            await http_error_response(error, scope["path"])(scope, receive, send)
            return
        fingerprint = fingerprint_of(scope, body)
        asked = IdempotentRequest(header=header, value=value, body=body, fingerprint=fingerprint)
        try:
            await self.answer(asked, scope, receive, send)
        except TuneloopError as error:
            metrics.repeats.labels(header, "refused").inc()
            await error_response(error, scope["path"])(scope, receive, send)

    async def answer(
        self, asked: IdempotentRequest, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer a request that has one of the headers. Raises if it is refused."""
        by_key = asked.header == "idempotency-key"
        check_length(asked, MAX_KEY if by_key else MAX_DIGITS)
        which = asked.value.encode() if by_key else asked.fingerprint
        name = (scope["state"]["caller"].id, asked.header, which)
        entry = self.table.entries.get(name)
        if by_key:
            check_key(asked, entry)
        elif entry is not None and (entry.ambiguous or int(asked.value) <= entry.tries):
            with self.count_twin(name, entry):
                await self.app(scope, receive_with_body(asked.body, receive), send)
            return
        if entry is None:
            recording = self.start(name, asked, scope)
            await follow(recording, receive, send, replayed=False)
            return
        if not by_key:
            entry.tries = int(asked.value)
        outcome = "replayed" if entry.recording.ended else "joined"
        metrics.repeats.labels(asked.header, outcome).inc()
        # For metrics by route, as the router does not see this request.
        if "route" in entry.recording.scope:
            scope["route"] = entry.recording.scope["route"]
        await follow(entry.recording, receive, send, replayed=True)

    def start(self, name: Name, asked: IdempotentRequest, scope: Scope) -> Recording:
        """Run the application in a task, recorded as `name`."""
        recording = Recording(asked.fingerprint, scope, lambda: self.drop_failed(name, entry))
        entry = self.table.entries[name] = Entry(recording=recording)
        if asked.header == "x-stainless-retry-count":
            entry.tries = int(asked.value)
        entry.task = asyncio.create_task(recording.run(self.app, asked.body))
        entry.task.add_done_callback(lambda _: self.keep_ended(name, entry))
        return recording

    def drop_failed(self, name: Name, entry: Entry) -> None:
        """Drop an entry that no request may get, unless it records that there were twins."""
        if not entry.ambiguous:
            self.table.drop(name, entry)

    def keep_ended(self, name: Name, entry: Entry) -> None:
        """Keep an entry for a while once it and its twins have ended."""
        seconds = self.seconds[name[1]]
        if not seconds:
            self.table.drop(name, entry)
        elif entry.recording.ended and not entry.twins:
            self.table.keep(name, entry, seconds)

    @contextlib.contextmanager
    def count_twin(self, name: Name, entry: Entry) -> Iterator[None]:
        """Count a request that looks like the recorded one: no retry can be told from it either."""
        entry.ambiguous = True
        entry.twins += 1
        self.table.stop_timer(entry)
        try:
            yield
        finally:
            entry.twins -= 1
            self.keep_ended(name, entry)


async def follow(recording: Recording, receive: Receive, send: Send, *, replayed: bool) -> None:
    """Send a recording to one client until it ends or the client disconnects."""
    recording.join()
    try:
        await run_until_disconnected(receive, recording.follow(send, replayed=replayed))
    except ClientDisconnect:
        return
    finally:
        recording.leave()


def repeated_request(scope: Scope) -> tuple[str, str] | None:
    """Return the header that would identify a repeat, and its value, or None."""
    if scope["type"] != "http" or scope["path"] not in PATHS or scope["method"] != "POST":
        return None
    retries = None
    for name, value in scope["headers"]:
        if name == b"idempotency-key":
            return "idempotency-key", value.decode("latin-1")
        if name == b"x-stainless-retry-count" and value.isdigit():
            retries = "x-stainless-retry-count", value.decode()
    return retries


def fingerprint_of(scope: Scope, body: bytes) -> bytes:
    """Return a hash of everything that decides the answer and what it is for: path, headers, body.

    Of the headers only those that stand for fields of the body.
    """
    parts = [scope["path"].encode()]
    for header in (training.HEADER, sessions.HEADER):
        parts.append(b"".join(v for name, v in scope["headers"] if name == header.encode()))
    return hashlib.sha256(b"\0".join((*parts, body))).digest()


def check_key(asked: IdempotentRequest, entry: Entry | None) -> None:
    """Raise `IdempotencyKeyReused` for a key that came with another body."""
    if entry is not None and entry.recording.fingerprint != asked.fingerprint:
        raise IdempotencyKeyReused(
            "this Idempotency-Key came with another body before", param="Idempotency-Key"
        )


def check_length(asked: IdempotentRequest, most: int) -> None:
    """Raise `InvalidRequest` for a header's value that is empty or longer than `most`."""
    if not 1 <= len(asked.value) <= most:
        name = asked.header.title()
        raise InvalidRequest(f"{name}: must have 1 to {most} characters", param=name)


async def read_body(receive: Receive) -> bytes:
    """Read the request's body. Raises `ClientDisconnect`, or what `receive` raises."""
    pieces = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)
