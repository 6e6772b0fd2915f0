"""Swaps under load, and the same load without: what was seen, and the figures made of it."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import nats
import numpy as np

from benchmarks.hot_swap_service import Service
from benchmarks.hot_swap_streams import Streams
from benchmarks.intervals import Estimate, estimate, median, quantile_ratio
from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.bus.jetstream import JetStreamBus
from tuneloop.policies import WeightsReference
from tuneloop.rpc.channel import connect
from tuneloop.v1 import generation_pb2, generation_pb2_grpc

WARM_UP_SECONDS = 8.0
AFTER_SECONDS = 1.0
"""What comes within this time after a switch still counts as around it."""
START_SECONDS = 240.0
QUANTILES = {"p50": 0.5, "p99": 0.99}


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """One change of the routing table, as its publisher and the clients saw it."""

    seconds: float
    """From the new entry in the routing table to the notice that the version serves."""
    pause_seconds: float
    """In which no token could be sampled, as the service measured it."""
    resume_seconds: float
    """From the end of that to the first token of a request that waited; full weights only."""
    gaps: tuple[float, ...]
    """Of all streams, from the new entry to `AFTER_SECONDS` after the switch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A slice with swaps and one without, next to each other."""

    swaps: tuple[Swap, ...]
    still: tuple[float, ...]
    """Gaps without any swap."""

    @property
    def around(self) -> list[float]:
        return [gap for swap in self.swaps for gap in swap.gaps]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to measure."""

    rounds: int
    swaps: int
    """In each round."""
    every_seconds: float
    """From one swap to the next."""
    still_seconds: float
    """Of each slice without swaps."""
    streams: int = 8


@dataclass(slots=True)
class Switch:
    """Changes the routing table, and hears when the change has been made."""

    bus: JetStreamBus
    service: Service
    activated: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    revision: int | None = None

    async def to(self, reference: WeightsReference) -> None:
        """Make a version serve; returns when it does."""
        entry = await self.bus.set_routing(
            subjects.stable_policy_key("tuneloop"),
            wire.encode_routing(reference),
            revision=self.revision,
        )
        self.revision = entry.revision
        async with asyncio.timeout(120):
            while await self.activated.get() != reference.policy_version:
                pass

    async def heard(self, message: Any) -> None:
        self.activated.put_nowait(wire.decode_activation(message.data).policy_version)


