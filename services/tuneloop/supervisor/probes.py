"""How the supervisor knows that a process is ready."""

import asyncio
from collections.abc import Awaitable, Callable

Probe = Callable[[], Awaitable[bool]]

TIMEOUT_SECONDS = 3.0


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


def serves_grpc(host: str, port: int) -> Probe:
    """Ready when its gRPC health says SERVING."""

    async def probe() -> bool:
        from tuneloop.rpc.channel import connect
        from tuneloop.rpc.health import is_serving

        # Only where somebody listens: a failed channel would log and back off.
        if not await listens(host, port)():
            return False
        channel = connect(f"{host}:{port}")
        try:
            return await is_serving(channel, seconds=TIMEOUT_SECONDS)
        finally:
            await channel.close()

    return probe


def answers_http(host: str, port: int, path: str) -> Probe:
    """Ready when `GET path` answers 200."""

    async def probe() -> bool:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                reader, writer = await asyncio.open_connection(host, port)
                request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
                writer.write(request.encode())
                status = await reader.readline()
                writer.close()
        except (OSError, TimeoutError):
            return False
        return b" 200 " in status

    return probe
