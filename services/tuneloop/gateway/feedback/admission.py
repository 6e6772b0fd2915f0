"""Bounds on the feedback of each completion, session, user and key; shedding when the stream fills.

Signals have bounds of their own, and nothing is shed: their stream drops the oldest.

The stream drops nothing: once it is full, everybody's feedback is refused. So nobody may fill it
alone. How much each has stored within about an hour is counted here, in this process, as a sum that
decays; the learner trims what its ledger holds (`monitoring.stream_trim`). Above `SHED_ABOVE` a
talker is refused whose sum is above a part of what is free: the largest first, and more of them the
less is left.
"""

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tuneloop import wire
from tuneloop.bus import Bus, StreamUsage, subjects
from tuneloop.errors import Unavailable
from tuneloop.feedback import Feedback, Signal
from tuneloop.gateway import metrics
from tuneloop.gateway.errors import RateLimitExceeded

logger = logging.getLogger("tuneloop.gateway")

HOUR = 3600.0
KIB, MIB = 2**10, 2**20
MAX_TALKERS = 10_000
"""Of each kind that are remembered; the one that was silent longest is forgotten."""
SHED_ABOVE = 0.7
"""Share of the stream in use."""
CHECK_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What one may store within about an hour."""

    events: int
    size: int
    """Bytes."""
    part: int | None
    """Above `SHED_ABOVE`: at most one part of so many of what is free."""


BOUNDS = {
    "completion": Bound(events=1_000, size=2 * MIB, part=None),
    "session": Bound(events=1_000, size=2 * MIB, part=None),
    "user": Bound(events=5_000, size=16 * MIB, part=64),
    "key": Bound(events=200_000, size=128 * MIB, part=8),
}
SIGNAL_BOUNDS = {
    "completion": Bound(events=100, size=MIB // 4, part=None),
    "user": Bound(events=2_000, size=2 * MIB, part=None),
    "key": Bound(events=100_000, size=64 * MIB, part=None),
}


class Talker:
    """Events and bytes of the last hour, as sums that decay with that time constant."""

    def __init__(self, now: float) -> None:
        self.events = 0.0
        self.size = 0.0
        self.at = now

    def decay(self, now: float) -> None:
        """Weigh what was counted by its age."""
        kept = math.exp((self.at - now) / HOUR)
        self.events *= kept
        self.size *= kept
        self.at = now

    def seconds_until(self, bound: Bound, size: int) -> float:
        """Return in how many seconds one more event of `size` bytes fits; 0 is now."""
        seconds = 0.0
        for have, more, most in ((self.events, 1, bound.events), (self.size, size, bound.size)):
            if have + more > most:
                room = max(most - more, most * 0.01)
                seconds = max(seconds, HOUR * math.log(max(1.0, have / room)), 1.0)
        return seconds


class Admission:
    """Counts what is stored for whom, and refuses what is too much."""

    def __init__(
        self,
        bus: Bus,
        anonymous: str,
        clock: Callable[[], float] = time.monotonic,
        *,
        events: str = "feedback",
        bounds: Mapping[str, Bound] = BOUNDS,
    ) -> None:
        """`anonymous` is the hash that users without a name share: they are not one user."""
        self.bus = bus
        self.events = events
        self.bounds = bounds
        self.anonymous = anonymous
        self.clock = clock
        self.talkers: dict[str, OrderedDict[str, Talker]] = {kind: OrderedDict() for kind in bounds}
        self.usage = StreamUsage(stored=0, limit=0)

    def admit(self, event: Feedback | Signal) -> None:
        """Count what is about to be stored. Raises `RateLimitExceeded`."""
        who = {"completion": event.completion_id, "key": event.api_key_id}
        if isinstance(event, Signal):
            size = len(wire.encode_signal(event))
        else:
            size = len(wire.encode_feedback(event))
            who["session"] = event.session_id
        if event.user_hash != self.anonymous:
            who["user"] = event.user_hash
        found = {kind: self.talker(kind, name) for kind, name in who.items() if name}
        for kind, talker in found.items():
            self.check(kind, talker, size)
        for talker in found.values():
            talker.events += 1
            talker.size += size

    def talker(self, kind: str, name: str) -> Talker:
        """Return who was counted under a name, up to date and remembered as the newest."""
        now, known = self.clock(), self.talkers[kind]
        talker = known.pop(name, None) or Talker(now)
        talker.decay(now)
        known[name] = talker
        if len(known) > MAX_TALKERS:
            known.popitem(last=False)
        return talker

    def check(self, kind: str, talker: Talker, size: int) -> None:
        """Raise `RateLimitExceeded` if one more event of `size` bytes is too much."""
        bound = self.bounds[kind]
        if seconds := talker.seconds_until(bound, size):
            raise RateLimitExceeded(
                f"{self.events} of one {kind}: at most {bound.events} in an hour, and {bound.size} "
                "bytes",
                retry_after=seconds,
            )
        if bound.part is None or self.usage.share < SHED_ABOVE:
            return
        allowed = (self.usage.limit - self.usage.stored) / bound.part
        if talker.size + size > allowed:
            metrics.feedback_shed.labels(kind).inc()
            raise RateLimitExceeded(
                f"the stream of feedback is {self.usage.share:.0%} full, and this {kind} has "
                f"stored {talker.size:.0f} bytes in the last hour: {allowed:.0f} may be now",
                retry_after=max(CHECK_SECONDS, HOUR * math.log(max(1.0, talker.size / allowed)))
                if allowed > 0
                else 60.0,
            )

    async def watch(self) -> None:
        """Look at the stream until cancelled."""
        while True:
            try:
                self.usage = await self.bus.usage(subjects.FEEDBACK)
                metrics.feedback_stream_share.set(self.usage.share)
            except Unavailable as error:
                logger.debug("the stream of feedback cannot be looked at: %s", error.message)
            await asyncio.sleep(CHECK_SECONDS)
