"""One event loop in a thread of its own, for scorers that are async.

All of them share it, so that clients and connections an async function keeps stay usable from one
batch to the next.
"""

import asyncio
import functools
import threading
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


def result_of(awaitable: Awaitable[T]) -> T:
    """Wait for `awaitable` from a thread without an event loop; raises what it raises."""

    async def wait() -> T:
        return await awaitable

    return asyncio.run_coroutine_threadsafe(wait(), _loop()).result()


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="async scorers", daemon=True).start()
    return loop
