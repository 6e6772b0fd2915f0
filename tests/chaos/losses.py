"""State that is lost or damaged, and a second learner: what `kill -9` does not do."""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

from chaos.deliveries import api, ignored
from chaos.faults import Fault, Stage, restart_all
from nats.aio.client import Client
from support.ports import free_port

from tuneloop.bus import subjects
from tuneloop.bus.streams import ROUTING_STREAM

RECOVERY_SECONDS = 60.0
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
    durable = "learner-tuneloop-feedback"
    async with bus_of(stage) as client:
        await api(client, f"CONSUMER.DELETE.{subjects.FEEDBACK}.{durable}", {})
        async with asyncio.timeout(RECOVERY_SECONDS):
            while True:
                with contextlib.suppress(ValueError):
                    await api(client, f"CONSUMER.INFO.{subjects.FEEDBACK}.{durable}", {})
                    return
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
    "second learner": second_learner,
    "damaged files": damage_files,
}
