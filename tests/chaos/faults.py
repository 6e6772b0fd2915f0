"""What is done to the service: each fault begins, lasts, and waits until all is well again."""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from support.small_disk import SmallDisk

from tuneloop.supervisor.child import ServiceChild
from tuneloop.supervisor.data_dir import is_alive
from tuneloop.supervisor.process import FAILED_CHECKS, FAILING_SECONDS

if TYPE_CHECKING:
    from chaos.clocks import Clocks
    from chaos.partitions import Relay

PROCESSES = ("nats", "generation", "reward", "learner", "gateway")
RECOVERY_SECONDS = 300.0
PAST_ACK_WAIT = 65.0
"""Longer than any consumer's ack_wait (60 s)."""
SHORT_FREEZE = 4.0
DISK_FULL_SECONDS = 12.0
RECONNECT_SECONDS = 2.0
"""Within which everybody has found a nats-server again that is up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """When something was down or frozen; times are of `time.monotonic`."""

    what: str
    start: float
    end: float


@dataclass(slots=True)
class Stage:
    """The service, and what has been done to it."""

    service: ServiceChild
    disk: SmallDisk | None
    """The one its data is on, where one of a small size could be had."""
    chance: random.Random
    relays: dict[str, "Relay"] = field(default_factory=dict)
    """The networks that can be cut, by who uses them."""
    clocks: "Clocks | None" = None
    """What sets the processes' clocks, where that could be built."""
    lost_feedback: set[str] = field(default_factory=set)
    """Ids that only a stream held, which was then deleted."""
    outages: list[Outage] = field(default_factory=list)
    done: list[str] = field(default_factory=list)

    def processes(self) -> dict[str, Any]:
        """What runs now, by name."""
        found: dict[str, Any] = self.service.run_state()["processes"]
        return found

    def signal(self, name: str, number: signal.Signals) -> int:
        """Send a signal to one process; its id."""
        pid = int(self.processes()[name]["pid"])
        os.kill(pid, number)
        return pid

    @contextlib.asynccontextmanager
    async def outage(self, *what: str) -> AsyncIterator[None]:
        """Note that these are down from here to the end of the block."""
        start = time.monotonic()
        try:
            yield
            if "nats" in what:
                await asyncio.sleep(RECONNECT_SECONDS)
        finally:
            end = time.monotonic()
            self.outages += [Outage(what=name, start=start, end=end) for name in what]

    async def until_ready(self, names: Iterable[str], other_than: Iterable[int] = ()) -> None:
        """Wait until these run, under new ids, and are ready; raises `TimeoutError`."""
        old, wanted, state = set(other_than), list(names), {}
        try:
            async with asyncio.timeout(RECOVERY_SECONDS):
                while True:
                    with contextlib.suppress(FileNotFoundError, ValueError):
                        state = self.processes()
                        if all(state[n]["ready"] and state[n]["pid"] not in old for n in wanted):
                            return
                    await asyncio.sleep(0.1)
        except TimeoutError as error:
            problem = f"not all of {', '.join(wanted)} came back: {state}"
            raise TimeoutError(problem) from error


Fault = Callable[[Stage], Awaitable[None]]


def end_with(number: signal.Signals, name: str) -> Fault:
    """A process is ended by a signal; the supervisor starts it again."""

    async def fault(stage: Stage) -> None:
        async with stage.outage(name):
            pid = stage.signal(name, number)
            await stage.until_ready([name], other_than=[pid])

    return fault


async def kill_two(stage: Stage) -> None:
    """Two processes at the same time."""
    names = stage.chance.sample(PROCESSES, 2)
    async with stage.outage(*names):
        pids = [stage.signal(name, signal.SIGKILL) for name in names]
        await stage.until_ready(names, other_than=pids)


async def kill_supervisor(stage: Stage) -> None:
    """The supervisor, with whom all others end; somebody starts it again."""
    await restart_all(stage)


async def restart_all(stage: Stage, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Kill the supervisor, wait for all others' end, do something, and start everything."""
    async with stage.outage(*PROCESSES):
        state = stage.service.run_state()
        pids = [process["pid"] for process in state["processes"].values() if process["pid"]]
        os.kill(state["pid"], signal.SIGKILL)
        await gone(pids)
        meanwhile()
        await asyncio.to_thread(stage.service.start)
        await stage.until_ready(PROCESSES, other_than=pids)


async def gone(pids: Iterable[int]) -> None:
    """Wait until none of these processes runs."""
    async with asyncio.timeout(30):
        while any(is_alive(pid) for pid in pids):
            await asyncio.sleep(0.1)


def freeze(seconds: float, *names: str) -> Fault:
    """SIGSTOP for a while, then SIGCONT."""

    async def fault(stage: Stage) -> None:
        async with stage.outage(*names):
            pids = [stage.signal(name, signal.SIGSTOP) for name in names]
            try:
                await asyncio.sleep(seconds)
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
            await stage.until_ready(names)

    return fault


async def disk_full(stage: Stage) -> None:
    """No byte can be written any more; then there is room again."""
    if stage.disk is None:
        return
    async with stage.outage("disk", "nats"):
        with stage.disk.full():
            await asyncio.sleep(DISK_FULL_SECONDS)
        # The supervisor has to see that streams take nothing although there is room.
        await asyncio.sleep((FAILED_CHECKS + 1) * FAILING_SECONDS)
        await stage.until_ready(PROCESSES)


async def lose_power(stage: Stage) -> None:
    """Everything ends in one moment, and what had not reached the disk is lost."""
    disk = stage.disk
    if disk is None or disk.image is None:
        return
    async with stage.outage(*PROCESSES, "disk"):
        state = stage.service.run_state()
        pids = [process["pid"] for process in state["processes"].values() if process["pid"]]
        everybody = [state["pid"], *pids]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in everybody:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            if number is signal.SIGSTOP:
                disk.cut_power()
        await gone(pids)
        await asyncio.to_thread(disk.restore_power)
        await asyncio.to_thread(stage.service.start)
        await stage.until_ready(PROCESSES, other_than=pids)


faults: dict[str, Fault] = {
    **{f"kill -9 {name}": end_with(signal.SIGKILL, name) for name in PROCESSES},
    "kill -9 of two": kill_two,
    "kill -9 of the supervisor": kill_supervisor,
    "restart of nats": end_with(signal.SIGTERM, "nats"),
    "SIGSTOP past ack_wait": freeze(PAST_ACK_WAIT, "learner", "reward"),
    "SIGSTOP of nats": freeze(SHORT_FREEZE, "nats"),
    "SIGSTOP of generation": freeze(SHORT_FREEZE, "generation"),
    "disk full": disk_full,
    "power lost": lose_power,
}


def course(names: Iterable[str], chance: random.Random) -> Iterable[str]:
    """All of them in some order, then any of them without end."""
    once = list(names)
    chance.shuffle(once)
    yield from once
    while once:
        yield chance.choice(once)
