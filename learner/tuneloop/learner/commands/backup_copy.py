"""A copy of all that `tuneloop up` keeps, taken while it runs, and a data folder made of it.

What is copied later may be newer than what was copied before, and the order makes that harmless:

1. the streams, with their consumers: what these have acknowledged is in the ledger by then, what
   they have not is delivered again, and the ledger's keys give it one effect;
2. the ledger, by SQLite's online backup: one moment of it;
3. the checkpoints that this ledger resumes from; where one was pruned meanwhile, again from 2;
4. the versions that this ledger knows, which never change, and the keys.

What the ledger does not know is left out: it did not happen. A backup holds every secret of the
service and all that its users wrote.
"""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from tuneloop import ports, wire
from tuneloop.bus import snapshots, subjects
from tuneloop.bus.connection import NatsConnection
from tuneloop.bus.jetstream import JetStreamBus
from tuneloop.errors import FailedPrecondition, InvalidRequest, Unavailable
from tuneloop.files import rename_folder, sync_folder, write_file
from tuneloop.learner.ledger.accounting import steps, versions
from tuneloop.learner.ledger.database import Database
from tuneloop.policies import WeightsReference
from tuneloop.supervisor import nats
from tuneloop.supervisor.data_dir import DataDir, lock

logger = logging.getLogger("tuneloop.learner.commands")

MODELS = ("policy", "reward_model")
ATTEMPTS = 5
START_SECONDS = 30.0
LEDGER = "ledger.db"


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What a backup holds, or what was made of it."""

    events: int
    """Messages of all streams."""
    feedback: int
    """In the ledger."""
    stable: int | None
    """The policy version that serves; None for the base model."""
    versions: int


async def back_up(data: DataDir, target: Path) -> Copied:
    """Copy everything into the new folder `target`.

    Raises `InvalidRequest` when it exists, `FailedPrecondition`, `Unavailable`.
    """
    if not data.model_file.exists() or not (data.learner / LEDGER).exists():
        raise InvalidRequest(
            f"{data.root}: no data folder of tuneloop up with a ledger in it", param="data_dir"
        )
    partial = new_folder(target)
    try:
        events = await copy_streams(data, partial / "streams")
        copied = await asyncio.to_thread(copy_files, data, partial, events)
    except BaseException:
        shutil.rmtree(partial)
        raise
    await asyncio.to_thread(rename_folder, partial, target)
    return copied


def new_folder(target: Path) -> Path:
    """Return a folder beside `target`, for the owner only, that takes its name in the end."""
    if target.exists():
        raise InvalidRequest(f"{target} exists; name a new folder", param="target")
    partial = target.with_name(f".{target.name}-{os.getpid()}")
    partial.mkdir(parents=True, mode=0o700)
    return partial


async def copy_streams(data: DataDir, folder: Path) -> int:
    """Copy every stream, from the running server or one started for it; count the messages."""
    try:
        descriptor = await asyncio.to_thread(lock, data.root)
    except FailedPrecondition:
        url = json.loads(data.run_file.read_text())["nats_url"]
        async with connected(url) as connection:
            return await take_snapshots(connection, folder)
    try:
        async with server(data) as url, connected(url) as connection:
            return await take_snapshots(connection, folder)
    finally:
        os.close(descriptor)


async def take_snapshots(connection: NatsConnection, folder: Path) -> int:
    """Save each stream into a folder of its own."""
    return sum(
        [
            await snapshots.snapshot(connection, name, folder / name)
            for name in await snapshots.stream_names(connection)
        ]
    )


def copy_files(data: DataDir, target: Path, events: int) -> Copied:
    """Copy the ledger and the files it needs; return what the backup holds."""
    for _ in range(ATTEMPTS):
        copy_database(data.learner / LEDGER, target / "learner" / LEDGER)
        with contextlib.closing(Database.at(target / "learner" / LEDGER)) as ledger:
            if not copy_checkpoints(data, ledger, target):
                logger.info("a checkpoint was pruned meanwhile; copying the ledger once more")
                continue
            known = copy_versions(data, ledger, target)
            shutil.copytree(data.keys, target / "keys", dirs_exist_ok=True)
            shutil.copyfile(data.model_file, target / "model.json")
            return summary(ledger, events, known)
    raise Unavailable("checkpoints come and go faster than they can be copied", retry_after=10.0)


def summary(ledger: Database, events: int, known: int) -> Copied:
    """Return what there is, beside `events` and `known` versions."""
    with ledger.read() as connection:
        feedback = connection.exec_driver_sql("SELECT COUNT(*) FROM feedback").scalar_one()
    stable = versions.stable_version(ledger, "policy")
    return Copied(events=events, feedback=int(feedback), stable=stable, versions=known)


def copy_database(source: Path, target: Path) -> None:
    """Copy one moment of a SQLite database that may be written to."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    with (
        contextlib.closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as old,
        contextlib.closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new)


