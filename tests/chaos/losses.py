"""State that is lost or damaged, and a second learner: what `kill -9` does not do."""

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

from chaos.audit import recorded_feedback
from chaos.deliveries import DURABLES, api, ignored
from chaos.faults import Fault, Stage, restart_all
from nats.aio.client import Client
from support.ports import free_port

from tuneloop.bus import subjects
from tuneloop.bus.streams import ROUTING_STREAM

RECOVERY_SECONDS = 60.0
BEHIND_SECONDS = 3.0
IN_FLIGHT_SECONDS = 1.0
"""Within which the server has stored what it was sent."""
REFUSAL = "go to another ledger"


@contextlib.asynccontextmanager
async def bus_of(stage: Stage) -> AsyncIterator[Client]:
    """A client of the service's nats-server."""
    client = Client()
    url = stage.service.run_state()["nats_url"]
    await client.connect(url, connect_timeout=5, allow_reconnect=False, error_cb=ignored)
    try:
        yield client
    finally:
        await client.close()


async def lose_routing(stage: Stage) -> None:
    """The routing table is deleted under everybody; the learner names the stable version again."""
    subject = f"$KV.{subjects.ROUTING_BUCKET}.{subjects.stable_policy_key('tuneloop')}"
    async with bus_of(stage) as client, stage.outage("routing"):
        before = await named(client, subject)
        await api(client, f"STREAM.DELETE.{ROUTING_STREAM}", {})
        async with asyncio.timeout(RECOVERY_SECONDS):
            while before and not await named(client, subject):
                await asyncio.sleep(0.2)


async def named(client: Client, subject: str) -> Any:
    """Return what the routing table names; None if that is nothing."""
    try:
        return await api(client, f"STREAM.MSG.GET.{ROUTING_STREAM}", {"last_by_subj": subject})
    except ValueError:
        return None


async def lose_consumer(stage: Stage) -> None:
    """The server forgets how far the learner has read: all comes again."""
    durable = DURABLES[subjects.FEEDBACK][0]
    async with bus_of(stage) as client:
        await api(client, f"CONSUMER.DELETE.{subjects.FEEDBACK}.{durable}", {})
        await made_again(client, subjects.FEEDBACK)


async def lose_rollouts(stage: Stage) -> None:
    """What nobody had taken in yet is gone with its stream; the rest goes on."""
    async with bus_of(stage) as client, stage.outage("rollouts"):
        await api(client, f"STREAM.DELETE.{subjects.ROLLOUTS}", {})
        await made_again(client, subjects.ROLLOUTS)


async def lose_learner_stream(stage: Stage) -> None:
    """Nobody needs what the stream of versions and steps held."""
    async with bus_of(stage) as client:
        await api(client, f"STREAM.DELETE.{subjects.LEARNER}", {})
        await made_again(client, subjects.LEARNER)


async def lose_feedback(stage: Stage) -> None:
    """What the learner had not taken in is lost, though acknowledged: it is noted here.

    The learner stands still for a while, so that there is something to lose; then the gateway too,
    so that nothing is stored after the look at the stream.
    """
    async with bus_of(stage) as client, contextlib.AsyncExitStack() as frozen:
        hold_still(stage, "learner", frozen)
        await asyncio.sleep(BEHIND_SECONDS)
        async with stage.outage("gateway", "feedback stream"):
            hold_still(stage, "gateway", frozen)
            await asyncio.sleep(IN_FLIGHT_SECONDS)
            held = await held_feedback(client)
            await api(client, f"STREAM.DELETE.{subjects.FEEDBACK}", {})
            stage.lost_feedback |= held - recorded_feedback(stage.service.data_dir)
            await frozen.aclose()
            await made_again(client, subjects.FEEDBACK)


def hold_still(stage: Stage, name: str, until: contextlib.AsyncExitStack) -> None:
    """Let a process stand still until the end of a block."""
    until.callback(os.kill, stage.signal(name, signal.SIGSTOP), signal.SIGCONT)


async def held_feedback(client: Client) -> set[str]:
    """Return the ids of all feedback in its stream."""
    request = {"subjects_filter": ">"}
    info = await api(client, f"STREAM.INFO.{subjects.FEEDBACK}", request)
    return {subject.split(".")[4] for subject in info["state"].get("subjects") or ()}


async def made_again(client: Client, stream: str) -> None:
    """Wait until a stream and its consumers exist."""
    durables = DURABLES.get(stream, ["learner-tuneloop-activations"])
    wanted = [f"CONSUMER.INFO.{stream}.{durable}" for durable in durables]
    async with asyncio.timeout(RECOVERY_SECONDS):
        for verb in (f"STREAM.INFO.{stream}", *wanted):
            while True:
                with contextlib.suppress(ValueError):
                    await api(client, verb, {})
                    break
                await asyncio.sleep(0.2)


async def second_learner(stage: Stage) -> None:
    """Somebody starts a learner with a ledger of its own: it is refused, and takes no event."""
    command, environment = running(int(stage.processes()["learner"]["pid"]))
    with tempfile.TemporaryDirectory() as folder:
        environment |= {
            "TUNELOOP_LEARNER_DATA_DIR": folder,
            "TUNELOOP_LEARNER_PORT": str(free_port()),
            "TUNELOOP_LEARNER_METRICS_PORT": str(free_port()),
        }
        process = await asyncio.create_subprocess_exec(
            *command,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(4 * RECOVERY_SECONDS):
                said, _ = await process.communicate()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    if process.returncode == 0 or REFUSAL not in said.decode(errors="replace"):
        raise AssertionError(f"a second learner was not refused: {said[-2000:]!r}")


def running(pid: int) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment of a process."""
    folder = Path("/proc", str(pid))
    command = (folder / "cmdline").read_bytes().decode().split("\0")[:-1]
    lines = (folder / "environ").read_bytes().decode().split("\0")
    return command, dict(line.split("=", 1) for line in lines if "=" in line)


async def damage_files(stage: Stage) -> None:
    """Everything ends; what can be made again has other bytes when it starts.

    NATS's snapshots of its streams, cached weights, and the newest checkpoint.
    """
    await restart_all(stage, lambda: spoil_all(stage.service.data_dir))


def spoil_all(data_dir: Path) -> None:
    """Damage every file that nobody has to have."""
    for path in damageable(data_dir):
        spoil(path)


def damageable(data_dir: Path) -> Iterable[Path]:
    """Return files that nobody has to have."""
    yield from (data_dir / "nats").rglob("index.db")
    yield from (data_dir / "weights-cache").rglob("*.safetensors")
    newest = sorted((data_dir / "learner" / "checkpoints" / "policy").glob("step-*"))[-1:]
    for folder in newest:
        yield from (path for path in folder.iterdir() if path.is_file())


def spoil(path: Path) -> None:
    """Overwrite the middle of a file, in a copy that takes its place: links keep their content."""
    copy = path.with_name(path.name + ".spoilt")
    shutil.copyfile(path, copy)
    size = copy.stat().st_size
    with copy.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\xff" * min(64, size - size // 2))
    copy.replace(path)


losses: dict[str, Fault] = {
    "routing table lost": lose_routing,
    "consumer lost": lose_consumer,
    "rollouts lost": lose_rollouts,
    "feedback stream lost": lose_feedback,
    "learner's stream lost": lose_learner_stream,
    "second learner": second_learner,
    "damaged files": damage_files,
}
