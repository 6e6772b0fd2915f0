"""A canary beside the stable version: who gets it, what happens where it cannot be loaded."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.engine_helpers import make_adapter, make_full_weights
from support.swap_bench import Bench
from support.waiting import until

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.bus.memory import MemoryBus
from tuneloop.errors import CorruptData, InvalidRequest, Unavailable
from tuneloop.generation.outcomes import KEPT, Outcomes
from tuneloop.generation.requests import request_from_proto
from tuneloop.generation.swap.routing import Role, Routing
from tuneloop.policies import CanaryRoute, WeightsKind, WeightsReference
from tuneloop.v1 import generation_pb2, rollout_pb2

USERS = [f"user-{number}" for number in range(400)]


def route(weights: WeightsReference, share: float = 0.25, salt: str = "s") -> CanaryRoute:
    return CanaryRoute(weights=weights, share=share, salt=salt)


def reference(version: int) -> WeightsReference:
    return WeightsReference(
        policy="tuneloop", policy_version=version, uri="u", manifest_sha256="00"
    )


@settings(deadline=None)
@given(st.text(min_size=1, max_size=9), st.floats(0.01, 1), st.integers(1, 99))
def test_a_route_survives_the_table(salt: str, share: float, version: int) -> None:
    found = route(reference(version), share, salt)
    assert wire.decode_canary(wire.encode_canary(found, "tuneloop")) == found
    assert wire.decode_canary(wire.encode_canary(None, "tuneloop")) is None


@pytest.mark.parametrize(
    ("field", "change"),
    [("share", {"share": 1.5}), ("share", {"share": 0.0}), ("salt", {"salt": ""})],
)
def test_a_wrong_route_is_named(field: str, change: dict[str, object]) -> None:
    message = generation_pb2.CanaryRoute(
        weights=wire.weights_to_proto(reference(3)), share=0.5, salt="s"
    )
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(CorruptData, match=field):
        wire.decode_canary(message.SerializeToString())


def test_a_share_is_a_share_and_each_canary_has_users_of_its_own() -> None:
    first, second = (route(reference(1), 0.25, salt) for salt in ("a", "b"))
    taken = {user for user in USERS if first.takes(user)}
    others = {user for user in USERS if second.takes(user)}
    assert 70 <= len(taken) <= 130
    assert 10 <= len(taken & others) <= 45
    wider = route(reference(1), 0.5, "a")
    assert taken < {user for user in USERS if wider.takes(user)}
    assert all(route(reference(1), 1.0).takes(user) for user in USERS)


@pytest.fixture(scope="module")
def adapter(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny_policy, tmp_path_factory.mktemp("adapter"), seed=1)


@pytest.fixture
async def bench(tiny_policy: Path, tmp_path: Path) -> Bench:
    return Bench(tiny_policy, tmp_path)


class Table:
    """The routing table, and a replica that follows it."""

    def __init__(self, bench: Bench, role: Role = "stable") -> None:
        self.bus = MemoryBus()
        self.bench = bench
        self.routing = Routing(self.bus, bench.hot_swap, "tuneloop", role)

    async def set(self, key: str, value: bytes) -> None:
        entry = await self.bus.routing(key)
        await self.bus.set_routing(key, value, revision=entry.revision if entry else None)

    async def set_stable(self, weights: WeightsReference) -> None:
        key = subjects.stable_policy_key("tuneloop")
        await self.set(key, wire.encode_routing(weights))

    async def set_canary(self, found: CanaryRoute | None) -> None:
        key = subjects.canary_policy_key("tuneloop")
        await self.set(key, wire.encode_canary(found, "tuneloop"))

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.routing.run())
        yield
        assert not task.done()
        task.cancel()

    def versions(self) -> dict[str, int]:
        """What each user gets now."""
        found = {}
        for user in USERS[:40]:
            with self.bench.hot_swap.lease(route_by=user) as lease:
                found[user] = lease.policy_version
        return found


async def test_a_share_of_the_users_gets_the_canary_and_keeps_it(
    bench: Bench, adapter: Path
) -> None:
    weights = {v: bench.versions.publish(v, adapter) for v in (1, 2)}
    table = Table(bench)
    async with table.followed():
        await table.set_stable(weights[1])
        await until(lambda: bench.hot_swap.serving == 1)
        found = route(weights[2])
        await table.set_canary(found)
        await until(lambda: bench.engine.adapters == {1, 2})
        versions = table.versions()
        assert versions == {user: 2 if found.takes(user) else 1 for user in versions}
        assert set(versions.values()) == {1, 2}
        assert table.versions() == versions
        # Who names a version gets it; who is nobody's user gets the stable one.
        with bench.hot_swap.lease(2) as pinned, bench.hot_swap.lease() as unrouted:
            assert (pinned.policy_version, unrouted.policy_version) == (2, 1)
        await table.set_canary(None)
        await until(lambda: bench.hot_swap.canary is None)
        assert set(table.versions().values()) == {1}


async def test_a_canary_that_becomes_stable_is_not_loaded_again(
    bench: Bench, adapter: Path
) -> None:
    weights = {v: bench.versions.publish(v, adapter) for v in (1, 2)}
    table = Table(bench)
    async with table.followed():
        await table.set_stable(weights[1])
        await table.set_canary(route(weights[2]))
        await until(lambda: bench.engine.adapters == {1, 2})
        bench.engine.failure = RuntimeError("must not be asked")
        await table.set_stable(weights[2])
        await until(lambda: bench.hot_swap.serving == 2)
        await table.set_canary(None)
        await until(lambda: bench.hot_swap.canary is None)
        assert set(table.versions().values()) == {2}


async def test_while_the_canary_cannot_be_loaded_its_users_get_the_stable_version(
    bench: Bench, adapter: Path
) -> None:
    weights = {v: bench.versions.publish(v, adapter) for v in (1, 2, 3)}
    table = Table(bench)
    async with table.followed():
        await table.set_stable(weights[1])
        await until(lambda: bench.hot_swap.serving == 1)
        bench.engine.failure = Unavailable("not now")
        await table.set_canary(route(weights[2]))
        await until(lambda: bench.hot_swap.canary is not None)
        assert set(table.versions().values()) == {1}
        bench.engine.failure = None
        await until(lambda: set(table.versions().values()) == {1, 2})
        bench.engine.failure = RuntimeError("never")
        await table.set_canary(route(weights[3]))
        await until(lambda: set(table.versions().values()) == {1})


async def test_a_routed_canary_is_not_dropped_and_a_leased_one_neither(
    bench: Bench, adapter: Path
) -> None:
    table = Table(bench)
    canary = bench.versions.publish(9, adapter)
    await table.routing.serve_canary(route(canary))
    lease = bench.hot_swap.lease(9)
    for version in range(1, 5):
        await bench.hot_swap.activate(bench.versions.publish(version, adapter))
    lease.__exit__(None, None, None)
    await asyncio.gather(*bench.hot_swap.tasks)
    assert bench.engine.adapters == {4, 9}
    with bench.hot_swap.lease(9):
        await table.routing.serve_canary(None)
        await bench.hot_swap.activate(bench.versions.publish(5, adapter))
        assert 9 in bench.engine.adapters
    for version in (6, 7):
        await bench.hot_swap.activate(bench.versions.publish(version, adapter))
    await asyncio.gather(*bench.hot_swap.tasks)
    assert 9 not in bench.engine.adapters


async def test_full_weights_have_a_replica_for_the_canary(
    tiny_policy: Path, tmp_path: Path
) -> None:
    folder = make_full_weights(tiny_policy, tmp_path / "full", seed=1)
    tables: dict[Role, Table] = {}
    for role in ("stable", "canary"):
        bench = Bench(tiny_policy, tmp_path / role, WeightsKind.FULL)
        tables[role] = Table(bench, role)
    for role, serves in (("stable", 1), ("canary", 2)):
        table = tables[role]  # type: ignore[index]
        bench = table.bench
        weights = {v: bench.versions.publish(v, folder, kind=WeightsKind.FULL) for v in (1, 2)}
        await table.set_stable(weights[1])
        await table.set_canary(route(weights[2]))
        await table.routing.activate_stable()
        assert bench.hot_swap.serving == serves
        async with table.followed():
            assert set(table.versions().values()) == {serves}
            await table.set_canary(None)
            await until(lambda bench=bench: bench.hot_swap.serving == 1)


def request(**values: object) -> generation_pb2.GenerateRequest:
    message = generation_pb2.GenerateRequest(completion_id="c1", text="Hi", **values)
    message.sampling.max_tokens = 4
    message.sampling.n = 1
    message.sampling.top_p = 1.0
    return message


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"user_hash": "u1"}, "u1"),
        ({"user_hash": "u1", "route_by": "c1"}, "c1"),
        ({}, "c1"),
        ({"user_hash": "u1", "policy_version": 0}, ""),
        ({"user_hash": "u1", "source": rollout_pb2.ROLLOUT_SOURCE_EVAL}, ""),
        ({"user_hash": "u1", "source": rollout_pb2.ROLLOUT_SOURCE_PROMPTS}, ""),
    ],
    ids=["user", "unnamed user", "nobody", "names a version", "eval prompt", "own prompt"],
)
def test_who_is_routed(values: dict[str, object], expected: str) -> None:
    assert request_from_proto(request(**values)).route_by == expected


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (None, (1, 0)),
        (Unavailable("the engine died"), (0, 1)),
        (RuntimeError("a bug"), (0, 1)),
        (InvalidRequest("wrong"), None),
        (asyncio.CancelledError(), None),
        (GeneratorExit(), None),
    ],
    ids=["answered", "unavailable", "bug", "wrong request", "cancelled", "went away"],
)
def test_failures_are_the_service_s_own(
    error: BaseException | None, counts: tuple[int, int] | None
) -> None:
    outcomes = Outcomes()
    with outcomes.count_outcome(7, counts=False):
        pass
    if error is None:
        with outcomes.count_outcome(7, counts=True):
            pass
    else:
        with pytest.raises(type(error)), outcomes.count_outcome(7, counts=True):
            raise error
    found = [(version, (c.answered, c.failed)) for version, c in outcomes.by_version()]
    assert found == ([] if counts is None else [(7, counts)])


def test_only_versions_that_answered_lately_are_counted() -> None:
    outcomes = Outcomes()
    for version in [*range(KEPT), 0, KEPT]:
        with outcomes.count_outcome(version, counts=True):
            pass
    versions = [version for version, _ in outcomes.by_version()]
    assert len(versions) == KEPT
    assert 0 in versions
    assert 1 not in versions
