"""Sessions and the replicas of generation: one replica for each, and few that ever move."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.gateway_fakes import SECRET, FakeGeneration
from support.gateway_stack import running_gateway

from tuneloop.gateway.replicas import GenerationReplicas
from tuneloop.gateway.settings import GatewaySettings
from tuneloop.rpc.channel import session_metadata
from tuneloop.rpc.server import Server
from tuneloop.v1 import generation_pb2, generation_pb2_grpc

SESSIONS = [f"session {number}" for number in range(120)]


@dataclass
class Replica:
    """A generation server that answers with its number as the policy's version."""

    generation: FakeGeneration
    server: Server

    async def restart(self) -> None:
        self.server = await start(self.generation, self.server.port)


async def start(generation: FakeGeneration, port: int = 0) -> Server:
    server = Server(host="127.0.0.1", port=port, drain_seconds=10)
    server.add(generation_pb2_grpc.add_GenerationServiceServicer_to_server, generation)
    await server.start()
    await server.set_serving(True)
    return server


@pytest.fixture
async def started() -> AsyncIterator[list[Replica]]:
    fakes = [FakeGeneration(pieces=("word",), policy_version=number) for number in range(3)]
    found = [Replica(generation=fake, server=await start(fake)) for fake in fakes]
    yield found
    for replica in found:
        await replica.server.stop()


@pytest.fixture
async def replicas(started: list[Replica]) -> AsyncIterator[GenerationReplicas]:
    # As a headless service's name resolves: an address for each replica.
    target = "ipv4:" + ",".join(f"127.0.0.1:{replica.server.port}" for replica in started)
    found = GenerationReplicas(GatewaySettings(generation_address=target, secret=SECRET))
    yield found
    await found.close()


async def ask(replicas: GenerationReplicas, session_id: str = "") -> int:
    """Return the number of the replica that answers."""
    request = generation_pb2.GenerateRequest(completion_id="c", text="a")
    request.sampling.n = 1
    call = await replicas.generate(request, route_by=session_id)
    (number,) = [e.delta.policy_version async for e in call if e.HasField("delta")]
    return int(number)


async def ask_all(
    replicas: GenerationReplicas, sessions: Iterable[str] = SESSIONS
) -> Mapping[str, int]:
    return {session: await ask(replicas, session) for session in sessions}


async def test_a_session_has_one_replica_and_each_replica_its_share(
    replicas: GenerationReplicas,
) -> None:
    first = await ask_all(replicas)
    assert await ask_all(replicas) == first
    counts = Counter(first.values())
    # A third each; ports are drawn, so shares vary: by 5 points with 40 sessions.
    assert all(counts[number] > len(SESSIONS) / 9 for number in range(3))


async def test_the_replica_that_has_candidates_hears_of_the_choice(
    started: list[Replica], replicas: GenerationReplicas
) -> None:
    for group in SESSIONS:
        number = await ask(replicas, group)
        choice = generation_pb2.ChooseCandidateRequest(group_id=group, completion_id=group)
        await replicas.choose(choice, route_by=group)
        assert started[number].generation.choices[-1].group_id == group


async def test_another_gateway_sends_a_session_to_the_same_replica(
    started: list[Replica], replicas: GenerationReplicas
) -> None:
    target = "ipv4:" + ",".join(f"127.0.0.1:{r.server.port}" for r in reversed(started))
    other = GenerationReplicas(GatewaySettings(generation_address=target, secret=SECRET))
    assert await ask_all(other, SESSIONS[:40]) == await ask_all(replicas, SESSIONS[:40])
    await other.close()


async def test_only_the_sessions_of_a_replica_that_stops_move_and_they_come_back(
    started: list[Replica], replicas: GenerationReplicas
) -> None:
    before = await ask_all(replicas)
    await started[1].server.stop()
    meanwhile = await ask_all(replicas)
    assert set(meanwhile.values()) == {0, 2}
    assert {s: n for s, n in before.items() if n != meanwhile[s]} == {
        s: n for s, n in before.items() if n == 1
    }
    await started[1].restart()
    async with asyncio.timeout(30):
        while await ask_all(replicas) != before:
            await asyncio.sleep(0.2)


async def test_a_replica_that_drains_loses_no_call(
    started: list[Replica], replicas: GenerationReplicas
) -> None:
    before = await ask_all(replicas)
    its = [session for session, number in before.items() if number == 0][:5]
    started[0].generation.first_delay = 0.3
    calls = [asyncio.create_task(ask(replicas, session)) for session in its]
    await asyncio.sleep(0.1)
    stopping = asyncio.create_task(started[0].server.stop())
    while not stopping.done():
        calls += [asyncio.create_task(ask(replicas, session)) for session in its]
        await asyncio.sleep(0.05)
    assert set(await asyncio.gather(*calls)) <= {0, 1, 2}
    assert set((await ask_all(replicas, its)).values()) <= {1, 2}


async def test_calls_without_a_session_go_to_the_replicas_in_turn(
    replicas: GenerationReplicas,
) -> None:
    while {await ask(replicas) for _ in range(3)} != {0, 1, 2}:
        pass
    assert Counter([await ask(replicas) for _ in range(30)]) == {0: 10, 1: 10, 2: 10}
    assert len(replicas._channels) == 1


async def test_a_single_address_has_a_single_channel(started: list[Replica]) -> None:
    address = f"127.0.0.1:{started[2].server.port}"
    replicas = GenerationReplicas(GatewaySettings(generation_address=address, secret=SECRET))
    assert {await ask(replicas, session) for session in ("", "a", "b")} == {2}
    assert len(replicas._channels) == 1
    await replicas.close()


@given(st.text(min_size=1, max_size=128), st.text(min_size=1, max_size=128))
def test_any_id_is_a_header_of_its_own(one: str, other: str) -> None:
    ((key, value),) = session_metadata(one)
    assert key.islower()
    assert value.isascii()
    assert value.isalnum()
    assert len(value) == 32
    assert (session_metadata(other) == session_metadata(one)) == (one == other)


async def test_the_turns_of_a_chat_are_answered_by_one_replica(started: list[Replica]) -> None:
    target = "ipv4:" + ",".join(f"127.0.0.1:{replica.server.port}" for replica in started)
    chat = {"model": "tuneloop", "messages": [{"role": "user", "content": "hello"}]}
    async with (
        running_gateway(generation_address=target) as stack,
        httpx.AsyncClient(base_url=stack.url) as client,
    ):

        async def versions(**fields: str) -> set[int]:
            answers = [
                await client.post("/v1/chat/completions", json=chat | fields) for _ in "123456"
            ]
            return {answer.json()["policy_version"] for answer in answers}

        while len(await versions()) < 3:
            pass
        found = [await versions(session_id=session) for session in SESSIONS[:8]]
    assert {len(of_session) for of_session in found} == {1}
    assert set().union(*found) > {next(iter(found[0]))}
