"""Clients of several replicas, and what tells a container's keeper that one of them serves."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from tuneloop.cli.healthcheck import probe_of
from tuneloop.errors import SettingsError
from tuneloop.rpc.channel import connect
from tuneloop.rpc.server import Server
from tuneloop.v1 import reward_pb2, reward_pb2_grpc


class Named(reward_pb2_grpc.RewardServiceServicer):
    """Tells which replica answered, and from which connection it was asked."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.callers: set[str] = set()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.entered = asyncio.Event()

    async def ScoreRollouts(
        self, request: reward_pb2.ScoreRolloutsRequest, context: grpc.aio.ServicerContext
    ) -> reward_pb2.ScoreRolloutsResponse:
        self.callers.add(context.peer())
        self.entered.set()
        await self.go_on.wait()
        return reward_pb2.ScoreRolloutsResponse(reward_model_version=self.number)


async def start(number: int, **options: float) -> tuple[Server, Named]:
    server, named = Server(host="127.0.0.1", port=0, drain_seconds=30, **options), Named(number)
    server.add(reward_pb2_grpc.add_RewardServiceServicer_to_server, named)
    await server.start()
    await server.set_serving(True)
    return server, named


@pytest.fixture
async def replicas() -> AsyncIterator[list[tuple[Server, Named]]]:
    started = [await start(number) for number in (1, 2, 3)]
    yield started
    for server, named in started:
        named.go_on.set()
        await server.stop()


async def ask(stub: reward_pb2_grpc.RewardServiceStub) -> int:
    request = reward_pb2.ScoreRolloutsRequest()
    answer = await stub.ScoreRollouts(request, timeout=30, wait_for_ready=True)
    return int(answer.reward_model_version)


def target(replicas: list[tuple[Server, Named]]) -> str:
    """As a headless service's name resolves: an address for each replica."""
    return "ipv4:" + ",".join(f"127.0.0.1:{server.port}" for server, _ in replicas)


async def test_calls_are_spread_over_replicas(replicas: list[tuple[Server, Named]]) -> None:
    async with connect(target(replicas)) as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        while not all(named.callers for _, named in replicas):
            await ask(stub)
        answered = [await ask(stub) for _ in range(30)]
    assert {number: answered.count(number) for number in (1, 2, 3)} == {1: 10, 2: 10, 3: 10}


async def test_a_replica_that_drains_loses_no_call(replicas: list[tuple[Server, Named]]) -> None:
    leaving, named = replicas[0]
    async with connect(target(replicas)) as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        while not all(other.callers for _, other in replicas):
            await ask(stub)
        named.go_on.clear()
        named.entered.clear()
        calls = [asyncio.create_task(ask(stub)) for _ in range(6)]
        await named.entered.wait()
        stopping = asyncio.create_task(leaving.stop())
        while not stopping.done():
            calls.append(asyncio.create_task(ask(stub)))
            await asyncio.sleep(0.005)
            if len(calls) == 100:
                named.go_on.set()
        assert set(await asyncio.gather(*calls)) == {1, 2, 3}
        assert {await ask(stub) for _ in range(20)} == {2, 3}


async def test_clients_are_sent_to_look_for_new_replicas_and_lose_no_call() -> None:
    server, named = await start(1, connection_age_seconds=0.2)
    async with connect(f"127.0.0.1:{server.port}") as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        while len(named.callers) < 3:
            assert await ask(stub) == 1
    await server.stop()


async def test_a_long_call_outlives_its_connection() -> None:
    server, named = await start(1, connection_age_seconds=0.1)
    async with connect(f"127.0.0.1:{server.port}") as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        named.go_on.clear()
        long = asyncio.create_task(ask(stub))
        await named.entered.wait()
        others = [asyncio.create_task(ask(stub))]
        while len(named.callers) < 3:
            others.append(asyncio.create_task(ask(stub)))
            await asyncio.sleep(0.02)
        assert not long.done()
        named.go_on.set()
        assert await asyncio.gather(long, *others) == [1] * (1 + len(others))
    await server.stop()


async def test_a_grpc_process_is_healthy_once_it_serves() -> None:
    server, _ = await start(1)
    probe = probe_of(["reward"], {"TUNELOOP_REWARD_PORT": str(server.port)})
    assert await probe()
    await server.set_serving(False)
    assert not await probe()
    await server.stop()
    assert not await probe()


async def test_a_gateway_is_healthy_once_it_would_answer() -> None:
    asked: list[bytes] = []
    status = b"503 Service Unavailable"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    probe = probe_of(["gateway"], {"TUNELOOP_GATEWAY_PORT": str(port)})
    assert not await probe()
    status = b"200 OK"
    assert await probe()
    assert asked == [b"GET /readyz HTTP/1.1\r\n"] * 2
    server.close()


@pytest.mark.parametrize(
    ("arguments", "environment", "problem"),
    [
        ([], {}, "usage"),
        (["nats"], {}, "usage"),
        (["learner"], {}, "TUNELOOP_LEARNER_PORT"),
        (["learner"], {"TUNELOOP_LEARNER_PORT": "many"}, "TUNELOOP_LEARNER_PORT"),
    ],
    ids=["nothing", "stranger", "no port", "no number"],
)
def test_what_cannot_be_asked_is_said(
    arguments: list[str], environment: dict[str, str], problem: str
) -> None:
    with pytest.raises(SettingsError, match=problem):
        probe_of(arguments, environment)
