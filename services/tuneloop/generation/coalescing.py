"""Joins what a stream yields in quick succession: a message's cost is paid once for several."""

import asyncio
from collections.abc import AsyncGenerator
from typing import TypeVar

T = TypeVar("T")


async def coalesce(
    source: AsyncGenerator[T, None], seconds: float
) -> AsyncGenerator[list[T], None]:
    """Yield lists of items: the first at once, later ones at most every `seconds`.

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
            await asyncio.wait([task], timeout=seconds)
        task.result()
    finally:
        task.cancel()
        await asyncio.wait([task])
        await source.aclose()
