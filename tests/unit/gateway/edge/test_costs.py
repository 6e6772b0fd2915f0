"""What answers cost: sums by day, key and version, shared by gateways."""

import pytest
from prometheus_client import REGISTRY

from tuneloop.bus.memory import MemoryBus
from tuneloop.errors import Unavailable
from tuneloop.gateway.edge.costs import DAYS, VERSIONS, Cost, Costs, Spender
from tuneloop.gateway.settings import Price

PRICE = Price(input=0.5, output=2.0)


def counted(version: int, key: str) -> float | None:
    labels = {"policy": "costs", "policy_version": str(version), "key": key}
    return REGISTRY.get_sample_value("tuneloop_gateway_cost_total", labels)


def spender(key: str, version: int) -> Spender:
    return Spender(key=key, policy="costs", policy_version=version)


async def test_two_gateways_add_to_the_same_day() -> None:
    bus = MemoryBus()
    one, two = (Costs("costs", PRICE, day=lambda: 100) for _ in range(2))
    one.add("shop", 3, input_tokens=1_000_000, output_tokens=10)
    one.add("shop", 3, output_tokens=490_000)
    one.add("shop", 4, input_tokens=8)
    await one.flush(bus)
    two.add("shop", 3, input_tokens=1_000_000)
    two.add("local", 3, output_tokens=500_000)
    # What the other has not written yet is not there.
    one.add("shop", 4, input_tokens=8)
    found = await two.read(bus, 1)
    assert found == [
        (
            100,
            spender("shop", 3),
            Cost(input_tokens=2_000_000, output_tokens=490_010, cost=pytest.approx(1.98002)),
        ),
        (100, spender("shop", 4), Cost(input_tokens=8, cost=pytest.approx(4e-6))),
        (100, spender("local", 3), Cost(output_tokens=500_000, cost=1.0)),
    ]
    assert counted(3, "shop") == pytest.approx(1.98002)


async def test_days_are_apart_and_end() -> None:
    bus, day = MemoryBus(), 100
    costs = Costs("costs", PRICE, day=lambda: day)
    for day in (100, 101, 100 + DAYS):
        costs.add("shop", 1, input_tokens=day)
        found = await costs.read(bus, DAYS)
    # The first day's entry is the last one's now.
    assert [(of_day, used.input_tokens) for of_day, _, used in found] == [(131, 131), (101, 101)]
    assert [of_day for of_day, _, _ in await costs.read(bus, 1)] == [131]


async def test_while_the_bus_is_away_nothing_is_lost() -> None:
    bus, costs = MemoryBus(), Costs("costs", PRICE)
    costs.add("shop", 1, input_tokens=1)
    bus.go_down()
    with pytest.raises(Unavailable):
        await costs.flush(bus)
    costs.add("shop", 1, input_tokens=2)
    bus.come_back()
    [(_, _, used)] = await costs.read(bus, 1)
    assert used.input_tokens == 3


async def test_without_a_price_nothing_is_counted() -> None:
    bus, costs = MemoryBus(), Costs("costs", None)
    costs.add("free", 1, input_tokens=1)
    assert await costs.read(bus, DAYS) == []
    assert counted(1, "free") is None


def test_only_the_latest_versions_have_a_metric() -> None:
    costs = Costs("costs", PRICE)
    for version in range(VERSIONS):
        costs.add("many", version, output_tokens=1)
    costs.add("many", 0, output_tokens=1)
    costs.add("many", VERSIONS, output_tokens=1)
    assert counted(0, "many") == pytest.approx(4e-6)
    assert counted(1, "many") is None
    assert counted(VERSIONS, "many") == pytest.approx(2e-6)
