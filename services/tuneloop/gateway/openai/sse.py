"""Server-sent events: a response that starts with its first chunk, and stops on a disconnect.

The response begins only when generation has answered, so that a failure before it is an ordinary
HTTP error and the headers can name the version. A failure after it is sent as an event. A silent
stream carries heartbeats, which clients ignore, so that proxies keep the connection.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tuneloop.errors import TuneloopError
from tuneloop.gateway import metrics
from tuneloop.gateway.context import Gateway
from tuneloop.gateway.edge.recording import FAILED, run_until_disconnected
from tuneloop.gateway.openai.calls import GeneratedAnswer
from tuneloop.gateway.openai.candidates import answer_events
from tuneloop.gateway.openai.tracing import answer_span
from tuneloop.v1 import generation_pb2

logger = logging.getLogger("tuneloop.gateway")

# ASCII only: U+2028 and its like end a line for clients that split text rather than bytes.
json_string = json.encoder.encode_basestring_ascii


class StreamWriter(Protocol):
    """Writes the events of one answer in the form of an API; empty bytes send nothing."""

    heartbeat: bytes
    """Sent while nothing else is."""

    def write_piece(self, choice: int, delta: generation_pb2.GenerateDelta) -> bytes:
        """Write what was added to a choice."""
        ...

    def write_end(self, choice: int, final: generation_pb2.GenerateFinal) -> bytes:
        """Write the end of a choice."""
        ...

    def write_closing(self) -> bytes:
        """Write what follows the last choice's end."""
        ...

    def write_failure(self, error: TuneloopError) -> bytes:
        """Write that the answer failed, which ends the stream."""
        ...


class EventStream(Response):
    """Generates an answer and sends it; cancels it if the client disconnects."""

    def __init__(self, gateway: Gateway, answer: GeneratedAnswer, writer: StreamWriter) -> None:
        super().__init__()
        self.gateway = gateway
        self.answer = answer
        self.writer = writer
        self.heartbeat_seconds = gateway.settings.heartbeat_seconds
        self.started = False
        self.ended = False
        self.failed = False
        self.last_sent = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the last one, or until the client disconnects."""
        heart = asyncio.create_task(self.beat(send))
        try:
            await run_until_disconnected(receive, self.pump(send))
        except ClientDisconnect:
            if not self.started:
                raise
        finally:
            heart.cancel()
            if self.failed:
                scope["state"][FAILED] = True

    async def pump(self, send: Send) -> None:
        chunks = self.chunks()
        async with aclosing(chunks):
            try:
                with answer_span(self.answer, stream=True):
                    async for chunk in chunks:
                        await self.write(send, chunk)
            except TuneloopError as error:
                if not self.started:
                    raise
                self.failed = True
                logger.warning("a stream failed half-way: %s", error.message)
                await self.write(send, self.writer.write_failure(error))
        self.ended = True
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Yield the events of the answer as they are sampled."""
        tokens = metrics.completion_tokens.labels("true")
        stream = answer_events(self.gateway, self.answer)
        async with aclosing(stream):
            async for choice, event in stream:
                if event.WhichOneof("event") == "delta":
                    tokens.inc(len(event.delta.token_ids))
                    chunk = self.writer.write_piece(choice, event.delta)
                else:
                    chunk = self.writer.write_end(choice, event.final)
                if chunk:
                    yield chunk
        yield self.writer.write_closing()

    async def write(self, send: Send, chunk: bytes) -> None:
        self.last_sent = asyncio.get_running_loop().time()
        if not self.started:
            self.started = True
            await send({"type": "http.response.start", "status": 200, "headers": self.head()})
        await send({"type": "http.response.body", "body": chunk, "more_body": True})

    def head(self) -> list[tuple[bytes, bytes]]:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        # Unknown only where no candidate was chosen before the first heartbeat.
        if self.answer.best_of is not None or not self.answer.are_candidates:
            headers.append((b"x-completion-id", self.answer.completion_id.encode()))
        # Unknown only where the first token was slower than a heartbeat; chunks always carry it.
        if self.answer.policy_version is not None:
            headers.append((b"x-policy-version", str(self.answer.policy_version).encode()))
        return headers

    async def beat(self, send: Send) -> None:
        """Send a heartbeat after every `heartbeat_seconds` of silence."""
        loop = asyncio.get_running_loop()
        self.last_sent = loop.time()
        while True:
            await asyncio.sleep(max(0.0, self.last_sent + self.heartbeat_seconds - loop.time()))
            if not self.ended and loop.time() - self.last_sent >= self.heartbeat_seconds:
                await self.write(send, self.writer.heartbeat)
