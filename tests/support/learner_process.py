"""A real learner process, and the events it is fed."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from support.learner_events import make_rollout, make_thumb
from support.ports import free_port

from tuneloop.bus import Bus
from tuneloop.bus.jetstream import JetStreamBus
from tuneloop.bus.subjects import feedback, rollout_generated, stable_policy_key
from tuneloop.errors import Unavailable
from tuneloop.policies import WeightsReference
from tuneloop.v1 import generation_pb2
from tuneloop.weights.signing import write_key_pair
from tuneloop.wire import encode_feedback, encode_rollout_generated, weights_from_proto


@dataclass
class LearnerProcess:
    """`start` and `kill` keep its data and ports."""

    folder: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    torchrun: tuple[str, ...] = ()
    """What starts several ranks, if it is not one alone."""

    @property
    def ranks(self) -> list[int]:
        """Processes that torchrun runs now."""
        assert self.process is not None
        return children_of(self.process.pid)

    @property
    def ledger(self) -> Path:
        return self.folder / "learner" / "ledger.db"

    @property
    def log(self) -> str:
        path = self.folder / "learner.log"
        return path.read_text() if path.exists() else ""

    def start(self) -> None:
        program = "from tuneloop.learner.main import main; main()"
        command = [*self.torchrun, sys.executable, "-c", program]
        with (self.folder / "learner.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **self.environment}
            )

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            for rank in self.ranks if self.torchrun else ():
                os.kill(rank, signal.SIGKILL)
            self.process.kill()
            self.process.wait()
            self.process = None

    def terminate(self) -> int:
        """SIGTERM; the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


def make_learner(folder: Path, nats_url: str, policy: Path, reward_model: Path) -> LearnerProcess:
    """A learner on tiny models, not started."""
    private, public = write_key_pair(folder / "keys")
    port = free_port()
    settings = {
        "PORT": port,
        "METRICS_PORT": free_port(),
        "MODEL": policy,
        "BASE_MODEL_NAME": "tiny",
        "REWARD_MODEL": reward_model,
        "NATS_URL": nats_url,
        "WEIGHTS_URI": folder / "weights",
        "SIGNING_KEY_FILE": private,
        "VERIFY_KEY_FILE": public,
        "DATA_DIR": folder / "learner",
        "BATCH_SIZE": 4,
        "BATCH_WAIT_SECONDS": 0.2,
        "PUBLISH_EVERY_SECONDS": 1,
        "THREADS": 1,
        "NICENESS": 0,
        # There is no generation service that the gate could ask.
        "RELEASE": "off",
    }
    environment = {f"TUNELOOP_LEARNER_{name}": str(value) for name, value in settings.items()}
    return LearnerProcess(folder=folder, environment=environment | {"OMP_NUM_THREADS": "1"})


def children_of(pid: int) -> list[int]:
    """Processes that a process started, oldest first."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return sorted(int(child) for path in lists for child in path.read_text().split())


async def feed(
    bus: Bus, start: int, count: int, *, thumb_first: bool = False, tokens: int = 5
) -> None:
    """Publish rollouts and a thumb for each, as generation and gateway do."""
    for number in range(start, start + count):
        rollout = make_rollout(
            f"c{number}",
            prompt=(1, 10 + number % 50, 11, 12),
            completion=(20 + number % 40,) * (tokens - 1) + (2,),
        )
        thumb = make_thumb(f"f{number}", f"c{number}", number % 2 == 0)
        rollout_subject = rollout_generated("tuneloop", "u1")
        thumb_subject = feedback("tuneloop", "thumb", "u1", f"f{number}")
        events = [
            (rollout_subject, encode_rollout_generated(rollout), f"rollout-c{number}"),
            (thumb_subject, encode_feedback(thumb), f"f{number}"),
        ]
        for subject, data, event_id in reversed(events) if thumb_first else events:
            await publish(bus, subject, data, event_id)


async def publish(bus: Bus, subject: str, data: bytes, event_id: str) -> None:
    """Publish until it is acknowledged; the id makes repetition harmless."""
    for _ in range(60):
        try:
            await bus.publish(subject, data, event_id=event_id)
            return
        except Unavailable:
            await asyncio.sleep(0.5)
    raise AssertionError("the bus did not come back")


def thumbs_used(learner: LearnerProcess) -> dict[str, int]:
    """How many times each thumb the ledger has was used, in one epoch or another."""
    query = """
        SELECT feedback.feedback_id, COUNT(uses.sample_id) FROM feedback
        LEFT JOIN uses ON uses.sample_id = feedback.feedback_id AND uses.objective = 'kto'
        GROUP BY feedback.feedback_id
    """
    with sqlite3.connect(f"file:{learner.ledger}?mode=ro", uri=True) as ledger:
        return dict(ledger.execute(query).fetchall())


async def stable(bus: JetStreamBus) -> WeightsReference | None:
    entry = await bus.routing(stable_policy_key("tuneloop"))
    if entry is None:
        return None
    return weights_from_proto(generation_pb2.WeightsReference.FromString(entry.value))


def all_used(learner: LearnerProcess, total: int) -> bool:
    used = thumbs_used(learner)
    assert max(used.values(), default=0) <= 1
    return len(used) == total and min(used.values()) == 1
