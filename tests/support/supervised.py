"""A supervisor over made-up processes, for its tests; also run as a script of its own."""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tuneloop.errors import FailedPrecondition
from tuneloop.supervisor.data_dir import lock, open_data_dir
from tuneloop.supervisor.output import Terminal
from tuneloop.supervisor.plan import ProcessPlan
from tuneloop.supervisor.process import ProcessSpec, RestartPolicy
from tuneloop.supervisor.supervisor import Supervisor

SLEEPER = "print('up', flush=True); import time; time.sleep(3600)"
PARENT = (
    "import subprocess, sys, time;"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)']);"
    "print('child', child.pid, flush=True); time.sleep(3600)"
)


async def ready() -> bool:
    return True


def spec(name: str, code: str, *, stage: int = 0) -> ProcessSpec:
    return ProcessSpec(
        name=name,
        command=(sys.executable, "-c", code),
        environment=dict(os.environ),
        probe=ready,
        stage=stage,
        port=1,
    )


def make_supervisor(
    data_dir: Path,
    specs: Sequence[ProcessSpec],
    *,
    terminal: Terminal,
    lock_descriptor: int | None = None,
    stop_seconds: float = 5.0,
    restarts: RestartPolicy | None = None,
) -> Supervisor:
    plan = ProcessPlan(
        specs=tuple(specs),
        url="http://127.0.0.1:1",
        nats_url="nats://127.0.0.1:1",
        key_needed=False,
        policy="tuneloop",
    )
    return Supervisor(
        plan,
        open_data_dir(data_dir),
        terminal=terminal,
        lock_descriptor=lock_descriptor,
        stop_seconds=stop_seconds,
        restarts=restarts,
    )


def main() -> None:
    """Supervise two parents of a child each in the data folder given."""
    data_dir = Path(sys.argv[1])
    try:
        descriptor = lock(data_dir)
    except FailedPrecondition as error:
        raise SystemExit(error.message) from error

    async def supervise() -> None:
        specs = [spec("generation", PARENT), spec("learner", PARENT, stage=1)]
        terminal = Terminal()
        supervisor = make_supervisor(data_dir, specs, terminal=terminal, lock_descriptor=descriptor)
        await supervisor.run()

    asyncio.run(supervise())


if __name__ == "__main__":
    main()
