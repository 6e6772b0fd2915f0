"""One thread for everything that touches a model.

Training must not block the event loop, and torch's thread settings belong to the thread that made
them, so models are built, trained and saved in the same one. It is a daemon thread: a step in
progress never keeps the process from ending.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class ModelThread:
    """Runs blocking calls one after the other; await `run` for a result."""

    def __init__(self, name: str = "trainer") -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._unfinished = 0
        threading.Thread(target=self._work, name=name, daemon=True).start()

    @property
    def busy(self) -> bool:
        """Whether a call has not returned yet."""
        return self._unfinished > 0

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Return the result of `function(*args)`, or raise what it raised."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def settle(set_outcome: Callable[[Any], None], outcome: Any) -> None:
            self._unfinished -= 1
            if not future.done():
                set_outcome(outcome)

        def call() -> None:
            set_outcome: Callable[[Any], None]
            outcome: Any
            try:
                outcome, set_outcome = function(*args), future.set_result
            except BaseException as error:
                outcome, set_outcome = error, future.set_exception
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, set_outcome, outcome)

        self._unfinished += 1
        self._calls.put(call)
        return await future

    def _work(self) -> None:
        while True:
            self._calls.get()()
