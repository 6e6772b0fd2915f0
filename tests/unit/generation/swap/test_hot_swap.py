"""Versions come, serve, are held and go; whatever is wrong changes nothing."""

import asyncio
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from support.engine_helpers import make_adapter, make_full_weights
from support.swap_bench import Bench, base_reference
from support.waiting import until

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.bus.memory import MemoryBus
from tuneloop.errors import (
    FailedPrecondition,
    NotFound,
    TuneloopError,
    Unavailable,
    WeightsRefused,
)
from tuneloop.generation.swap.resumption import durations
from tuneloop.generation.swap.routing import Routing
from tuneloop.policies import WeightsKind, WeightsReference
from tuneloop.weights.files import sha256_of


@pytest.fixture(scope="module")
def adapter(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny_policy, tmp_path_factory.mktemp("adapter"), seed=1)


@pytest.fixture
async def bench(tiny_policy: Path, tmp_path: Path) -> Bench:
    return Bench(tiny_policy, tmp_path)


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_a_version_serves_after_it_was_loaded_and_the_news_is_told(
    bench: Bench, adapter: Path
) -> None:
    told = datetime.now(UTC) - timedelta(seconds=30)
    reference = bench.versions.publish(1, adapter, oldest_feedback_time=told)
    before = sample("tuneloop_feedback_to_serving_seconds_count")
    swap = await bench.hot_swap.activate(reference)
    assert swap.policy_version == bench.hot_swap.serving == 1
    assert bench.engine.adapters == {1}
    assert [a.policy_version for a in bench.activations] == [1]
    assert sample("tuneloop_policy_version", policy="tuneloop") == 1
    assert sample("tuneloop_feedback_to_serving_seconds_count") == before + 1
    # Going back and forth is no new learning.
    await bench.hot_swap.activate(base_reference())
    await bench.hot_swap.activate(reference)
    assert sample("tuneloop_feedback_to_serving_seconds_count") == before + 1
    assert [a.policy_version for a in bench.activations] == [1, 0, 1]


async def test_a_request_keeps_its_version_until_it_ends(bench: Bench, adapter: Path) -> None:
    references = {v: bench.versions.publish(v, adapter) for v in range(1, 5)}
    await bench.hot_swap.activate(references[1])
    with bench.hot_swap.lease() as lease:
        assert lease.policy_version == 1
        for version in (2, 3, 4):
            await bench.hot_swap.activate(references[version])
        assert 1 in bench.engine.adapters
        with bench.hot_swap.lease(1) as pinned:
            assert pinned.policy_version == 1
    await asyncio.gather(*bench.hot_swap.tasks)
    assert len(bench.engine.adapters) == 2
    assert 4 in bench.engine.adapters
    assert all(loaded.leases == 0 for loaded in bench.hot_swap.loaded_versions())


async def test_a_version_that_is_not_loaded_cannot_be_leased(bench: Bench) -> None:
    with pytest.raises(NotFound, match="version 7"):
        bench.hot_swap.lease(7)


async def test_versions_in_use_are_never_dropped_for_a_new_one(bench: Bench, adapter: Path) -> None:
    leases = []
    for version in range(1, 5):
        await bench.hot_swap.activate(bench.versions.publish(version, adapter))
        leases.append(bench.hot_swap.lease())
    with pytest.raises(Unavailable, match="in use"):
        await bench.hot_swap.activate(bench.versions.publish(5, adapter))
    assert bench.hot_swap.serving == 4
    assert bench.engine.adapters == {1, 2, 3, 4}
    for lease in leases:
        lease.__exit__(None, None, None)
        lease.__exit__(None, None, None)  # releasing twice counts once
    await bench.hot_swap.activate(bench.versions.publish(5, adapter))
    assert bench.hot_swap.serving == 5


async def test_going_back_to_a_version_in_memory_loads_nothing(bench: Bench, adapter: Path) -> None:
    first, second = (bench.versions.publish(v, adapter) for v in (1, 2))
    await bench.hot_swap.activate(first)
    await bench.hot_swap.activate(second)
    bench.engine.failure = RuntimeError("must not be asked")
    await bench.hot_swap.activate(first)
    assert bench.hot_swap.serving == 1


