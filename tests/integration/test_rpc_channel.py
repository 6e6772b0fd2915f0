"""Channels in front of peers that are slow, or not there yet."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import pytest
from chaos.partitions import Relay
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tuneloop.rpc.channel import connect, wait_until_connected
from tuneloop.rpc.server import Server

GREETING_SECONDS = 0.6


@asynccontextmanager
async def serving(port: int = 0) -> AsyncIterator[int]:
    server = Server(host="127.0.0.1", port=port, drain_seconds=0.1)
    await server.start()
    await server.set_serving(True)
    yield server.port
    await server.stop()


@asynccontextmanager
async def slow_to_greet(port: int) -> AsyncIterator[int]:
    """A port in front of `port` whose first bytes come late, as from a process that is busy."""

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(GREETING_SECONDS)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(forward(reader, far_writer), forward(far_reader, writer))

    proxy = await asyncio.start_server(accepted, "127.0.0.1", 0)
    yield proxy.sockets[0].getsockname()[1]
    proxy.close()


async def test_a_call_waits_for_a_peer_that_is_coming_back(
    unused_tcp_port_factory: Callable[[], int],
) -> None:
    port = unused_tcp_port_factory()
    async with connect(f"127.0.0.1:{port}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        # Long enough without anybody for the longest pause between two attempts.
        for _ in range(2):
            await wait_until_connected(channel)
            with pytest.raises(grpc.aio.AioRpcError):
                await check(health_pb2.HealthCheckRequest())
        async with serving(port):
            await wait_until_connected(channel)
            answer = await check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def healthy(port: int, *, wait: bool = False) -> bool:
    async with connect(f"127.0.0.1:{port}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        answer = await check(health_pb2.HealthCheckRequest(), wait_for_ready=wait, timeout=15)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def test_a_busy_peer_has_time_to_greet() -> None:
    async with serving() as port, slow_to_greet(port) as slow:
        assert await healthy(slow)


@pytest.mark.slow
async def test_a_peer_that_falls_silent_is_noticed_within_half_a_minute() -> None:
    async with serving() as port:
        relay = Relay(lambda: port)
        async with relay.listen(), connect(f"127.0.0.1:{relay.port}") as channel:
            watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            first = await watched.read()
            assert first.status == health_pb2.HealthCheckResponse.SERVING
            with relay.cut(to=True, back=True):
                started = asyncio.get_running_loop().time()
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    async with asyncio.timeout(45):
                        await watched.read()
                assert asyncio.get_running_loop().time() - started < 35
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_peer_that_comes_later_is_found(
    unused_tcp_port_factory: Callable[[], int],
) -> None:
    port = unused_tcp_port_factory()
    waiting = asyncio.create_task(healthy(port, wait=True))
    await asyncio.sleep(0.5)
    async with serving(port):
        assert await waiting
