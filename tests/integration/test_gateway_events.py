"""`/v1/events`: everything at once, then what changed; one poller, and none without listeners."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from support.gateway_stack import Stack

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.gateway.events import feed as events
from tuneloop.gateway.events.feed import SHOWN, StepHistory
from tuneloop.gateway.events.throughput import Throughput

ALL = {"learner", "policies", "feedback", "steps", "throughput"}


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "INTERVAL", 0.02)


class Listener:
    """Reads events; `latest` has the newest of each name."""

    def __init__(self, response: httpx.Response) -> None:
        self.lines = response.aiter_lines()
        self.latest: dict[str, Any] = {}

    async def until(self, holds: Any) -> None:
        name = ""
        async with asyncio.timeout(10):
            while not holds(self.latest):
                line = await anext(self.lines)
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    self.latest[name] = json.loads(line.removeprefix("data: "))

    async def everything(self) -> dict[str, Any]:
        await self.until(lambda latest: set(latest) >= ALL)
        return self.latest


@asynccontextmanager
async def listening(stack: Stack) -> AsyncIterator[Listener]:
    async with (
        httpx.AsyncClient(base_url=stack.url, timeout=10) as client,
        client.stream("GET", "/v1/events") as response,
    ):
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Listener(response)


async def publish_step(stack: Stack, step: int, **metrics: float) -> None:
    data = wire.encode_learner_stepped("tuneloop", step, metrics, datetime.now(UTC))
    await stack.bus.publish(subjects.learner_step("tuneloop"), data, event_id=f"step-{step}")


async def test_everything_first_then_what_changed(stack: Stack) -> None:
    await publish_step(stack, 1, loss=0.5, kl=0.01, gradient_norm=2.0)
    async with listening(stack) as listener:
        latest = await listener.everything()
        async with httpx.AsyncClient(base_url=stack.url) as client:
            assert latest["learner"] == (await client.get("/v1/learner")).json()
            document = (await client.get("/v1/policies?limit=50")).json()
        assert latest["policies"] == document
        [step] = latest["steps"]["data"]
        assert (step["step"], step["loss"], step["kl"]) == (1, 0.5, 0.01)
        assert latest["feedback"] == {"object": "list", "data": [], "next": None}
        assert latest["throughput"]["in_flight"] == 0

        stack.generation.policy_version = 4
        await listener.until(lambda seen: seen["policies"]["policy_version"] == 4)
        stack.learner.state = "stepping"
        await listener.until(lambda seen: seen["learner"]["state"] == "stepping")
        await publish_step(stack, 2, loss=0.25)
        await listener.until(lambda seen: len(seen["steps"]["data"]) == 2)
        assert listener.latest["steps"]["data"][1]["kl"] is None


async def test_without_the_learner_and_the_bus(stack: Stack) -> None:
    await stack.servers["learner"].stop()
    stack.bus.go_down()
    async with listening(stack) as listener:
        latest = await listener.everything()
        assert latest["learner"] is None
        assert latest["feedback"] is None
        assert latest["steps"] is None
        assert latest["policies"]["policy_version"] == 3
        assert latest["policies"]["data"] is None
        stack.bus.come_back()
        await listener.until(lambda seen: seen["steps"] == {"object": "list", "data": []})


async def test_one_poller_for_all_and_none_for_nobody(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    feeds: list[events.Feed] = []
    listen = events.Feed.listen

    def noted(feed: events.Feed, heartbeat_seconds: float) -> Any:
        feeds.append(feed)
        return listen(feed, heartbeat_seconds)

    monkeypatch.setattr(events.Feed, "listen", noted)
    async with listening(stack) as first:
        await first.everything()
        async with listening(stack) as second:
            await second.everything()
            [feed] = set(feeds)
            assert feed.listeners == 2
            assert len(feed._polling) == len(ALL)
    async with asyncio.timeout(5):
        while feed.listeners:
            await asyncio.sleep(0.01)
    assert feed._polling == []
    async with listening(stack) as again:
        await again.everything()
        feed.close()
        with pytest.raises(StopAsyncIteration):
            await again.until(lambda _: False)


async def test_only_the_last_steps_are_kept(stack: Stack) -> None:
    history = StepHistory(stack.bus, "tuneloop")
    assert (await history.latest())["data"] == []
    for step in range(SHOWN + 10):
        await publish_step(stack, step, loss=float(step))
    steps = [step["step"] for step in (await history.latest())["data"]]
    assert steps == list(range(10, SHOWN + 10))
    await publish_step(stack, 999, loss=1.0)
    assert [step["step"] for step in (await history.latest())["data"]] == [*steps[1:], 999]


async def test_rates_are_of_the_last_seconds() -> None:
    from tuneloop.gateway import metrics

    now = 100.0
    throughput = Throughput(lambda: 0, clock=lambda: now)
    assert (await throughput.latest())["tokens_per_second"] is None
    for _ in range(30):
        now += 1
        metrics.completion_tokens.labels("true").inc(4)
        metrics.http_requests.labels("/v1/completions", "POST", "200").inc()
        rates = await throughput.latest()
    assert rates["tokens_per_second"] == 4
    assert rates["requests_per_second"] == 1
    for _ in range(11):
        now += 1
        rates = await throughput.latest()
    assert rates["tokens_per_second"] == 0
    now += 1000
    assert (await throughput.latest())["tokens_per_second"] is None