@pytest.mark.parametrize(
    ("by", "spoil"),
    [
        ("store", "hash"),
        ("store", "signature"),
        ("check", "base"),
        ("check", "shape"),
        ("check", "kind"),
        ("engine", "engine"),
    ],
)
async def test_what_is_wrong_is_refused_counted_and_changes_nothing(
    bench: Bench, adapter: Path, tiny_policy: Path, tmp_path: Path, by: str, spoil: str
) -> None:
    await bench.hot_swap.activate(bench.versions.publish(1, adapter))
    reference = spoiled(bench, adapter, tiny_policy, tmp_path, spoil)
    before = sample("tuneloop_swaps_refused_total", by=by)
    with pytest.raises(WeightsRefused):
        await bench.hot_swap.activate(reference)
    assert sample("tuneloop_swaps_refused_total", by=by) == before + 1
    assert bench.hot_swap.serving == 1
    assert bench.engine.adapters == {1}


def spoiled(bench: Bench, adapter: Path, base: Path, tmp_path: Path, what: str) -> WeightsReference:
    """A reference to a version 2 that is wrong in one way."""
    if what == "shape":
        return bench.versions.publish(2, make_adapter(base, tmp_path / "big", seed=2, rank=17))
    if what == "kind":
        full = make_full_weights(base, tmp_path / "full", seed=2)
        return bench.versions.publish(2, full, kind=WeightsKind.FULL)
    if what == "base":
        other = tmp_path / "other-base"
        other.mkdir()
        (other / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
        config = json.loads((base / "config.json").read_text())
        (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
        return bench.versions.publish(2, adapter, base=other)
    reference = bench.versions.publish(2, adapter)
    if what == "engine":
        bench.engine.failure = RuntimeError("no room")
    if what == "hash":
        weights = Path(bench.versions.uri) / "tuneloop/00000002/adapter_model.safetensors"
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(bytes(data))
    if what == "signature":
        manifest = Path(bench.versions.uri) / "tuneloop/00000002/manifest.json"
        manifest.write_text(
            manifest.read_text().replace('"base_model": "tiny"', '"base_model": "x"')
        )
    return reference


async def test_full_weights_replace_each_other_under_leases(
    tiny_policy: Path, tmp_path: Path
) -> None:
    bench = Bench(tiny_policy, tmp_path, WeightsKind.FULL)
    folder = make_full_weights(tiny_policy, tmp_path / "full", seed=1)
    reference = bench.versions.publish(1, folder, kind=WeightsKind.FULL)
    with bench.hot_swap.lease():
        swap = await bench.hot_swap.activate(reference)
        assert swap.pause_seconds == 0.5
        assert bench.engine.hashes == {
            path.name: sha256_of(path) for path in folder.iterdir() if path.name != "README.md"
        }
        assert [v.policy_version for v in bench.hot_swap.loaded_versions()] == [1]
    assert [v.leases for v in bench.hot_swap.loaded_versions()] == [0]
    await bench.hot_swap.activate(base_reference())
    assert bench.engine.full == bench.hot_swap.serving == 0
    with pytest.raises(FailedPrecondition):
        await bench.hot_swap.load(reference)


async def test_the_first_token_after_a_pause_is_timed_once(
    tiny_policy: Path, tmp_path: Path
) -> None:
    bench = Bench(tiny_policy, tmp_path, WeightsKind.FULL)
    folder = make_full_weights(tiny_policy, tmp_path / "full", seed=1)
    reference = bench.versions.publish(1, folder, kind=WeightsKind.FULL)
    name = "tuneloop_swap_resume_seconds_count"
    before = sample(name)
    resumption = bench.hot_swap.resumption
    with bench.hot_swap.lease() as waiting, bench.hot_swap.lease() as another:
        resumption.record_token(waiting.live)
        assert sample(name) == before
        await bench.hot_swap.activate(reference)
        with bench.hot_swap.lease() as later:
            resumption.record_token(later.live)
            assert sample(name) == before
        for lease in (waiting, another, waiting):
            resumption.record_token(lease.live)
            assert sample(name) == before + 1


def test_durations_are_told_in_units_in_which_they_are_not_zero() -> None:
    told = ["none", "0.012 ms", "12.3 ms", "260 ms", "1.00 s", "4.40 s"]
    assert durations(0.0, 0.000012, 0.0123, 0.26, 0.9999, 4.4) == told


async def test_a_swap_is_carried_through_when_its_caller_goes_away(
    bench: Bench, adapter: Path
) -> None:
    reference = bench.versions.publish(1, adapter)
    bench.engine.gate.clear()
    caller = asyncio.create_task(bench.hot_swap.activate(reference))
    await asyncio.sleep(0.05)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    bench.engine.gate.set()
    await asyncio.gather(*bench.hot_swap.tasks)
    assert bench.hot_swap.serving == 1


async def set_stable(bus: MemoryBus, data: bytes) -> None:
    key = subjects.stable_policy_key("tuneloop")
    entry = await bus.routing(key)
    await bus.set_routing(key, data, revision=entry.revision if entry else None)


async def until_serving(bench: Bench, version: int) -> None:
    await until(lambda: bench.hot_swap.serving == version)


async def test_routing_follows_the_table_and_survives_what_is_wrong_in_it(
    bench: Bench, adapter: Path, tiny_policy: Path, tmp_path: Path
) -> None:
    bus = MemoryBus()
    references = {v: bench.versions.publish(v, adapter) for v in (1, 3)}
    bad = spoiled(bench, adapter, tiny_policy, tmp_path, "hash")
    await set_stable(bus, wire.encode_routing(references[1]))
    routing = Routing(bus, bench.hot_swap, "tuneloop")
    await routing.activate_stable()
    assert bench.hot_swap.serving == 1
    task = asyncio.create_task(routing.run())
    for data in (b"\xff not a message", wire.encode_routing(bad)):
        await set_stable(bus, data)
        await asyncio.sleep(0.05)
    await set_stable(bus, wire.encode_routing(references[3]))
    await until_serving(bench, 3)
    await set_stable(bus, wire.encode_routing(base_reference()))
    await until_serving(bench, 0)
    assert not task.done()
    task.cancel()


async def test_routing_tries_what_is_unavailable_until_a_newer_version_comes(
    bench: Bench, adapter: Path
) -> None:
    bus = MemoryBus()
    references = {v: bench.versions.publish(v, adapter) for v in (1, 2)}
    bench.engine.failure = Unavailable("not now")
    task = asyncio.create_task(Routing(bus, bench.hot_swap, "tuneloop").run())
    await set_stable(bus, wire.encode_routing(references[1]))
    await asyncio.sleep(0.1)
    assert bench.hot_swap.serving == 0
    bench.engine.failure = None
    await set_stable(bus, wire.encode_routing(references[2]))
    await until_serving(bench, 2)
    assert 2 in bench.engine.adapters
    task.cancel()


async def test_without_the_bus_the_base_model_serves(bench: Bench) -> None:
    bus = MemoryBus()
    bus.go_down()
    await Routing(bus, bench.hot_swap, "tuneloop").activate_stable()
    assert bench.hot_swap.serving == 0


def test_a_routing_entry_must_name_a_policy() -> None:
    with pytest.raises(TuneloopError, match="policy"):
        wire.decode_routing(b"")


async def test_other_weights_of_the_same_number_are_loaded_while_the_old_ones_are_in_use(
    bench: Bench, adapter: Path, tiny_policy: Path, tmp_path: Path
) -> None:
    old = bench.versions.publish(1, adapter)
    await bench.hot_swap.activate(old)
    with bench.hot_swap.lease() as running:
        shutil.rmtree(tmp_path / "store" / "tuneloop" / "00000001")
        restored = bench.versions.publish(1, make_adapter(tiny_policy, tmp_path / "again", seed=9))
        assert restored.manifest_sha256 != old.manifest_sha256
        await bench.hot_swap.activate(restored)
        with bench.hot_swap.lease() as fresh:
            assert fresh.policy_version == running.policy_version == 1
            assert fresh.live.adapter != running.live.adapter
            assert bench.engine.adapters == {running.live.adapter, fresh.live.adapter}
            kept = fresh.live.adapter
    await until(lambda: bench.engine.adapters == {kept})
    # What was loaded as the old one may still be computed from somewhere: it keeps its number.
    await bench.hot_swap.load(bench.versions.publish(2, adapter))
    assert bench.engine.adapters == {kept, 2}


async def test_full_weights_of_the_same_number_are_replaced(
    tiny_policy: Path, tmp_path: Path
) -> None:
    bench = Bench(tiny_policy, tmp_path, WeightsKind.FULL)
    first = make_full_weights(tiny_policy, tmp_path / "first", seed=1)
    await bench.hot_swap.activate(bench.versions.publish(1, first, kind=WeightsKind.FULL))
    shutil.rmtree(tmp_path / "store" / "tuneloop" / "00000001")
    second = make_full_weights(tiny_policy, tmp_path / "second", seed=2)
    swap = await bench.hot_swap.activate(bench.versions.publish(1, second, kind=WeightsKind.FULL))
    assert swap.pause_seconds == 0.5
    assert [a.policy_version for a in bench.activations] == [1, 1]
