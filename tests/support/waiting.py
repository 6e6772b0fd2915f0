"""Wait for what another task, thread or process does."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from tuneloop.errors import Unavailable

T = TypeVar("T")


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Return the first true answer of `condition`, which may be a coroutine function."""
    async with asyncio.timeout(seconds):
        while True:
            answer = condition()
            if inspect.isawaitable(answer):
                answer = await answer
            if answer:
                return answer
            await asyncio.sleep(0.01)


async def until_available(operation: Callable[[], Awaitable[T]], seconds: float = 15.0) -> T:
    """Return the operation's result, once it no longer raises `Unavailable`."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await operation()
            except Unavailable:
                await asyncio.sleep(0.05)


def wait_until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Return the first true answer of `condition`, while this thread waits."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.01)
    return answer
