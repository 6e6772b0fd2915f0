"""How the supervisor knows that a process is ready."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

Probe = Callable[[], Awaitable[bool]]

TIMEOUT_SECONDS = 3.0
OK, UNAVAILABLE = 200, 503
ROOM_BYTES = 16 * 1024 * 1024
"""Below this a disk counts as full."""


def listens(host: str, port: int) -> Probe:
    """Ready when it accepts connections."""

    async def probe() -> bool:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                _, writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True

    return probe


def can_be_cured(host: str, port: int, folder: Path) -> Probe:
    """True where a nats-server refuses to write although there is room in its `folder` again.

    A stream whose write failed once, on a full disk say, takes nothing more until the server is
    started anew (2.15); `port` is its monitoring port, where it says so.
    """

    async def probe() -> bool:
        status = await http_status(host, port, "/healthz")
        return status == UNAVAILABLE and shutil.disk_usage(folder).free >= ROOM_BYTES

    return probe


def serves_grpc(host: str, port: int) -> Probe:
    """Ready when its gRPC health says SERVING."""

    async def probe() -> bool:
        from tuneloop.rpc.probe import is_serving_at

        # A channel to a port where nothing listens would log and back off.
        if not await listens(host, port)():
            return False
        return await is_serving_at(f"{host}:{port}", seconds=TIMEOUT_SECONDS)

    return probe


def answers_http(host: str, port: int, path: str) -> Probe:
    """Ready when `GET path` answers 200."""

    async def probe() -> bool:
        return await http_status(host, port, path) == OK

    return probe


async def http_status(host: str, port: int, path: str) -> int | None:
    """The status of the answer to `GET path`; None where there is no answer."""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
            writer.write(request.encode())
            line = await reader.readline()
            writer.close()
        return int(line.split(maxsplit=2)[1])
    except (OSError, TimeoutError, ValueError, IndexError):
        return None
