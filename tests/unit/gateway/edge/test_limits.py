"""Limits by the minute against a clock of our own; quotas over the bus's table."""

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneloop.bus import subjects
from tuneloop.bus.memory import MemoryBus
from tuneloop.errors import Overloaded, Unavailable
from tuneloop.gateway.edge import limits as limits_module
from tuneloop.gateway.edge.caller import client_of, network_of
from tuneloop.gateway.edge.limits import AddressLimits, Bucket, Meter, duration
from tuneloop.gateway.edge.quotas import Book, KeyUsage
from tuneloop.gateway.errors import QuotaExceeded, RateLimitExceeded
from tuneloop.gateway.keys.store import Limits, Scope, new_key


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def meter(clock: Clock, usage: KeyUsage | None = None, **given: int) -> Meter:
    _, key = new_key("app", [Scope.INFER], Limits(**given))
    return Meter(key, usage or KeyUsage(), clock)


@settings(deadline=None)
@given(
    st.integers(1, 1000),
    st.lists(st.tuples(st.floats(0, 120), st.integers(0, 2000)), max_size=20),
)
def test_a_bucket_gives_no_more_than_its_rate(
    capacity: int, steps: list[tuple[float, int]]
) -> None:
    clock = Clock()
    bucket, taken, first = Bucket(capacity, clock), 0, clock.now
    for wait, units in steps:
        clock.now += wait
        assert bucket.level <= capacity
        if bucket.level >= units:
            bucket.take(units)
            taken += units
    assert taken <= capacity * (1 + (clock.now - first) / 60) + 1e-6


@settings(deadline=None)
@given(st.integers(1, 1000), st.integers(0, 5000), st.floats(0, 1))
def test_after_the_seconds_it_tells_it_gives_again(capacity: int, used: int, part: float) -> None:
    clock = Clock()
    bucket = Bucket(capacity, clock)
    bucket.take(used)
    wanted = part * capacity
    clock.now += bucket.seconds_until(wanted)
    assert bucket.level >= wanted - 1e-6


def test_requests_are_counted_before_and_tokens_after() -> None:
    clock = Clock()
    app = meter(clock, requests_per_minute=3, tokens_per_minute=60)
    app.admit(generates=True)
    app.charge(100)  # a long answer: 40 more than there were
    told = dict(app.headers())
    assert told["x-ratelimit-limit-requests"] == "3"
    assert told["x-ratelimit-remaining-requests"] == "2"
    assert told["x-ratelimit-reset-requests"] == "20s"
    assert told["x-ratelimit-remaining-tokens"] == "0"
    assert told["x-ratelimit-reset-tokens"] == "1m40s"
    with pytest.raises(RateLimitExceeded, match="60 tokens a minute") as refused:
        app.admit(generates=True)
    assert refused.value.retry_after == pytest.approx(41)
    app.admit(generates=False)  # feedback costs no tokens
    clock.now += refused.value.retry_after
    app.admit(generates=True)
    app.admit(generates=False)
    app.admit(generates=False)
    with pytest.raises(RateLimitExceeded, match="requests a minute"):
        app.admit(generates=False)


def test_what_runs_is_reserved_and_freed() -> None:
    clock = Clock()
    app = meter(clock, tokens_per_minute=100, tokens_per_day=1000)
    app.check_tokens(60)
    app.reserved = 60
    with pytest.raises(RateLimitExceeded, match="may cost 41, and answers that run 60"):
        app.check_tokens(41)
    app.check_tokens(40)
    app.reserved = 0
    app.check_tokens(900)  # more than a minute's worth needs a full bucket
    app.charge(10)
    with pytest.raises(RateLimitExceeded) as refused:
        app.check_tokens(900)
    clock.now += refused.value.retry_after
    app.check_tokens(900)
    with pytest.raises(QuotaExceeded, match="990 of 1000 tokens left today"):
        app.check_tokens(991)


