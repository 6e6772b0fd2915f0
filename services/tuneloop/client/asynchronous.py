"""The client of coroutines: the same calls, awaited."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from tuneloop.client import calls
from tuneloop.client.answers import AsyncCompletion, Piece
from tuneloop.client.calls import ApiCall, ChatOptions, Filters, Prompt
from tuneloop.client.connection import connection
from tuneloop.client.exceptions import error_from_transport
from tuneloop.client.exchange import Reply, exchange, origin
from tuneloop.client.judging import FeedbackBody, FeedbackMethods, Identified, Receipt
from tuneloop.client.records import FeedbackItem, FeedbackPage, Policies, PolicyVersion, Scores
from tuneloop.client.streaming import AnswerReader
from tuneloop.errors import TuneloopError

T = TypeVar("T")

Given = Coroutine[Any, Any, Receipt]


class AsyncStream:
    """An answer as it is written: iterate over its pieces; the request begins with the first.

    Leaving it early (`break` in an `async with`, or `close`) stops the service's work on it.
    """

    def __init__(
        self,
        judge: FeedbackMethods[Given],
        start: Callable[[], Coroutine[Any, Any, httpx.Response]],
    ) -> None:
        self._reader = AnswerReader(judge)
        self._start = start
        self._response: httpx.Response | None = None

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """The pieces, once."""
        response = self._response = await self._start()
        try:
            async for line in response.aiter_lines():
                for piece in self._reader.feed(line):
                    yield piece
        except httpx.TransportError as error:
            raise error_from_transport(origin(response.request.url), error) from error
        finally:
            await response.aclose()
        self._reader.end()

    @property
    def completion(self) -> AsyncCompletion:
        """The answer as far as it came; its `finish_reason` is None until it is whole."""
        return self._reader.answer

    async def close(self) -> None:
        """Stop listening."""
        if self._response is not None:
            await self._response.aclose()

    async def __aenter__(self) -> Self:
        """Itself; nothing is sent yet."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop listening."""
        await self.close()


class AsyncClient(FeedbackMethods[Given]):
    """A running service. Close it, or use it in an `async with`."""

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        model: str = "tuneloop",
        user: str | None = None,
        timeout: float = 600.0,
        max_retries: int = 2,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Where `url` and `api_key` are None: TUNELOOP_URL and TUNELOOP_API_KEY."""
        self.connection = connection(
            url,
            api_key=api_key,
            model=model,
            user=user,
            timeout=timeout,
            max_retries=max_retries,
        )
        self._http = httpx.AsyncClient(**self.connection.http(), transport=transport)

    async def chat(self, prompt: Prompt, **options: Unpack[ChatOptions]) -> AsyncCompletion:
        """Ask, and wait for the whole answer."""
        return await self._send(calls.chat(self, prompt, self.connection.with_defaults(options)))

    def stream(self, prompt: Prompt, **options: Unpack[ChatOptions]) -> AsyncStream:
        """Ask, and iterate over the answer as it is written; `.completion` is the whole."""
        call = calls.streamed_chat(prompt, self.connection.with_defaults(options))
        return AsyncStream(self, lambda: self._exchange(call, stream=True))

    async def give(self, body: FeedbackBody) -> Receipt:
        """Send feedback by its body."""
        return await self._send(calls.give(body, self.connection.user))

    async def feedback(self, bodies: Sequence[FeedbackBody]) -> list[Receipt | TuneloopError]:
        """Send many bodies at once; for each, in order, its receipt or why it was refused."""
        batches = calls.batches(bodies, self.connection.user)
        return [outcome for call in batches for outcome in await self._send(call)]

    async def retract(self, feedback: Identified | str) -> Receipt:
        """Take feedback back; what learned from it already stays learned."""
        return await self._send(calls.retract(feedback))

    async def get_feedback(self, feedback: Identified | str) -> FeedbackItem:
        """Feedback by its receipt or id."""
        return await self._send(calls.get_feedback(feedback))

    async def list_feedback(self, **filters: Unpack[Filters]) -> FeedbackPage:
        """What was collected, newest first."""
        return await self._send(calls.list_feedback(filters))

    async def policies(self, *, limit: int = 20, before: int | None = None) -> Policies:
        """The newest versions, and which one serves."""
        return await self._send(calls.policies(limit, before))

    async def policy(self, version: int) -> PolicyVersion:
        """One version."""
        return await self._send(calls.policy(version))

    async def promote(self, version: int) -> int:
        """Make a published version the one that serves; its number."""
        return await self._send(calls.promote(version))

    async def roll_back(self, version: int | None = None) -> int:
        """Serve the stable version's parent again, or the one named; its number."""
        return await self._send(calls.roll_back(version))

    async def score(self, prompt: Prompt, completions: Sequence[str]) -> Scores:
        """Rewards of completions of one prompt, by the reward service."""
        return await self._send(calls.score(prompt, completions))

    async def request(self, method: str, path: str, body: Any = None) -> Any:
        """Any other call by its path, such as `GET /v1/learner`; its JSON."""
        return await self._send(calls.anything(method, path, body))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self.close()

    async def _send(self, call: ApiCall[T]) -> T:
        return call.result(await self._exchange(call, stream=False))

    async def _exchange(self, call: ApiCall[Any], *, stream: bool) -> httpx.Response:
        """Drive `exchange`: send what it says and wait where it says."""
        steps = exchange(call.request(self._http), self.connection.max_retries)
        reply: Reply = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            reply = None
            if isinstance(step, httpx.Request):
                reply = await self._attempt(step, stream=stream)
            else:
                await asyncio.sleep(step)

    async def _attempt(self, request: httpx.Request, *, stream: bool) -> Reply:
        try:
            response = await self._http.send(request, stream=True)
            if not (stream and response.is_success):
                await response.aread()
        except httpx.TransportError as error:
            return error
        return response
