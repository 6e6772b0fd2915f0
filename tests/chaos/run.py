"""One run: start everything, let users and faults loose, wait until it is quiet, audit."""

import asyncio
import contextlib
import math
import random
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chaos.audit import Audit, audit, open_thumbs
from chaos.clients import Memory, users
from chaos.clocks import build_clocks, clock_steps
from chaos.deliveries import Disorder
from chaos.faults import PROCESSES, Fault, Stage, course, faults
from chaos.losses import losses
from chaos.partitions import addresses, partitions, relays
from support.ports import free_port
from support.small_disk import small_disk

from tuneloop.supervisor.child import ServiceChild

SETTLE_SECONDS = 120.0
"""Without one more thumb learned from."""
FAULTS: dict[str, Fault] = faults | losses | partitions | clock_steps
PAUSE = 1.0, 6.0
"""Shortest and longest time between two faults."""
ENVIRONMENT = {
    "TUNELOOP_LEARNER_BATCH_SIZE": "4",
    "TUNELOOP_LEARNER_BATCH_WAIT_SECONDS": "0.5",
    "TUNELOOP_LEARNER_PUBLISH_EVERY_STEPS": "4",
    "TUNELOOP_LEARNER_PUBLISH_EVERY_SECONDS": "2",
    "TUNELOOP_LEARNER_RELEASE": "off",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to run, for how long."""

    folder: Path
    """Empty; becomes the small disk the data is on."""
    policy: Path
    reward_model: Path
    seconds: float
    """Faults begin for this long; each is brought to its end."""
    seed: int
    users: int = 4
    faults: Sequence[str] = tuple(FAULTS)
    keep: Path | None = None
    """New folder for a copy of the data, in the end."""
    keep_failed: Path | None = None
    """The same, where something went wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was done, and what was found."""

    faults: Counter[str]
    disorder: Counter[str]
    seconds: float
    audit: Audit

    def lines(self) -> list[str]:
        """All counts, then all problems."""
        head = [f"{self.seconds:.0f} s of chaos"]
        done = [f"  {count} × {name}" for name, count in sorted(self.faults.items())]
        done += [f"  {count} events {name}" for name, count in sorted(self.disorder.items())]
        found = [f"  {name}: {count}" for name, count in self.audit.counts.items()]
        wrong = [f"  {problem}" for problem in self.audit.problems]
        return [*head, *done, "audit", *found, *(["WRONG", *wrong] if wrong else ["all is well"])]


async def run(options: Options) -> Outcome:
    """Do it; raises `TimeoutError` when the service does not come back."""
    data_dir = options.folder / "data"
    clocks = build_clocks(options.folder.with_name("clocks"))
    async with contextlib.AsyncExitStack() as stack:
        disk = stack.enter_context(small_disk(options.folder))
        networks = await stack.enter_async_context(relays(data_dir))
        service = ServiceChild(
            data_dir,
            port=free_port(),
            arguments=[
                *("--model", str(options.policy), "--reward-model", str(options.reward_model)),
                *("--engine", "transformers"),
            ],
            environment=ENVIRONMENT
            | addresses(networks, data_dir)
            | (clocks.environment() if clocks is not None else {}),
        )
        stage = Stage(service, disk, random.Random(options.seed), networks, clocks)
        keep = options.keep or options.keep_failed
        try:
            with service:
                outcome = await run_on(stage, options)
            if not outcome.audit.problems:
                keep = options.keep
            return outcome
        finally:
            if keep is not None:
                shutil.copytree(service.data_dir, keep)
                print(f"the data is in {keep}", flush=True)


async def run_on(stage: Stage, options: Options) -> Outcome:
    """Users and faults on a service that starts."""
    disorder = Disorder(stage.service, random.Random(options.seed + 1))
    await asyncio.to_thread(stage.service.wait_until_ready)
    await stage.until_ready(PROCESSES)
    started = time.monotonic()
    async with users(stage.service.url, options.users, options.seed) as memory:
        meddling = asyncio.create_task(disorder.run())
        try:
            await wreak_havoc(stage, options)
        finally:
            # Before Python 3.12 `asyncio.wait_for`, which nats-py uses, can lose a cancellation.
            while not meddling.done():
                meddling.cancel()
                await asyncio.wait({meddling}, timeout=1)
    seconds = time.monotonic() - started
    await stage.until_ready(PROCESSES)
    await settle(stage, memory)
    await asyncio.to_thread(stage.service.stop)
    found = audit(stage.service.data_dir, memory, stage.outages, stage.lost_feedback)
    return Outcome(
        faults=Counter(stage.done), disorder=disorder.counts, seconds=seconds, audit=found
    )


async def settle(stage: Stage, memory: Memory) -> None:
    """Wait until all is learned that can be, or nothing more is; the audit says what is missing."""
    fewest, since = math.inf, time.monotonic()
    while waiting := len(open_thumbs(stage.service.data_dir, memory, stage.lost_feedback)):
        if waiting < fewest:
            fewest, since = waiting, time.monotonic()
        if time.monotonic() > since + SETTLE_SECONDS:
            return
        await asyncio.sleep(1)


async def wreak_havoc(stage: Stage, options: Options) -> None:
    """One fault after the other, each at least once if the time suffices."""
    until = time.monotonic() + options.seconds
    impossible = impossible_faults(stage)
    for name in set(options.faults) & impossible.keys():
        print(f"left out: {name}, as {impossible[name]}", flush=True)
    for name in course([n for n in options.faults if n not in impossible], stage.chance):
        await asyncio.sleep(stage.chance.uniform(*PAUSE))
        if time.monotonic() > until:
            return
        await stage.until_ready(PROCESSES)
        print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
        await FAULTS[name](stage)
        stage.done.append(name)


def impossible_faults(stage: Stage) -> dict[str, str]:
    """Return the faults that this machine does not allow, and why."""
    found = {}
    if stage.disk is None:
        found["disk full"] = "this process may not mount a file system"
    if stage.disk is None or stage.disk.image is None:
        found["power lost"] = "this process may not mount ext4 from a file"
    if stage.clocks is None:
        found["clocks stepped"] = "this needs a C compiler and glibc"
    return found