def test_quotas_turn_with_the_day(monkeypatch: pytest.MonkeyPatch) -> None:
    day = 100
    usage = KeyUsage(lambda: day)
    app = meter(Clock(), usage, requests_per_day=2, tokens_per_day=10)
    app.admit(generates=True)
    app.charge(11)
    with pytest.raises(QuotaExceeded, match="10 tokens a day") as refused:
        app.admit(generates=True)
    assert 0 < (refused.value.retry_after or 0) <= 86_400
    assert dict(app.headers())["x-ratelimit-remaining-tokens"] == "0"
    app.admit(generates=False)
    with pytest.raises(QuotaExceeded, match="2 requests a day"):
        app.admit(generates=False)
    day += 1
    app.admit(generates=True)
    assert (usage.requests, usage.tokens) == (1, 0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0201, "21ms"), (1, "1s"), (59.5, "1m0s"), (360, "6m0s"), (86_400, "24h0m0s")],
)
def test_durations_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_addresses_have_limits_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    addresses = AddressLimits(2, clock)
    for _ in range(2):
        addresses.admit("10.0.0.1")
    with pytest.raises(Overloaded):
        addresses.admit("10.0.0.1")
    addresses.admit("10.0.0.2")
    clock.now += 30
    addresses.admit("10.0.0.1")
    monkeypatch.setattr(limits_module, "MAX_ADDRESSES", 8)
    for number in range(100):
        addresses.admit(f"192.0.2.{number}")
    assert len(addresses.buckets) == 8


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.1", ["198.51.100.7"], "203.0.113.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["192.0.2.66, 198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["192.0.2.66", "198.51.100.7, 10.0.0.2"], "198.51.100.7"),
        ("::ffff:10.0.0.1", ["[2001:db8::5]:443"], "2001:db8::5"),
        ("10.0.0.1", ["198.51.100.7:1234"], "198.51.100.7"),
        ("10.0.0.1", ["192.0.2.66, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["10.0.0.2, 10.0.0.3"], "10.0.0.2"),
        ("unix", ["198.51.100.7"], "unix"),
    ],
)
def test_the_client_is_who_called_the_first_trusted_proxy(
    peer: str, forwarded: list[str], client: str
) -> None:
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    scope = {"type": "http", "client": (peer, 1), "headers": headers}
    assert client_of(scope, [ipaddress.ip_network("10.0.0.0/8")]) == client
    assert client_of(scope, []) == peer


def test_an_ipv6_network_is_one_sender() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:2")
    assert network_of("2001:db8::1") != network_of("2001:db8:0:1::1")
    assert network_of("::1") != network_of("10.0.0.1") == "10.0.0.1"
    assert network_of("unix") == "unix"


async def test_usage_survives_a_restart_and_is_shared() -> None:
    bus = MemoryBus()
    one, two = Book(), Book()
    one.of("k").add(requests=1, tokens=10)
    two.of("k").add(requests=1, tokens=5)
    await one.flush(bus)
    await two.flush(bus)
    assert two.of("k").tokens == 15
    restarted = Book()
    restarted.of("k").add(tokens=1)
    await restarted.flush(bus)
    assert (restarted.of("k").requests, restarted.of("k").tokens) == (2, 16)
    one.of("k").add(tokens=100)
    await one.flush(bus)
    assert one.of("k").tokens == 116


async def test_nothing_is_counted_twice_where_two_write_at_once() -> None:
    class Racing(MemoryBus):
        """Another gateway writes between each first look and the write after it."""

        races = 3

        async def set_routing(self, key: str, value: bytes, *, revision: int | None):  # type: ignore[no-untyped-def]
            if self.races:
                self.races -= 1
                other = Book()
                other.of("k").add(tokens=1)
                races, self.races = self.races, 0
                await other.flush(self)
                self.races = races
            return await super().set_routing(key, value, revision=revision)

    bus, book = Racing(), Book()
    book.of("k").add(tokens=10)
    await book.flush(bus)
    assert book.of("k").tokens == 13
    fresh = Book()
    fresh.of("k")
    await fresh.flush(bus)
    assert fresh.of("k").tokens == 13


async def test_while_the_bus_is_away_counting_goes_on() -> None:
    bus, book = MemoryBus(), Book()
    bus.go_down()
    book.of("k").add(tokens=7)
    with pytest.raises(Unavailable):
        await book.flush(bus)
    book.of("k").add(tokens=1)
    bus.come_back()
    await book.flush(bus)
    await book.flush(bus)
    entry = await bus.routing(subjects.usage_key("k"))
    assert entry is not None
    assert b'"tokens": 8' in entry.value
