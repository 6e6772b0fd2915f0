"""The gateway sends the canary's users to the replica that serves it, and nobody in vain."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from support.gateway_fakes import FakeGeneration
from support.gateway_stack import Stack, running_gateway, serve

from tuneloop import wire
from tuneloop.bus.subjects import canary_policy_key
from tuneloop.errors import InvalidRequest, Overloaded, Unavailable
from tuneloop.policies import CanaryRoute, WeightsReference
from tuneloop.rpc.server import Server
from tuneloop.v1 import generation_pb2_grpc

ROUTE = CanaryRoute(
    weights=WeightsReference(policy="tuneloop", policy_version=7, uri="u", manifest_sha256="00"),
    share=0.4,
    salt="s",
)
USERS = [f"user-{number}" for number in range(30)]


class Replicas:
    """The gateway over a stable and a canary replica."""

    def __init__(self, stack: Stack, canary: FakeGeneration, server: Server) -> None:
        self.stack = stack
        self.canary = canary
        self.server = server
        self.http = httpx.AsyncClient(base_url=stack.url, timeout=20)

    async def set_route(self, route: CanaryRoute | None) -> None:
        key = canary_policy_key("tuneloop")
        entry = await self.stack.bus.routing(key)
        value = wire.encode_canary(route, "tuneloop")
        await self.stack.bus.set_routing(key, value, revision=entry.revision if entry else None)
        await asyncio.sleep(0.05)

    async def chat(self, user: str | None, **body: Any) -> int:
        """The version that answers."""
        named = {} if user is None else {"user": user}
        messages = [{"role": "user", "content": "hi"}]
        answer = await self.http.post(
            "/v1/chat/completions",
            json={"model": "tuneloop", "messages": messages, **named, **body},
        )
        assert answer.status_code == 200, answer.text
        return int(answer.json()["policy_version"])


@pytest.fixture
async def replicas() -> AsyncIterator[Replicas]:
    canary = FakeGeneration(policy_version=7)
    server = await serve(generation_pb2_grpc.add_GenerationServiceServicer_to_server, canary)
    async with running_gateway(canary_address=f"127.0.0.1:{server.port}") as stack:
        found = Replicas(stack, canary, server)
        async with found.http:
            yield found
    await server.stop()


async def test_a_share_of_the_users_gets_the_canary_s_replica(replicas: Replicas) -> None:
    assert {await replicas.chat(user) for user in USERS[:5]} == {3}
    await replicas.set_route(ROUTE)
    versions = {user: await replicas.chat(user) for user in USERS}
    assert set(versions.values()) == {3, 7}
    assert {user: await replicas.chat(user) for user in USERS} == versions
    for request in replicas.canary.requests:
        assert request.route_by == request.user_hash
        assert ROUTE.takes(request.route_by)
    assert {await replicas.chat(user, policy_version=3) for user in USERS[:10]} == {3}
    await replicas.set_route(None)
    assert {await replicas.chat(user) for user in USERS[:10]} == {3}


async def test_who_has_no_name_is_routed_request_by_request(replicas: Replicas) -> None:
    await replicas.set_route(ROUTE)
    assert {await replicas.chat(None) for _ in range(25)} == {3, 7}
    requests = [*replicas.canary.requests, *replicas.stack.generation.requests]
    assert {request.route_by == request.completion_id for request in requests} == {True}


async def test_a_canary_s_replica_that_is_away_is_not_missed(replicas: Replicas) -> None:
    await replicas.set_route(ROUTE)
    for problem in (Unavailable("draining"), Overloaded("too many")):
        replicas.canary.fail = problem
        assert {await replicas.chat(user) for user in USERS} == {3}
    await replicas.server.stop()
    assert {await replicas.chat(user) for user in USERS} == {3}


async def test_an_answer_that_has_begun_is_not_begun_again(replicas: Replicas) -> None:
    await replicas.set_route(CanaryRoute(weights=ROUTE.weights, share=1.0, salt="s"))
    body = {"model": "tuneloop", "messages": [{"role": "user", "content": "hi"}], "user": "u"}
    replicas.canary.fail, replicas.canary.fail_after = Unavailable("died"), 2
    answer = await replicas.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 503
    replicas.canary.fail, replicas.canary.fail_after = InvalidRequest("no"), 0
    answer = await replicas.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert replicas.stack.generation.requests == []


async def test_what_serves_names_the_canary() -> None:
    async with running_gateway() as stack, httpx.AsyncClient(base_url=stack.url) as http:
        assert (await http.get("/v1/policies")).json()["serving"]["canary"] is None
        stack.generation.canary = (7, 0.25, True)
        assert (await http.get("/v1/policies")).json()["serving"]["canary"] == {
            "policy_version": 7,
            "share": 0.25,
            "loaded": True,
        }
