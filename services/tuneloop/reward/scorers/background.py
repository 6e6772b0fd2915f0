"""An event loop in a thread of its own, for async scorers.

They share it, so that an async function can keep its clients and connections from one batch to the
next.
"""

import asyncio
import functools
import inspect
import threading
from collections.abc import Awaitable
from concurrent.futures import CancelledError, Future
from typing import Generic, TypeVar

T = TypeVar("T")


class BackgroundCall(Generic[T]):
    """An awaitable that runs on the loop; for threads without an event loop."""

    def __init__(self, awaitable: Awaitable[T]) -> None:
        """Start it; even after `cancel` it has not ended until the loop says so."""
        self._loop = _loop()
        self._awaitable = awaitable
        self._outcome: Future[T] = Future()
        self._task: asyncio.Task[T] | None = None
        self._loop.call_soon_threadsafe(self._start)

    def result(self) -> T:
        """Wait for its result. Raises what it raises, or `CancelledError`."""
        return self._outcome.result()

    def cancel(self) -> None:
        """Cancel it, without waiting."""
        self._loop.call_soon_threadsafe(self._cancel)

    def _start(self) -> None:
        async def wait() -> T:
            try:
                return await self._awaitable
            except (SystemExit, KeyboardInterrupt) as error:
                # They would stop the loop, which all async scorers need.
                raise RuntimeError(f"{type(error).__name__}: {error}") from error

        self._task = self._loop.create_task(wait())
        self._task.add_done_callback(self._end)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _end(self, task: "asyncio.Task[T]") -> None:
        if task.cancelled():
            if inspect.iscoroutine(self._awaitable):
                # If it never started, Python would warn that it was not awaited.
                self._awaitable.close()
            self._outcome.set_exception(CancelledError())
        elif (error := task.exception()) is not None:
            self._outcome.set_exception(error)
        else:
            self._outcome.set_result(task.result())


def result_of(awaitable: Awaitable[T]) -> T:
    """Wait for `awaitable` in a thread without an event loop. Raises what it raises."""
    return BackgroundCall(awaitable).result()


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="async scorers", daemon=True).start()
    return loop
