"""A metric on its way: gateway, real nats-server, ledger, and what decides by it."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import NatsServer
from support.canary_trial import Trial
from support.gateway_fakes import IDS, SECRET
from support.learner_events import make_rollout
from support.waiting import until

from tuneloop.bus.jetstream import JetStreamBus
from tuneloop.gateway.app import create_app
from tuneloop.gateway.completion_ids import user_hash_in
from tuneloop.gateway.settings import GatewaySettings
from tuneloop.learner.guards.settings import GuardSettings
from tuneloop.learner.intake.consumers import make_consumers, run_consumers
from tuneloop.learner.ledger.accounting import forget_user, promotions
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.reports.traffic import traffic
from tuneloop.learner.monitoring.alarm_monitor import AlarmMonitor

ANSWERS = 40


def completion_ids(version: int) -> list[str]:
    users = [IDS.user_hash("default", f"user {version} {n}") for n in range(ANSWERS)]
    return [IDS.make("chatcmpl", "default", user) for user in users]


def record_answers(ledger: Database, version: int, ids: list[str]) -> None:
    answers = [make_rollout(name, user=user_hash_in(name), version=version) for name in ids]
    recorder.record_rollouts(ledger, answers, 0.0)


def shown(ledger: Database, version: int) -> list[tuple[str, int, float]]:
    found = traffic(ledger, [version])
    return [(m.name, m.count, m.mean.value) for m in found[version].metrics]


@pytest.fixture
def ledger(tmp_path: Path) -> Database:
    trial = Trial(folder=tmp_path)
    with trial.database.write() as connection:
        promotions.set_stable(
            connection, "policy", 1, previous=0, action="publish", actor="x", now=0.0
        )
    return trial.database


async def test_from_http_to_the_hold(ledger: Database, nats_server: NatsServer) -> None:
    by_version = {version: completion_ids(version) for version in (0, 1)}
    bodies: list[dict[str, Any]] = [
        {
            "kind": "metric",
            "id": f"m-{version}-{n}",
            "completion_id": name,
            "name": "task_solved",
            "value": (version == 0) == (n < 36),
        }
        for version, ids in by_version.items()
        for n, name in enumerate(ids)
    ]
    bus = await JetStreamBus.connect(nats_server.url)
    app = create_app(GatewaySettings(secret=SECRET), bus)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1"
        ) as http,
    ):
        for _ in range(2):  # A repeat counts once.
            sent = await http.post("/v1/feedback/batch", json={"feedback": bodies})
            assert sent.status_code == 202, sent.text
        wrong = await http.post("/v1/feedback", json=bodies[0] | {"value": 1})
        assert wrong.status_code == 409, "a boolean is not a number"
        assert (await http.delete("/v1/feedback/m-0-39")).status_code == 200
    await bus.close()
    # Acknowledged is durable: the server dies before the learner has read anything.
    nats_server.kill()
    nats_server.start()
    record_answers(ledger, 1, by_version[1])
    bus = await JetStreamBus.connect(nats_server.url)
    intake = asyncio.create_task(
        run_consumers(bus, "tuneloop", make_consumers(ledger, "tuneloop"), lambda: None)
    )
    # One of two answers comes after what was measured of it.
    await until(lambda: forget_user.row_counts(ledger)["feedback"] == 2 * ANSWERS)
    record_answers(ledger, 0, by_version[0])
    await until(lambda: shown(ledger, 0) == [("task_solved", 39, pytest.approx(36 / 39))])
    assert shown(ledger, 1) == [("task_solved", 40, pytest.approx(0.1))]
    watch = AlarmMonitor(ledger, GuardSettings(metric="task_solved"))
    watch.check_alarms()
    assert watch.holding == "metric"
    user = user_hash_in(by_version[1][0])
    assert forget_user.forget_user(ledger, user, 1e12).feedback == 1
    assert shown(ledger, 1)[0][1] == 39
    intake.cancel()
    await asyncio.gather(intake, return_exceptions=True)
    await bus.close()
