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
from tuneloop.client.judging import FeedbackBody, FeedbackMethods, Identified, Receipt, SignalBody
from tuneloop.client.records import (
    FeedbackItem,
    FeedbackPage,
    FeedbackReach,
    Policies,
    PolicyVersion,
    Scores,
)
from tuneloop.client.streaming import AnswerReader
from tuneloop.errors import TuneloopError
from tuneloop.text.lines import lines_of

T = TypeVar("T")


class Stream:
    """A streamed answer: iterate over its pieces; the request is sent with the first.

    Leaving early (`break` in a `with`, or `close`) stops the service's work on it.
    """

    def __init__(
        self, judge: FeedbackMethods[Receipt], start: Callable[[], httpx.Response]
    ) -> None:
        self._reader = AnswerReader(judge)
        self._start = start
        self._response: httpx.Response | None = None

    def __iter__(self) -> Iterator[Piece]:
        """Yield the pieces; only once."""
        response = self._response = self._start()
        try:
            for line in lines_of(response.iter_bytes()):
                yield from self._reader.feed(line)
        except httpx.TransportError as error:
            raise error_from_transport(origin(response.request.url), error) from error
        finally:
            response.close()
        self._reader.end()

    @property
    def completion(self) -> Completion:
        """The answer so far; its `finish_reason` is None until it is complete."""
        return self._reader.answer

    def close(self) -> None:
        """Close the response, which stops the service's work on it."""
        if self._response is not None:
            self._response.close()

    def __enter__(self) -> Self:
        """Return itself; nothing is sent yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the response, which stops the service's work on it."""
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
        """If `url` or `api_key` is None, use TUNELOOP_URL or TUNELOOP_API_KEY."""
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
        """Send a prompt and return the complete answer."""
        return self._send(calls.chat(self, prompt, self.connection.with_defaults(options)))

    def stream(self, prompt: Prompt, **options: Unpack[ChatOptions]) -> Stream:
        """Send a prompt and iterate over the answer as it is written."""
        call = calls.streamed_chat(prompt, self.connection.with_defaults(options))
        return Stream(self, lambda: self._exchange(call, stream=True))

    def give(self, body: FeedbackBody) -> Receipt:
        """Send the body of one feedback."""
        return self._send(calls.give(body, self.connection.user))

    def send_signal(self, signal: SignalBody) -> Receipt:
        """Send one signal."""
        return self._send(calls.send_signal(signal, self.connection.user))

    def feedback(self, bodies: Sequence[FeedbackBody]) -> list[Receipt | TuneloopError]:
        """Send many bodies at once; return a receipt or an error for each, in order."""
        batches = calls.batches(bodies, self.connection.user)
        return [outcome for call in batches for outcome in self._send(call)]

    def retract(self, feedback: Identified | str) -> Receipt:
        """Retract feedback; versions that already learned from it stay as they are."""
        return self._send(calls.retract(feedback))

    def get_feedback(self, feedback: Identified | str) -> FeedbackItem:
        """Return feedback, by its receipt or id."""
        return self._send(calls.get_feedback(feedback))

    def get_receipt(self, receipt: Receipt | str) -> FeedbackReach:
        """Return which versions learned from feedback, by its receipt."""
        return self._send(calls.get_receipt(receipt))

    def list_feedback(self, **filters: Unpack[Filters]) -> FeedbackPage:
        """Return a page of the collected feedback, newest first."""
        return self._send(calls.list_feedback(filters))

    def policies(self, *, limit: int = 20, before: int | None = None) -> Policies:
        """Return the newest versions, and which one serves."""
        return self._send(calls.policies(limit, before))

    def policy(self, version: int) -> PolicyVersion:
        """Return one version."""
        return self._send(calls.policy(version))

    def promote(self, version: int) -> int:
        """Make a published version the one that serves, and return its number."""
        return self._send(calls.promote(version))

    def roll_back(self, version: int | None = None) -> int:
        """Serve the last good version again, or the one named, and return its number."""
        return self._send(calls.roll_back(version))

    def score(self, prompt: Prompt, completions: Sequence[str]) -> Scores:
        """Return the reward service's rewards of completions of one prompt."""
        return self._send(calls.score(prompt, completions))

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """Make any other call, such as `GET /v1/learner`, and return its JSON."""
        return self._send(calls.call_path(method, path, body))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        """Return itself."""
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
        """Run `exchange`: send its requests and wait its pauses."""
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
