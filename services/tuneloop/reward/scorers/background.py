"""One event loop in a thread of its own, for scorers that are async.

All of them share it, so that clients and connections an async function keeps stay usable from one
batch to the next.
"""

import asyncio
import functools
import inspect
import threading
from collections.abc import Awaitable
from concurrent.futures import CancelledError, Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Begun(Generic[T]):
    """An awaitable that the loop works on; used from threads without an event loop."""

    def __init__(self, awaitable: Awaitable[T]) -> None:
        """Begin; it has not ended, even if cancelled, before the loop says so."""
        self._loop = _loop()
        self._awaitable = awaitable
        self._outcome: Future[T] = Future()
        self._task: asyncio.Task[T] | None = None
        self._loop.call_soon_threadsafe(self._start)

    def result(self) -> T:
        """Wait for it; raises what it raises, `CancelledError` where it was cancelled."""
        return self._outcome.result()

    def cancel(self) -> None:
        """Ask it to end."""
        self._loop.call_soon_threadsafe(self._cancel)

    def _start(self) -> None:
        async def wait() -> T:
            try:
                return await self._awaitable
            except (SystemExit, KeyboardInterrupt) as error:
                # They would end the loop, which all async scorers need.
                raise RuntimeError(f"{type(error).__name__}: {error}") from error

        self._task = self._loop.create_task(wait())
        self._task.add_done_callback(self._end)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _end(self, task: "asyncio.Task[T]") -> None:
        if task.cancelled():
            if inspect.iscoroutine(self._awaitable):
                # It may not even have begun, which Python would complain of.
                self._awaitable.close()
            self._outcome.set_exception(CancelledError())
        elif (error := task.exception()) is not None:
            self._outcome.set_exception(error)
        else:
            self._outcome.set_result(task.result())


def result_of(awaitable: Awaitable[T]) -> T:
    """Wait for `awaitable` from a thread without an event loop; raises what it raises."""
    return Begun(awaitable).result()


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="async scorers", daemon=True).start()
    return loop
