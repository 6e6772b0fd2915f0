"""Who stores how much feedback within an hour, and who is refused while its stream fills."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from tuneloop.bus import StreamUsage
from tuneloop.bus.memory import MemoryBus
from tuneloop.feedback import Comment, Feedback
from tuneloop.gateway.errors import RateLimitExceeded
from tuneloop.gateway.feedback import admission
from tuneloop.gateway.feedback.admission import BOUNDS, HOUR, Admission, Bound


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def admitted(clock: Clock) -> Admission:
    return Admission(MemoryBus(), "anonymous", clock)


def comment(characters: int = 10, **fields: Any) -> Feedback:
    named = {"user_hash": "ann", "completion_id": "chatcmpl-1", "api_key_id": "key-1"} | fields
    return Feedback(
        feedback_id="fb-1",
        policy="tuneloop",
        tenant="default",
        judgement=Comment(text="x" * characters),
        accepted_time=datetime(2026, 1, 1, tzinfo=UTC),
        metadata={},
        **named,
    )


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        ("completion", {"completion_id": "chatcmpl-2"}),
        ("user", {"user_hash": "bob"}),
        ("key", {"api_key_id": "key-2"}),
    ],
)
def test_events_are_counted_by_kind_and_come_back_with_time(
    admitted: Admission, clock: Clock, kind: str, other: Any, monkeypatch: Any
) -> None:
    monkeypatch.setitem(BOUNDS, kind, Bound(events=10, size=10**6, part=None))
    for _ in range(10):
        admitted.admit(comment())
    with pytest.raises(RateLimitExceeded, match=f"feedback of one {kind}: at most 10") as refused:
        admitted.admit(comment())
    admitted.admit(comment(**other))
    assert refused.value.retry_after == pytest.approx(HOUR * 0.10536, rel=1e-3)  # ln(10/9)
    clock.now += refused.value.retry_after + 1
    admitted.admit(comment())


def test_bytes_are_counted(admitted: Admission, monkeypatch: Any) -> None:
    monkeypatch.setitem(BOUNDS, "completion", Bound(events=100, size=50_000, part=None))
    admitted.admit(comment(30_000))
    with pytest.raises(RateLimitExceeded, match="50000 bytes"):
        admitted.admit(comment(30_000))
    admitted.admit(comment(10_000))


def test_users_without_a_name_are_not_one_user(admitted: Admission, monkeypatch: Any) -> None:
    monkeypatch.setitem(BOUNDS, "user", Bound(events=1, size=10**6, part=64))
    for number in range(3):
        admitted.admit(comment(user_hash="anonymous", completion_id=f"chatcmpl-{number}"))


def test_what_is_refused_is_not_counted(admitted: Admission, monkeypatch: Any) -> None:
    monkeypatch.setitem(BOUNDS, "user", Bound(events=1, size=10**6, part=64))
    admitted.admit(comment())
    for _ in range(5):
        with pytest.raises(RateLimitExceeded):
            admitted.admit(comment())
    assert admitted.talkers["key"]["key-1"].events == 1


def test_the_largest_talkers_are_shed_first(admitted: Admission) -> None:
    loud, quiet = {"user_hash": "loud"}, {"user_hash": "quiet"}
    for _ in range(10):
        admitted.admit(comment(20_000, **loud))
    admitted.admit(comment(20_000, **quiet))
    limit = 64_000_000
    # A user may have a 64th part of what is free, which is 1,000,000 bytes of all.
    admitted.usage = StreamUsage(stored=int(limit * 0.75), limit=limit)
    admitted.admit(comment(20_000, **loud))
    admitted.usage = StreamUsage(stored=int(limit * 0.85), limit=limit)
    with pytest.raises(RateLimitExceeded, match="85% full, and this user"):
        admitted.admit(comment(20_000, **loud))
    admitted.admit(comment(20_000, **quiet))
    admitted.usage = StreamUsage(stored=limit, limit=limit)
    with pytest.raises(RateLimitExceeded):
        admitted.admit(comment(10, **quiet))


def test_a_bounded_number_is_remembered(admitted: Admission, monkeypatch: Any) -> None:
    monkeypatch.setattr(admission, "MAX_TALKERS", 3)
    for number in range(9):
        admitted.admit(comment(completion_id=f"chatcmpl-{number}"))
    assert list(admitted.talkers["completion"]) == [f"chatcmpl-{n}" for n in (6, 7, 8)]


async def test_a_bus_that_is_away_leaves_the_last_usage(admitted: Admission) -> None:
    assert isinstance(admitted.bus, MemoryBus)
    admitted.usage = StreamUsage(stored=1, limit=2)
    admitted.bus.go_down()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await admitted.watch()
    assert admitted.usage.share == 0.5
