"""Server-sent events: a response that starts with its first chunk, and stops on a disconnect.

The response begins only when generation has answered, so that a failure before it is an ordinary
HTTP error and the headers can name the version. A failure after it is sent as
`data: {"error": …}`. A silent stream carries comments, which clients ignore, so that proxies keep
the connection.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tuneloop.errors import TuneloopError
from tuneloop.gateway.edge.recording import FAILED, run_until_disconnected
from tuneloop.gateway.errors import error_body
from tuneloop.gateway.openai.calls import GeneratedAnswer

logger = logging.getLogger("tuneloop.gateway")

DONE = b"data: [DONE]\n\n"
HEARTBEAT = b": still at work\n\n"


# ASCII only: U+2028 and its like end a line for clients that split text rather than bytes.
json_string = json.encoder.encode_basestring_ascii


class EventStream(Response):
    """Sends `chunks`; cancels them if the client disconnects."""

    def __init__(
        self, answer: GeneratedAnswer, chunks: AsyncGenerator[bytes], heartbeat_seconds: float
    ) -> None:
        super().__init__()
        self.answer = answer
        self.chunks = chunks
        self.heartbeat_seconds = heartbeat_seconds
        self.started = False
        self.ended = False
        self.failed = False
        self.last_sent = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send chunks until the last one, or until the client disconnects."""
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
        async with aclosing(self.chunks):
            try:
                async for chunk in self.chunks:
                    await self.write(send, chunk)
            except TuneloopError as error:
                if not self.started:
                    raise
                self.failed = True
                logger.warning("a stream failed half-way: %s", error.message)
                text = json.dumps(error_body(error))
                await self.write(send, f"data: {text}\n\n".encode() + DONE)
        self.ended = True
        await send({"type": "http.response.body", "body": b"", "more_body": False})

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
            (b"x-completion-id", self.answer.completion_id.encode()),
        ]
        # Unknown only where the first token was slower than a heartbeat; chunks always carry it.
        if self.answer.policy_version is not None:
            headers.append((b"x-policy-version", str(self.answer.policy_version).encode()))
        return headers

    async def beat(self, send: Send) -> None:
        """Send a comment after every `heartbeat_seconds` of silence."""
        loop = asyncio.get_running_loop()
        self.last_sent = loop.time()
        while True:
            await asyncio.sleep(max(0.0, self.last_sent + self.heartbeat_seconds - loop.time()))
            if not self.ended and loop.time() - self.last_sent >= self.heartbeat_seconds:
                await self.write(send, HEARTBEAT)