def copy_checkpoints(data: DataDir, ledger: Database, target: Path) -> bool:
    """Copy what each model resumes from; return False when one is gone."""
    for model in MODELS:
        known = steps.checkpoints(ledger, model)
        if not known:
            # It has not learned yet: the learner begins with the base model again.
            continue
        part = Path("learner") / "checkpoints" / model / known[0][1]
        try:
            shutil.copytree(data.root / part, target / part, dirs_exist_ok=True)
        except (FileNotFoundError, shutil.Error):
            return False
    return True


def copy_versions(data: DataDir, ledger: Database, target: Path) -> int:
    """Copy the versions the ledger knows, stored or still to be; return how many are stored."""
    count = 0
    for model in MODELS:
        for version in versions.all_versions(ledger, model):
            name = f"{version.version:08d}"
            if version.stage == "saved":
                part = Path("learner") / "outbox" / model / name
                with contextlib.suppress(FileNotFoundError, shutil.Error):
                    # Where it has gone to the store meanwhile, the learner makes it again.
                    shutil.copytree(data.root / part, target / part)
                continue
            part = Path("weights") / version.policy / name
            shutil.copytree(data.root / part, target / part, dirs_exist_ok=True)
            count += 1
    return count


async def restore(source: Path, data: DataDir) -> Copied:
    """Make a data folder, which must not exist or be empty, of a backup.

    Raises `InvalidRequest`, `CorruptData`, `Unavailable`.
    """
    if not (source / "model.json").is_file() or not (source / "streams").is_dir():
        raise InvalidRequest(f"{source} is not a backup of tuneloop", param="source")
    if data.root.exists() and any(data.root.iterdir()):
        raise InvalidRequest(f"{data.root} is not empty", param="data_dir")
    descriptor = lock(data.root)
    try:
        for name in ("learner", "weights", "keys"):
            with contextlib.suppress(FileNotFoundError):
                await asyncio.to_thread(shutil.copytree, source / name, data.root / name)
        copied = await revive(source, data)
        await asyncio.to_thread(sync_folder, data.root)
        # Last: a folder without it is no data folder.
        write_file(data.model_file, (source / "model.json").read_bytes())
    finally:
        os.close(descriptor)
    return copied


async def revive(source: Path, data: DataDir) -> Copied:
    """Bring streams and routing table back, and the ledger to where the folder lies now."""
    with contextlib.closing(Database.at(data.learner / LEDGER)) as ledger:
        moved = await asyncio.to_thread(relocate, ledger, data)
        data.nats.mkdir()
        async with server(data) as url:
            async with connected(url) as connection:
                folders = sorted((source / "streams").iterdir())
                events = sum([await snapshots.restore(connection, f) for f in folders])
            await route(url, moved, ledger.fact("policy") or "tuneloop")
        stored = [v for m in MODELS for v in versions.all_versions(ledger, m) if v.stage != "saved"]
        return summary(ledger, events, len(stored))


def relocate(ledger: Database, data: DataDir) -> dict[str, WeightsReference]:
    """Let the ledger say where its versions lie now; the stable ones, by routing key."""
    local = LocalFileSystem()
    stable = {}
    for model in MODELS:
        for version in versions.all_versions(ledger, model):
            if not version.uri:
                continue
            place = data.weights / version.policy / f"{version.version:08d}"
            versions.mark_place(ledger, model, version.version, local.unstrip_protocol(str(place)))
        number = versions.stable_version(ledger, model)
        if number is not None:
            found = versions.get_version(ledger, model, number)
            policy = found.policy.removesuffix("-reward-model")
            key = subjects.stable_policy_key if model == "policy" else subjects.reward_model_key
            stable[key(policy)] = found.reference
    return stable


async def route(url: str, stable: dict[str, WeightsReference], policy: str) -> None:
    """Let the routing table name the stable versions of the ledger, where they lie now.

    A canary's share goes back to stable until the learner, which knows of it, routes it again.
    """
    values = {key: wire.encode_routing(reference) for key, reference in stable.items()}
    bus = await JetStreamBus.connect(url, name="tuneloop-restore", wait=START_SECONDS)
    try:
        for key, value in (values | {subjects.canary_policy_key(policy): b""}).items():
            entry = await bus.routing(key)
            if entry is not None or value:
                revision = None if entry is None else entry.revision
                await bus.set_routing(key, value, revision=revision)
    finally:
        await bus.close()


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[NatsConnection]:
    """Return a connection to a server that runs. Raises `Unavailable`."""
    connection = NatsConnection(url, name="tuneloop-backup")
    await connection.start(START_SECONDS)
    try:
        if not connection.connected:
            raise connection.unavailable()
        yield connection
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def server(data: DataDir) -> AsyncIterator[str]:
    """Return a nats-server on the streams of a folder that nobody else uses; its URL."""
    port = ports.take_port("127.0.0.1", 4222, set())
    password = data.nats_password.read_text() if data.nats_password.exists() else ""
    config = nats.write_config(data.nats, port=port, password=password)
    command: Sequence[str] = [str(nats.find_binary(None)), "-c", str(config)]
    log = data.nats / "backup.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)  # noqa: ASYNC220
    try:
        yield nats.url_of(port, password)
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)
        log.unlink()
