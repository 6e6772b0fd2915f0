"""The limits of each key per minute, its quotas per day, and the headers that report them.

A limit per minute is a bucket that holds a minute's worth and fills steadily. Requests are charged
before they run. The tokens of an answer are known only while it is sampled, so they are charged as
they come. The most that it may cost, its prompt and `max_tokens` for each choice, is reserved until
then, so that many at once cannot use more than there is. Buckets live in this process: several
gateways behind one address allow several times the limit. Quotas are shared and stored, see
`quotas`.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar

from tuneloop.gateway.edge.caller import LOCAL, caller_of_task
from tuneloop.gateway.edge.costs import Costs
from tuneloop.gateway.edge.quotas import KeyUsage, seconds_to_next_day
from tuneloop.gateway.errors import QuotaExceeded, RateLimitExceeded
from tuneloop.gateway.keys.store import ApiKey, Limits
from tuneloop.v1 import generation_pb2

MINUTE = 60.0
MAX_ADDRESSES = 10_000
Clock = Callable[[], float]


class Bucket:
    """`capacity` units, which are refilled within a minute."""

    def __init__(self, capacity: int, clock: Clock = time.monotonic) -> None:
        self.capacity = capacity
        self.clock = clock
        self._level = float(capacity)
        self._at = clock()

    @property
    def level(self) -> float:
        """The units left; below zero if more were used than there were."""
        now = self.clock()
        self._level = min(self.capacity, self._level + (now - self._at) * self.capacity / MINUTE)
        self._at = now
        return self._level

    def take(self, units: int) -> None:
        """Use `units`, even if fewer are left."""
        self._level = self.level - units

    def seconds_until(self, wanted: float) -> float:
        """Return the seconds until the level will be `wanted`."""
        return max(0.0, (wanted - self.level) * MINUTE / self.capacity)


class Meter:
    """The usage and limits of one key."""

    def __init__(self, key: ApiKey, usage: KeyUsage, clock: Clock = time.monotonic) -> None:
        limits = key.limits
        self.name = key.name
        self.limits = limits
        self.usage = usage
        self.requests = bucket(limits.requests_per_minute, clock)
        self.tokens = bucket(limits.tokens_per_minute, clock)
        self.reserved = 0
        """Tokens that the answers which run now may still cost."""

    def admit(self, *, generates: bool) -> None:
        """Count one request. Raises `RateLimitExceeded` or `QuotaExceeded` if it has to wait.

        `generates` says that it will cost tokens: others pass if only tokens are used up.
        """
        of_key = f"the key {self.name!r}"
        self.check_day("requests", self.limits.requests_per_day, self.usage.requests)
        if self.requests is not None and self.requests.level < 1:
            raise RateLimitExceeded(
                f"{of_key} may make {self.requests.capacity} requests a minute",
                retry_after=self.requests.seconds_until(1),
            )
        if generates:
            self.check_day("tokens", self.limits.tokens_per_day, self.usage.tokens)
            if self.tokens is not None and self.tokens.level <= 0:
                raise RateLimitExceeded(
                    f"{of_key} may use {self.tokens.capacity} tokens a minute",
                    retry_after=self.tokens.seconds_until(1),
                )
        if self.requests is not None:
            self.requests.take(1)
        self.usage.add(requests=1)

    def admit_rest(self, count: int) -> None:
        """Count the further parts of a request that stands for many. Raises `QuotaExceeded`.

        As with tokens, the minute's bucket may go below zero; the next request then waits.
        """
        allowed = self.limits.requests_per_day
        self.check_day("requests", allowed, self.usage.requests + count - 1)
        if self.requests is not None:
            self.requests.take(count)
        self.usage.add(requests=count)

    def check_day(self, unit: str, allowed: int | None, used: int) -> None:
        """Raise `QuotaExceeded` if a day's quota is used up."""
        if allowed is not None and used >= allowed:
            raise QuotaExceeded(
                f"the key {self.name!r} may use {allowed} {unit} a day (UTC)",
                retry_after=seconds_to_next_day(),
            )

    def check_tokens(self, tokens: int) -> None:
        """Raise `RateLimitExceeded` or `QuotaExceeded` unless so many are free.

        More than a minute's worth needs a minute's worth: the bucket goes below zero then.
        """
        of_key, per_day = f"the key {self.name!r}", self.limits.tokens_per_day
        if per_day is not None:
            left = max(0, per_day - self.usage.tokens - self.reserved)
            if tokens > left:
                raise QuotaExceeded(
                    f"{of_key} has {left} of {per_day} tokens left today (UTC), and this may cost "
                    f"{tokens}: ask for fewer max_tokens",
                    retry_after=seconds_to_next_day(),
                )
        if self.tokens is None:
            return
        wanted = self.reserved + min(tokens, self.tokens.capacity)
        if self.tokens.level < wanted:
            raise RateLimitExceeded(
                f"{of_key} may use {self.tokens.capacity} tokens a minute; this may cost {tokens}, "
                f"and answers that run {self.reserved}",
                retry_after=max(1.0, self.tokens.seconds_until(min(wanted, self.tokens.capacity))),
            )

    def charge(self, tokens: int) -> None:
        """Count used tokens."""
        if self.tokens is not None:
            self.tokens.take(tokens)
        self.usage.add(tokens=tokens)

    def headers(self) -> Iterator[tuple[str, str]]:
        """Return limits, what is left and when all of it is refilled, in OpenAI's headers.

        If only the day is limited, they are about the day.
        """
        for unit, bucket_, per_day in (
            ("requests", self.requests, self.limits.requests_per_day),
            ("tokens", self.tokens, self.limits.tokens_per_day),
        ):
            if bucket_ is not None:
                left = max(0, math.floor(bucket_.level))
                yield from ratelimit_headers(
                    unit, bucket_.capacity, left, bucket_.seconds_until(bucket_.capacity)
                )
            elif per_day is not None:
                left = max(0, per_day - getattr(self.usage, unit))
                yield from ratelimit_headers(unit, per_day, left, seconds_to_next_day())


