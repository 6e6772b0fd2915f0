"""A process that runs but does not work, and a terminal on a full disk."""

import asyncio
import contextlib
import io
import json
import resource
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nats
from support.ports import free_port
from support.supervised import SLEEPER, make_supervisor, spec

from tuneloop.supervisor.nats import write_config
from tuneloop.supervisor.output import Terminal
from tuneloop.supervisor.probes import accepts_connections, needs_restart
from tuneloop.supervisor.process import RestartPolicy


async def test_a_process_that_ails_is_started_again(tmp_path: Path) -> None:
    # The first is about a stream that is being deleted, say: it passes by itself.
    looks: Iterator[bool] = iter([True, False, True, True])
    again = asyncio.Event()

    async def failing() -> bool:
        ill = next(looks, None)
        if ill is None:
            again.set()
        return bool(ill)

    specs = [replace(spec("nats", SLEEPER), failing=failing)]
    output = io.StringIO()
    supervisor = make_supervisor(
        tmp_path, specs, terminal=Terminal(output), restarts=RestartPolicy(first=0.01)
    )
    running = asyncio.create_task(supervisor.run())
    async with asyncio.timeout(20):
        await again.wait()
    supervisor._on_signal()
    await running
    assert output.getvalue().count("nats runs but does not work any more") == 1
    assert "nats was ended by SIGTERM; starting it again" in output.getvalue()


async def store(connection: Any, count: int) -> int:
    """Publish into a stream; how many events it took."""
    taken = 0
    for number in range(count):
        with contextlib.suppress(nats.errors.TimeoutError):
            answer = await connection.request("events", bytes(4096), timeout=0.2)
            taken += "error" not in json.loads(answer.data)
        if taken <= number:
            break
    return taken


async def test_a_stream_whose_write_failed_is_noticed_once_there_is_room(tmp_path: Path) -> None:
    port, monitor_port = free_port(), free_port()
    config = write_config(tmp_path, port=port, monitor_port=monitor_port)
    command = [str(Path(sys.executable).with_name("nats-server")), "-c", str(config)]
    server = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    failing = needs_restart("127.0.0.1", monitor_port, tmp_path)
    try:
        while not await accepts_connections("127.0.0.1", port)():
            await asyncio.sleep(0.05)
        connection = await nats.connect(f"nats://127.0.0.1:{port}")
        await connection.jetstream().add_stream(name="S", subjects=["events"])
        assert await store(connection, 3) == 3
        assert not await failing()
        # As good as a full disk: no file may grow beyond this.
        free = resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (64 * 1024, -1))
        assert await store(connection, 100) < 20
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, free)
        assert await store(connection, 1) == 0, "the server has got over it by itself"
        assert await failing()
        await connection.close()
    finally:
        server.kill()
        await server.wait()
    # One that is down is not ill: it is started again as it is.
    assert not await failing()
