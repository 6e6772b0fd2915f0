"""A real learner process, and the events it is fed."""

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from learner_events import make_rollout, make_thumb

from tuneloop.bus import Bus
from tuneloop.bus.subjects import feedback, rollout_generated
from tuneloop.errors import Unavailable
from tuneloop.wire import encode_feedback, encode_rollout_generated


@dataclass
class LearnerProcess:
    """`start` and `kill` keep its data and ports."""

    folder: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    @property
    def ledger(self) -> Path:
        return self.folder / "learner" / "ledger.db"

    @property
    def log(self) -> str:
        path = self.folder / "learner.log"
        return path.read_text() if path.exists() else ""

    def start(self) -> None:
        command = [sys.executable, "-c", "from tuneloop.learner.main import main; main()"]
        with (self.folder / "learner.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **self.environment}
            )

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def terminate(self) -> int:
        """SIGTERM; the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


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
