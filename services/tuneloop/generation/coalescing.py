"""Joins items that a stream yields in quick succession, so that several share one message."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from typing import TypeVar

T = TypeVar("T")

SHORTEST_SECONDS, LONGEST_SECONDS = 0.03, 0.25
"""Bounds of the time whose tokens share a message; at the longest, text comes four times a second.
"""
MESSAGES_PER_CORE = 40
"""Messages a second for all streams together, per core of the machine. A message costs this process
and the gateway a quarter of a millisecond, which on a small machine is taken from the engine.
"""


def message_seconds(streams: int, cores: int | None = None) -> float:
    """Return for how many seconds the tokens of each of `streams` streams are joined."""
    wanted = streams / (MESSAGES_PER_CORE * (cores or os.cpu_count() or 1))
    return min(max(wanted, SHORTEST_SECONDS), LONGEST_SECONDS)


async def coalesce(
    source: AsyncGenerator[T, None], seconds: Callable[[], float]
) -> AsyncGenerator[list[T], None]:
    """Yield lists of items: the first at once, later ones at most every `seconds()`.

    The end of the source is passed on without delay, and so is its exception, after the items that
    came before it. Closing this iterator cancels and closes the source.
    """
    pending: list[T] = []
    arrived = asyncio.Event()

    async def pump() -> None:
        async for item in source:
            pending.append(item)
            arrived.set()

    task = asyncio.create_task(pump())
    task.add_done_callback(lambda _: arrived.set())
    try:
        while pending or not task.done():
            await arrived.wait()
            arrived.clear()
            if pending:
                batch = pending.copy()
                pending.clear()
                yield batch
            await asyncio.wait([task], timeout=seconds())
        task.result()
    finally:
        task.cancel()
        await asyncio.wait([task])
        await source.aclose()
