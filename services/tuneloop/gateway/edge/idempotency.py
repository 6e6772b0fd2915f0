"""The same request twice: whoever asks again joins the running answer or gets the finished one.

An `Idempotency-Key` names a request: with the same body, by the same caller, it is answered once.
OpenAI's clients send no such key when they try again, but count their tries in
`x-stainless-retry-count`. A try gets the answer to an earlier try with the same body by the same
caller, unless two tries had one number: then the caller asked for the very body several times (to
sample several answers, say), nobody can tell which of them was lost, and each retry runs anew.

Only good answers are kept, for a while and within a number of bytes, in this process. Requests
with neither header pass untouched.
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
from tuneloop.gateway.edge.recording import Recording, unless_disconnected, with_body
from tuneloop.gateway.errors import IdempotencyKeyReused, error_response, http_error_response
from tuneloop.gateway.openai import training
from tuneloop.gateway.settings import GatewaySettings

PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})
MAX_KEY = 256

Name = tuple[str, str, bytes]
"""Caller, header, and what it says: a key, or the body's fingerprint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotentRequest:
    """A request that may be a repeat."""

    header: str
    value: str
    body: bytes
    fingerprint: bytes
    """Of the body and of where it was sent."""


@dataclass(slots=True, kw_only=True)
class Entry:
    """A recording in the table."""

    recording: Recording
    tries: int = 0
    """The highest number of a try that this answers."""
    twins: int = 0
    """Requests with the same body that run meanwhile, unrecorded."""
    ambiguous: bool = False
    """Whether there ever was a twin: then no retry may take this answer for its own."""
    task: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None
    """Runs once nothing of it runs any more."""


@dataclass(slots=True, kw_only=True)
class RequestTable:
    """Recordings by name: those that run, and good ones that have ended, oldest first."""

    max_bytes: int
    entries: OrderedDict[Name, Entry] = field(default_factory=OrderedDict)
    kept_bytes: int = 0
    """Of those that have ended."""

    def drop(self, name: Name, entry: Entry) -> None:
        """Forget an entry, if it is still the one of that name."""
        if self.entries.get(name) is entry:
            del self.entries[name]
            self.hold(entry)

    def hold(self, entry: Entry) -> None:
        """Stop the time of an entry."""
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
            self.kept_bytes -= entry.recording.size

    def keep(self, name: Name, entry: Entry, seconds: float) -> None:
        """Keep an entry for `seconds` from now, or as long as there is room."""
        if self.entries.get(name) is not entry:
            return
        self.hold(entry)
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
            body = await whole_body(receive)
        except ClientDisconnect:
            return
        except HTTPException as error:
            await http_error_response(error)(scope, receive, send)
            return
        fingerprint = fingerprint_of(scope, body)
        asked = IdempotentRequest(header=header, value=value, body=body, fingerprint=fingerprint)
        try:
            await self.answer(asked, scope, receive, send)
        except TuneloopError as error:
            metrics.repeats.labels(header, "refused").inc()
            await error_response(error)(scope, receive, send)

    async def answer(
        self, asked: IdempotentRequest, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer a request that has one of the headers. Raises why it is refused."""
        by_key = asked.header == "idempotency-key"
        which = asked.value.encode() if by_key else asked.fingerprint
        name = (scope["state"]["caller"].id, asked.header, which)
        entry = self.table.entries.get(name)
        if by_key:
            check_key(asked, entry)
        elif entry is not None and (entry.ambiguous or int(asked.value) <= entry.tries):
            with self.twin(name, entry):
                await self.app(scope, with_body(asked.body, receive), send)
            return
        if entry is None:
            recording = self.start(name, asked, scope)
            await follow(recording, receive, send, replayed=False)
            return
        if not by_key:
            entry.tries = int(asked.value)
        outcome = "replayed" if entry.recording.ended else "joined"
        metrics.repeats.labels(asked.header, outcome).inc()
        # For the metrics by route, as the router does not see this request.
        if "route" in entry.recording.scope:
            scope["route"] = entry.recording.scope["route"]
        await follow(entry.recording, receive, send, replayed=True)

    def start(self, name: Name, asked: IdempotentRequest, scope: Scope) -> Recording:
        """Run the application in a task of its own, under `name`."""
        recording = Recording(asked.fingerprint, scope, lambda: self.failed(name, entry))
        entry = self.table.entries[name] = Entry(recording=recording)
        if asked.header == "x-stainless-retry-count":
            entry.tries = int(asked.value)
        entry.task = asyncio.create_task(recording.run(self.app, asked.body))
        entry.task.add_done_callback(lambda _: self.ended(name, entry))
        return recording

    def failed(self, name: Name, entry: Entry) -> None:
        """Forget what nobody may have; that there were twins stays known for a while."""
        if not entry.ambiguous:
            self.table.drop(name, entry)

    def ended(self, name: Name, entry: Entry) -> None:
        """An entry of which nothing runs any more is kept for a while."""
        seconds = self.seconds[name[1]]
        if not seconds:
            self.table.drop(name, entry)
        elif entry.recording.ended and not entry.twins:
            self.table.keep(name, entry, seconds)

    @contextlib.contextmanager
    def twin(self, name: Name, entry: Entry) -> Iterator[None]:
        """A request that cannot be told from the recorded one: from now on no retry can either."""
        entry.ambiguous = True
        entry.twins += 1
        self.table.hold(entry)
        try:
            yield
        finally:
            entry.twins -= 1
            self.ended(name, entry)


async def follow(recording: Recording, receive: Receive, send: Send, *, replayed: bool) -> None:
    """Send a recording to one client until it ends or the client goes away."""
    recording.join()
    try:
        await unless_disconnected(receive, recording.follow(send, replayed=replayed))
    except ClientDisconnect:
        return
    finally:
        recording.leave()


def repeated_request(scope: Scope) -> tuple[str, str] | None:
    """The header by which a repeat would be known and its value, or None where there is none."""
    if scope["type"] != "http" or scope["path"] not in PATHS or scope["method"] != "POST":
        return None
    retries = None
    for name, value in scope["headers"]:
        if name == b"idempotency-key":
            return "idempotency-key", value.decode("latin-1")
        if name == b"x-stainless-retry-count" and value.isdigit():
            retries = "x-stainless-retry-count", str(int(value))
    return retries


def fingerprint_of(scope: Scope, body: bytes) -> bytes:
    """A hash of what decides about the answer: where it was sent, the body, and one header."""
    train = b"".join(value for name, value in scope["headers"] if name == training.HEADER.encode())
    return hashlib.sha256(b"\0".join((scope["path"].encode(), train, body))).digest()


def check_key(asked: IdempotentRequest, entry: Entry | None) -> None:
    """Raise `InvalidRequest` for a key that is none, `IdempotencyKeyReused` for another body."""
    if not 1 <= len(asked.value) <= MAX_KEY:
        raise InvalidRequest(
            f"Idempotency-Key: must have 1 to {MAX_KEY} characters", param="Idempotency-Key"
        )
    if entry is not None and entry.recording.fingerprint != asked.fingerprint:
        raise IdempotencyKeyReused(
            "this Idempotency-Key came with another body before", param="Idempotency-Key"
        )


async def whole_body(receive: Receive) -> bytes:
    """The request's body. Raises `ClientDisconnect`, and what `receive` does for one too large."""
    pieces = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)