def ratelimit_headers(
    unit: str, limit: int, left: int, seconds: float
) -> Iterator[tuple[str, str]]:
    """Return the three headers of one unit."""
    yield f"x-ratelimit-limit-{unit}", str(limit)
    yield f"x-ratelimit-remaining-{unit}", str(left)
    yield f"x-ratelimit-reset-{unit}", duration(seconds)


def duration(seconds: float) -> str:
    """Format seconds as OpenAI does: `120ms`, `12s`, `6m0s`, `2h0m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    whole = math.ceil(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def bucket(limit: int | None, clock: Clock) -> Bucket | None:
    return None if limit is None else Bucket(limit, clock)


def limited(limits: Limits) -> bool:
    """Return whether there is anything to count."""
    return limits != Limits()


class AddressLimits:
    """A limit for each network address; a fixed number of addresses is remembered."""

    def __init__(self, per_minute: int, clock: Clock = time.monotonic) -> None:
        self.per_minute = per_minute
        self.clock = clock
        self.buckets: OrderedDict[str, Bucket] = OrderedDict()

    def admit(self, address: str) -> None:
        """Count a request of `address`. Raises `RateLimitExceeded`."""
        found = self.buckets.pop(address, None) or Bucket(self.per_minute, self.clock)
        self.buckets[address] = found
        if len(self.buckets) > MAX_ADDRESSES:
            self.buckets.popitem(last=False)
        if found.level < 1:
            raise RateLimitExceeded(
                f"{self.per_minute} of these a minute may come from one address",
                retry_after=found.seconds_until(1),
            )
        found.take(1)


BYTES_PER_TOKEN = 4
meter_of_request: ContextVar[Meter | None] = ContextVar("meter_of_request", default=None)
"""The meter of the current request, if its key has limits. Tasks that it starts inherit it,
so that code far below can charge tokens without passing the meter through every call."""


class Spending:
    """The tokens of one answer, for the key's limits, if it has any, and for costs."""

    def __init__(
        self, requests: Sequence[generation_pb2.GenerateRequest], n: int, costs: Costs
    ) -> None:
        """Reserve what the answer may cost. Raises `RateLimitExceeded` or `QuotaExceeded`."""
        self.meter = meter_of_request.get()
        self.costs = costs
        self.caller = caller_of_task.get(LOCAL)
        self.policy_version: int | None = None
        """That of the last event."""
        self.requests = requests
        self.n = n
        self.streamed = [0] * (n * len(requests))
        """Tokens of each choice so far."""
        self.told: set[int] = set()
        """Requests whose prompt was charged."""
        self.reserved = 0
        if self.meter is not None:
            most = sum(prompt_tokens(r) + n * r.sampling.max_tokens for r in requests)
            self.meter.check_tokens(most)
            self.reserve(most)

    def reserve(self, tokens: int) -> None:
        """Change what the answer may still cost."""
        assert self.meter is not None
        change = max(tokens, -self.reserved)
        self.reserved += change
        self.meter.reserved += change

    def note(self, choice: int, event: generation_pb2.GenerateResponse) -> None:
        """Charge the tokens of an event."""
        prompt = 0
        if event.WhichOneof("event") == "delta":
            self.policy_version = event.delta.policy_version
            sampled = len(event.delta.token_ids)
            self.streamed[choice] += sampled
        else:
            self.policy_version = event.final.policy_version
            usage = event.final.usage
            # The tokens of a stop string are counted but never streamed.
            sampled = max(0, usage.completion_tokens - self.streamed[choice])
            if choice // self.n not in self.told:
                self.told.add(choice // self.n)
                prompt = usage.prompt_tokens
        self.charge(prompt, sampled)
        if self.meter is not None:
            self.reserve(-prompt - sampled)

    def charge(self, prompt: int, sampled: int) -> None:
        """Charge tokens of prompts and of completions."""
        if self.meter is not None:
            self.meter.charge(prompt + sampled)
        # Without an event nothing is known to have run.
        if self.policy_version is not None:
            self.costs.add(
                self.caller.label,
                self.policy_version,
                input_tokens=prompt,
                output_tokens=sampled,
            )

    def leave(self) -> None:
        """The client disconnected: charge prompts of unknown length by their bytes."""
        untold = (r for i, r in enumerate(self.requests) if i not in self.told)
        self.charge(sum(prompt_tokens(r) for r in untold), 0)

    def close(self) -> None:
        """The answer has ended: what it did not cost is free again."""
        if self.meter is not None:
            self.reserve(-self.reserved)


def prompt_tokens(request: generation_pb2.GenerateRequest) -> int:
    """Return the tokens of a prompt: a guess by its bytes, unless it came as tokens."""
    match request.WhichOneof("prompt"):
        case "tokens":
            return len(request.tokens.token_ids)
        case "text":
            size = len(request.text.encode())
        case _:
            size = request.chat.ByteSize() + request.tool_use.ByteSize()
    return size // BYTES_PER_TOKEN
