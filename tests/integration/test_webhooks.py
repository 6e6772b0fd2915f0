"""Webhooks: signed, at least once, in order; a receiver that is away holds up nothing else.

The receiver is the one of docs/operations.md, with the library of Standard Webhooks.
"""

import asyncio
import base64
import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from conftest import NatsServer
from fastapi import FastAPI, Request, Response
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError
from support.learner_parts import Clock
from support.learner_process import LearnerProcess, feed, make_learner, stable
from support.ports import free_port
from support.waiting import until

from tuneloop.bus.jetstream import JetStreamBus
from tuneloop.learner import metrics
from tuneloop.learner.guards.alarms import Alarm
from tuneloop.learner.ledger.accounting.promotions import record_promotion
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.reports.alarms import record_alarms
from tuneloop.learner.monitoring.webhooks import Webhook

ROOT = Path(__file__).parents[2]
KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Database]:
    database = Database.at(tmp_path / "learner" / "ledger.db")
    yield database
    database.close()


@asynccontextmanager
async def served(app: Any, port: int) -> AsyncIterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", ws="none"))
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    yield f"http://127.0.0.1:{port}/tuneloop"
    server.should_exit = True
    await task


@asynccontextmanager
async def running(*webhooks: Webhook) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(webhook.run()) for webhook in webhooks]
    await until(lambda: all(_is_known(webhook) for webhook in webhooks))
    yield
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _is_known(webhook: Webhook) -> bool:
    return webhook._database.fact(f"webhook {webhook.receiver}") is not None


def make_webhook(url: str, ledger: Database, **options: Any) -> Webhook:
    given = {"first_seconds": 0.05, "clock": Clock()}
    return Webhook(url, [KEY], ledger, "tuneloop", **given | options)


def promote(ledger: Database, version: int) -> None:
    record_promotion(
        ledger,
        "policy",
        version,
        previous=version - 1,
        action="promote",
        actor="ann",
        now=Clock().now + version,
    )


def documented_receiver(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the receiver of the page; `told` are the events it prints."""
    page = (ROOT / "docs" / "operations.md").read_text()
    [code] = [
        block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "Webhook" in block
    ]
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    told: list[Any] = []
    names: dict[str, Any] = {"print": lambda *values: told.append(values), "told": told}
    exec(code, names)
    return names


class Recorder:
    """Answers with each of `statuses`, then with the last one; `events` are what it accepted."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.requests: list[tuple[str, int]] = []
        self.events: list[dict[str, Any]] = []
        self.app = FastAPI()
        self.app.post("/tuneloop", response_model=None)(self.receive)

    async def receive(self, request: Request) -> Response:
        event = Verifier(SECRET).verify(await request.body(), dict(request.headers))
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        self.requests.append((request.headers["webhook-id"], status))
        if status == 200:
            self.events.append(event)
        return Response(status_code=status, headers={"location": "/elsewhere"})


async def test_the_documented_receiver_is_told_in_order(
    ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = documented_receiver(monkeypatch)
    promote(ledger, 1)
    async with served(names["app"], free_port()) as url, running(make_webhook(url, ledger)):
        promote(ledger, 2)
        record_alarms(ledger, [Alarm(name="kl", numbers={"kl": 0.4})], Clock().now + 3)
        record_alarms(ledger, [], Clock().now + 4)
        promote(ledger, 5)
        await until(lambda: len(names["told"]) == 4)
    assert [kind for kind, _ in names["told"]] == [
        "version.promoted",
        "alarm.raised",
        "alarm.resolved",
        "version.promoted",
    ]
    # What happened before the URL was set is not told.
    assert names["told"][0][1]["policy_version"] == 2
    with pytest.raises(WebhookVerificationError):
        names["webhook"].verify(b"{}", {"webhook-id": "a", "webhook-timestamp": "1"})


async def test_what_is_not_accepted_is_tried_again_with_the_same_id(ledger: Database) -> None:
    receiver = Recorder(500, 302, 200)
    before = metrics.webhook_attempts.labels("failed")._value.get()
    async with served(receiver.app, free_port()) as url, running(make_webhook(url, ledger)):
        promote(ledger, 1)
        promote(ledger, 2)
        await until(lambda: len(receiver.events) == 2)
    first, second = receiver.requests[0][0], receiver.requests[3][0]
    assert receiver.requests == [(first, 500), (first, 302), (first, 200), (second, 200)]
    assert [event["data"]["policy_version"] for event in receiver.events] == [1, 2]
    assert metrics.webhook_attempts.labels("failed")._value.get() == before + 2


async def test_a_receiver_that_never_answers_holds_up_no_other(ledger: Database) -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    receiver = Recorder(200)
    url = f"http://127.0.0.1:{silent.getsockname()[1]}/tuneloop"
    async with (
        served(receiver.app, free_port()) as good,
        running(make_webhook(url, ledger), make_webhook(good, ledger)),
    ):
        promote(ledger, 1)
        promote(ledger, 2)
        await until(lambda: len(receiver.events) == 2)
    silent.close()


async def test_what_cannot_be_delivered_in_time_is_given_up_and_the_next_one_told(
    ledger: Database, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = Recorder(500)
    clock = Clock()
    before = metrics.webhook_attempts.labels("given_up")._value.get()
    async with (
        served(receiver.app, free_port()) as url,
        running(make_webhook(url, ledger, give_up_seconds=60, clock=clock)),
    ):
        promote(ledger, 1)
        await until(lambda: len(receiver.requests) == 2)
        clock.now += 62
        await until(lambda: metrics.webhook_attempts.labels("given_up")._value.get() > before)
        receiver.statuses = [200]
        promote(ledger, 2)
        await until(lambda: receiver.events)
    assert [event["data"]["policy_version"] for event in receiver.events] == [2]
    assert "version.promoted" in caplog.text
    assert "is given up: answered 500" in caplog.text
    assert "/tuneloop" not in caplog.text


@pytest.fixture
def learner(
    tmp_path: Path, nats_server: NatsServer, tiny_policy: Path, tiny_reward_model: Path
) -> Iterator[LearnerProcess]:
    process = make_learner(tmp_path, nats_server.url, tiny_policy, tiny_reward_model)
    yield process
    process.kill()
    print(process.log)


async def test_a_promotion_is_told_after_the_learner_was_killed(
    learner: LearnerProcess, bus: JetStreamBus
) -> None:
    port = free_port()
    learner.environment |= {
        "TUNELOOP_LEARNER_WEBHOOK_URLS": f'["http://127.0.0.1:{port}/tuneloop"]',
        "TUNELOOP_LEARNER_WEBHOOK_SECRET": SECRET,
    }
    learner.start()
    await feed(bus, 0, 8)
    assert (await until(lambda: stable(bus), 90)).policy_version == 1
    await until(lambda: "trying again" in learner.log, 30)
    learner.kill()
    receiver = Recorder(200)
    async with served(receiver.app, port):
        learner.start()
        await until(lambda: receiver.events, 90)
    assert receiver.events[0]["type"] == "version.promoted"
    assert receiver.events[0]["data"]["policy_version"] == 1
    assert SECRET not in learner.log
