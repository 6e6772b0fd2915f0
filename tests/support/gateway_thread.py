"""The gateway over fakes in a thread of its own, for programs and blocking clients."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from support.gateway_fakes import Stack, running_gateway


@contextmanager
def gateway_in_thread(**overrides: Any) -> Iterator[Stack]:
    """As `running_gateway`, while the caller's thread does what it likes."""
    ready = threading.Event()
    running: list[tuple[Stack, asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        end = asyncio.Event()
        async with running_gateway(**overrides) as stack:
            running.append((stack, asyncio.get_running_loop(), end))
            ready.set()
            await end.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(30), "the gateway did not start"
    stack, loop, end = running[0]
    try:
        yield stack
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(30)
