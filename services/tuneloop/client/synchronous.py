"""The client that blocks."""

import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from tuneloop.client import calls
from tuneloop.client.answers import Completion, Piece
from tuneloop.client.calls import ApiCall, ChatOptions, Filters, Prompt
from tuneloop.client.connection import connection
from tuneloop.client.exceptions import error_from_transport
from tuneloop.client.exchange import Reply, exchange, origin
from tuneloop.client.judging import FeedbackBody, FeedbackMethods, Identified, Receipt
from tuneloop.client.records import FeedbackItem, FeedbackPage, Policies, PolicyVersion, Scores
from tuneloop.client.streaming import AnswerReader
from tuneloop.errors import TuneloopError

T = TypeVar("T")


class Stream:
    """An answer as it is written: iterate over its pieces; the request begins with the first.

    Leaving it early (`break` in a `with`, or `close`) stops the service's work on it.
    """

    def __init__(
        self, judge: FeedbackMethods[Receipt], start: Callable[[], httpx.Response]
    ) -> None:
        self._reader = AnswerReader(judge)
        self._start = start
        self._response: httpx.Response | None = None

    def __iter__(self) -> Iterator[Piece]:
        """The pieces, once."""
        response = self._response = self._start()
        try:
            for line in response.iter_lines():
                yield from self._reader.feed(line)
        except httpx.TransportError as error:
            raise error_from_transport(origin(response.request.url), error) from error
        finally:
            response.close()
        self._reader.end()

    @property
    def completion(self) -> Completion:
        """The answer as far as it came; its `finish_reason` is None until it is whole."""
        return self._reader.answer

    def close(self) -> None:
        """Stop listening."""
        if self._response is not None:
            self._response.close()

    def __enter__(self) -> Self:
        """Itself; nothing is sent yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop listening."""
        self.close()


class Client(FeedbackMethods[Receipt]):
    """A running service; usable from several threads. Close it, or use it in a `with`."""

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        model: str = "tuneloop",
        user: str | None = None,
        timeout: float = 600.0,
        max_retries: int = 2,
        transport: httpx.BaseTransport | None = None,
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
        self._http = httpx.Client(**self.connection.http(), transport=transport)

    def chat(self, prompt: Prompt, **options: Unpack[ChatOptions]) -> Completion:
        """Ask, and wait for the whole answer."""
        return self._send(calls.chat(self, prompt, self.connection.with_defaults(options)))

    def stream(self, prompt: Prompt, **options: Unpack[ChatOptions]) -> Stream:
        """Ask, and iterate over the answer as it is written; `.completion` is the whole."""
        call = calls.streamed_chat(prompt, self.connection.with_defaults(options))
        return Stream(self, lambda: self._exchange(call, stream=True))

    def give(self, body: FeedbackBody) -> Receipt:
        """Send feedback by its body."""
        return self._send(calls.give(body, self.connection.user))

    def feedback(self, bodies: Sequence[FeedbackBody]) -> list[Receipt | TuneloopError]:
        """Send many bodies at once; for each, in order, its receipt or why it was refused."""
        batches = calls.batches(bodies, self.connection.user)
        return [outcome for call in batches for outcome in self._send(call)]

    def retract(self, feedback: Identified | str) -> Receipt:
        """Take feedback back; what learned from it already stays learned."""
        return self._send(calls.retract(feedback))

    def get_feedback(self, feedback: Identified | str) -> FeedbackItem:
        """Feedback by its receipt or id."""
        return self._send(calls.get_feedback(feedback))

    def list_feedback(self, **filters: Unpack[Filters]) -> FeedbackPage:
        """What was collected, newest first."""
        return self._send(calls.list_feedback(filters))

    def policies(self, *, limit: int = 20, before: int | None = None) -> Policies:
        """The newest versions, and which one serves."""
        return self._send(calls.policies(limit, before))

    def policy(self, version: int) -> PolicyVersion:
        """One version."""
        return self._send(calls.policy(version))

    def promote(self, version: int) -> int:
        """Make a published version the one that serves; its number."""
        return self._send(calls.promote(version))

    def roll_back(self, version: int | None = None) -> int:
        """Serve the stable version's parent again, or the one named; its number."""
        return self._send(calls.roll_back(version))

    def score(self, prompt: Prompt, completions: Sequence[str]) -> Scores:
        """Rewards of completions of one prompt, by the reward service."""
        return self._send(calls.score(prompt, completions))

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """Any other call by its path, such as `GET /v1/learner`; its JSON."""
        return self._send(calls.anything(method, path, body))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connections."""
        self.close()

    def _send(self, call: ApiCall[T]) -> T:
        return call.result(self._exchange(call, stream=False))

    def _exchange(self, call: ApiCall[Any], *, stream: bool) -> httpx.Response:
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
                reply = self._attempt(step, stream=stream)
            else:
                time.sleep(step)

    def _attempt(self, request: httpx.Request, *, stream: bool) -> Reply:
        try:
            response = self._http.send(request, stream=True)
            if not (stream and response.is_success):
                response.read()
        except httpx.TransportError as error:
            return error
        return response
