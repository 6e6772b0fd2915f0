"""The gateway on a real socket, over fakes on real grpc.aio servers: the tests' fixture `stack`."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from support.gateway_fakes import SECRET, FakeGeneration, FakeLearner, FakeReward

from tuneloop.bus.memory import MemoryBus
from tuneloop.gateway.app import create_app
from tuneloop.gateway.settings import GatewaySettings
from tuneloop.rpc.server import Server
from tuneloop.v1 import generation_pb2_grpc, learner_pb2_grpc, reward_pb2_grpc


@dataclass
class Stack:
    """The gateway with everything behind it."""

    url: str
    generation: FakeGeneration
    reward: FakeReward
    learner: FakeLearner
    bus: MemoryBus
    servers: dict[str, Server]
    settings: GatewaySettings


async def serve(register: Any, servicer: Any) -> Server:
    server = Server(host="127.0.0.1", port=0, drain_seconds=0.1)
    server.add(register, servicer)
    await server.start()
    await server.set_serving(True)
    return server


class PromptServer(uvicorn.Server):
    """uvicorn looks ten times a second whether to stop; many tests cannot wait for that."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ended = asyncio.Event()

    async def main_loop(self) -> None:
        await self.ended.wait()


@asynccontextmanager
async def running_gateway(
    *,
    learner: Callable[[], FakeLearner] = FakeLearner,
    bus: MemoryBus | None = None,
    **overrides: Any,
) -> AsyncIterator[Stack]:
    """Start the gateway under uvicorn on a free port, over fakes; `overrides` are its settings."""
    generation, reward, fake_learner = FakeGeneration(), FakeReward(), learner()
    servers = {
        "generation": await serve(
            generation_pb2_grpc.add_GenerationServiceServicer_to_server, generation
        ),
        "reward": await serve(reward_pb2_grpc.add_RewardServiceServicer_to_server, reward),
        "learner": await serve(learner_pb2_grpc.add_LearnerServiceServicer_to_server, fake_learner),
    }
    values: dict[str, Any] = {
        "port": 0,
        "secret": SECRET,
        **{f"{name}_address": f"127.0.0.1:{server.port}" for name, server in servers.items()},
        **overrides,
    }
    settings = GatewaySettings(**values)
    bus = bus or MemoryBus()
    config = uvicorn.Config(
        create_app(settings, bus),
        host="127.0.0.1",
        port=0,
        proxy_headers=False,
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    web = PromptServer(config)
    running = asyncio.create_task(web.serve())
    while not web.started:
        assert not running.done(), "uvicorn did not start"
        await asyncio.sleep(0.01)
    port = web.servers[0].sockets[0].getsockname()[1]
    try:
        yield Stack(
            url=f"http://127.0.0.1:{port}",
            generation=generation,
            reward=reward,
            learner=fake_learner,
            bus=bus,
            servers=servers,
            settings=settings,
        )
    finally:
        web.ended.set()
        await running
        for server in servers.values():
            await server.stop()


@contextmanager
def gateway_in_thread(**overrides: Any) -> Iterator[Stack]:
    """Do as `running_gateway` in another thread, for programs and blocking clients."""
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


@asynccontextmanager
async def gateway_of_test(request: pytest.FixtureRequest) -> AsyncIterator[Stack]:
    """Run the gateway that the fixture `stack` gives a test.

    `@pytest.mark.gateway(...)` on a test or a module has arguments of `running_gateway`.
    """
    marker = request.node.get_closest_marker("gateway")
    async with running_gateway(**(marker.kwargs if marker else {})) as stack:
        yield stack