async def measure(service: Service, plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the load through all rounds; the figures."""
    async with connect(service.address) as channel, switch_of(service) as switch:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        await wait_until_serving(stub)
        versions = turns(service.versions, plan.rounds * plan.swaps + 1)
        await switch.to(versions[0])
        say(f"{service.kind.value}: measuring")
        async with Streams(stub, plan.streams) as streams:
            await streams.warm_up(WARM_UP_SECONDS)
            started, tokens = time.perf_counter(), streams.tokens
            rounds = []
            for number in range(plan.rounds):
                first = 1 + number * plan.swaps
                chosen = versions[first : first + plan.swaps]
                # A B B A …, so that drift of the machine cancels out.
                if number % 2 == 0:
                    swaps = await swapping(switch, streams, chosen, plan)
                    still = await without(streams, plan)
                else:
                    still = await without(streams, plan)
                    swaps = await swapping(switch, streams, chosen, plan)
                rounds.append(Round(swaps=swaps, still=still))
            rate = (streams.tokens - tokens) / (time.perf_counter() - started)
    return figures(rounds, streams) | {"tokens_per_second": rate}


def turns(versions: Sequence[WeightsReference], count: int) -> list[WeightsReference]:
    """`count` versions, beginning again where there are fewer."""
    return [versions[number % len(versions)] for number in range(count)]


async def swapping(
    switch: Switch, streams: Streams, versions: Sequence[WeightsReference], plan: Plan
) -> tuple[Swap, ...]:
    """One swap after the other."""
    swaps = []
    for reference in versions:
        started = time.perf_counter()
        before = await measured(switch.service)
        begun = time.perf_counter()
        await switch.to(reference)
        done = time.perf_counter()
        await asyncio.sleep(max(AFTER_SECONDS, started + plan.every_seconds - done))
        gaps = tuple(gap.seconds for gap in streams.between(begun, done + AFTER_SECONDS))
        after = await measured(switch.service)
        pause, resume = (after[name] - before[name] for name in ("pause", "resume"))
        swaps.append(
            Swap(seconds=done - begun, pause_seconds=pause, resume_seconds=resume, gaps=gaps)
        )
    return tuple(swaps)


async def without(streams: Streams, plan: Plan) -> tuple[float, ...]:
    """The gaps of the same load."""
    # What the last swap left behind is not this slice's.
    await asyncio.sleep(AFTER_SECONDS)
    started = time.perf_counter()
    await asyncio.sleep(plan.still_seconds)
    return tuple(gap.seconds for gap in streams.between(started, time.perf_counter()))


def figures(rounds: Sequence[Round], streams: Streams) -> dict[str, Any]:
    """What was measured, with 95 % intervals over the rounds."""
    pairs = [(r.around, r.still) for r in rounds]
    usual = float(np.median([gap for r in rounds for gap in r.still]))
    swaps = [swap for r in rounds for swap in r.swaps]
    return {
        "swaps": len(swaps),
        "streams": streams.count,
        "requests": streams.requests,
        "failed": len(streams.failures),
        "failures": sorted(set(streams.failures)),
        "gap_seconds": {
            "around_swaps": spread([around for around, _ in pairs]),
            "no_swap": spread([still for _, still in pairs]),
        },
        "gap_ratio": {name: quantile_ratio(pairs, share) for name, share in QUANTILES.items()},
        "swap_seconds": median([swap.seconds for swap in swaps]),
        "pause_seconds": median([swap.pause_seconds for swap in swaps]),
        # Where nobody waited there is none.
        "resume_seconds": median([s.resume_seconds for s in swaps if s.resume_seconds] or [0.0]),
        "client_stall_seconds": median([max(swap.gaps) - usual for swap in swaps]),
    }


def spread(rounds: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Quantiles of gaps, and the longest."""
    document: dict[str, Any] = {name: quantile(rounds, share) for name, share in QUANTILES.items()}
    every = [gap for gaps in rounds for gap in gaps]
    return document | {"max": max(every), "count": len(every)}


def quantile(rounds: Sequence[Sequence[float]], share: float) -> Estimate:
    """Of all gaps, the rounds being drawn anew."""
    return estimate(list(rounds), lambda drawn: float(np.quantile(np.concatenate(drawn), share)))


@contextlib.asynccontextmanager
async def switch_of(service: Service) -> AsyncIterator[Switch]:
    """The routing table of a service."""
    bus = await JetStreamBus.connect(service.nats_url, name="benchmark", wait=30)
    switch = Switch(bus, service)
    listening = await nats.connect(service.nats_url)
    await listening.subscribe(subjects.weights_activated("tuneloop"), cb=switch.heard)
    try:
        yield switch
    finally:
        await listening.close()
        await bus.close()


async def wait_until_serving(stub: generation_pb2_grpc.GenerationServiceStub) -> None:
    """Until the engine is up; raises `TimeoutError`."""
    async with asyncio.timeout(START_SECONDS):
        while True:
            try:
                await stub.GetPolicy(generation_pb2.GetPolicyRequest(), timeout=5)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.5)
            else:
                return


async def measured(service: Service) -> dict[str, float]:
    """The seconds of all swaps so far, by the metric's name: pause and resume."""
    async with httpx.AsyncClient() as client:
        page = (await client.get(service.metrics_url)).text
    pattern = r"^tuneloop_swap_(pause|resume)_seconds_sum(?:\{.*\})? (\S+)$"
    found = {"pause": 0.0, "resume": 0.0}
    for name, value in re.findall(pattern, page, re.MULTILINE):
        found[name] += float(value)
    return found
