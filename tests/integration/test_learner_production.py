"""A real learner, its ledger on Postgres and its weights in a bucket, through what goes wrong."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import NatsServer
from support.learner_process import LearnerProcess, feed, make_learner, stable
from support.ports import free_port
from support.postgres_server import Postgres
from support.s3_server import S3, running_s3
from support.waiting import until

from tuneloop.bus.jetstream import JetStreamBus
from tuneloop.weights.filesystem import FilesystemStore
from tuneloop.weights.signing import Verifier

pytestmark = pytest.mark.slow

THUMBS = 48
USED = """
    SELECT feedback.feedback_id, COUNT(uses.sample_id) FROM feedback
    LEFT JOIN uses ON uses.sample_id = feedback.feedback_id AND uses.objective = 'kto'
    GROUP BY feedback.feedback_id
"""


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with running_s3() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def learner(
    tmp_path: Path,
    nats_server: NatsServer,
    postgres: Postgres,
    s3: S3,
    tiny_policy: Path,
    tiny_reward_model: Path,
) -> Iterator[LearnerProcess]:
    process = make_learner(tmp_path, nats_server.url, tiny_policy, tiny_reward_model)
    process.environment |= {
        "TUNELOOP_LEARNER_LEDGER_URL": postgres.database(),
        "TUNELOOP_LEARNER_WEIGHTS_URI": f"{s3.bucket()}/weights",
    }
    yield process
    process.kill()
    print(process.log)


def restart_if_ended(learner: LearnerProcess) -> None:
    """As its operator does: one in the middle of a transaction ends with a message."""
    assert learner.process is not None
    if learner.process.poll() is not None:
        assert learner.process.returncode == 1
        assert "ledger postgresql://postgres:***@" in learner.log
        learner.start()


async def test_every_thumb_is_used_once_whatever_stops(
    learner: LearnerProcess, bus: JetStreamBus, postgres: Postgres, s3: S3, tmp_path: Path
) -> None:
    database = learner.environment["TUNELOOP_LEARNER_LEDGER_URL"].split("?")[0].rsplit("/", 1)[-1]

    def used() -> dict[object, object]:
        return dict(postgres.run(USED, database))  # type: ignore[arg-type]

    learner.start()
    await feed(bus, 0, THUMBS // 3)
    first = await until(lambda: stable(bus), 90)
    # The database restarts under it.
    await asyncio.to_thread(postgres.stop)
    await feed(bus, THUMBS // 3, THUMBS // 3)
    await asyncio.sleep(2)
    await asyncio.to_thread(postgres.start)
    restart_if_ended(learner)
    await until(lambda: len(used()) >= 2 * THUMBS // 3, 60)
    restart_if_ended(learner)
    # Somebody starts a second one on another machine.
    other = replace(learner, folder=tmp_path / "other", process=None)
    other.folder.mkdir()
    other.environment = learner.environment | {
        "TUNELOOP_LEARNER_DATA_DIR": str(tmp_path / "other" / "learner"),
        "TUNELOOP_LEARNER_PORT": str(free_port()),
        "TUNELOOP_LEARNER_METRICS_PORT": str(free_port()),
    }
    other.start()
    assert other.process is not None
    assert await asyncio.to_thread(other.process.wait, 60) == 1
    assert "another learner works on the ledger" in other.log
    learner.kill()
    learner.start()
    await feed(bus, 2 * THUMBS // 3, THUMBS // 3)
    await until(lambda: sum(map(bool, used().values())) == THUMBS, 120)
    assert set(used().values()) == {1}
    newest = await until(lambda: stable(bus), 90)
    assert newest.policy_version > first.policy_version
    store = FilesystemStore(
        learner.environment["TUNELOOP_LEARNER_WEIGHTS_URI"],
        verifier=Verifier.from_file(tmp_path / "keys" / "manifest_public.pem"),
        cache_dir=tmp_path / "cache",
    )
    assert store.fetch(newest)[0].version == newest.policy_version
    versions = store.versions("tuneloop")
    assert versions == list(range(1, versions[-1] + 1))
