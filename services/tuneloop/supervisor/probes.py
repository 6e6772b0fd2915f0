"""Probes that tell the supervisor whether a process is ready."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

Probe = Callable[[], Awaitable[bool]]

TIMEOUT_SECONDS = 3.0
OK, UNAVAILABLE = 200, 503
ROOM_BYTES = 16 * 1024 * 1024
"""Below this a disk counts as full."""


def accepts_connections(host: str, port: int) -> Probe:
    """Return a probe that is true if the port accepts connections."""

    async def probe() -> bool:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                _, writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True

    return probe


def needs_restart(host: str, port: int, folder: Path) -> Probe:
    """Return a probe that is true if a nats-server refuses writes although its disk has room again.

    A stream with a failed write, on a full disk for example, refuses all others until the server is
    restarted (2.15). `port` is its monitoring port, which reports that.
    """

    async def probe() -> bool:
        status = await http_status(host, port, "/healthz")
        return status == UNAVAILABLE and shutil.disk_usage(folder).free >= ROOM_BYTES

    return probe


def serves_grpc(host: str, port: int) -> Probe:
    """Return a probe that is true if the gRPC health check says SERVING."""

    async def probe() -> bool:
        from tuneloop.rpc.probe import is_serving_at

        # A channel to a port where nothing listens would log and back off.
        if not await accepts_connections(host, port)():
            return False
        return await is_serving_at(f"{host}:{port}", seconds=TIMEOUT_SECONDS)

    return probe


def answers_http(host: str, port: int, path: str) -> Probe:
    """Return a probe that is true if `GET path` answers 200."""

    async def probe() -> bool:
        return await http_status(host, port, path) == OK

    return probe


async def http_status(host: str, port: int, path: str) -> int | None:
    """Return the status of the answer to `GET path`, or None without an answer."""
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
