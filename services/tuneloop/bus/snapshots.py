"""Streams as files: JetStream's own snapshots, which include consumers and their positions.

A snapshot is taken while processes publish and consume, and shows one moment. `nats stream backup`
and `nats stream restore` use the same requests and the same files.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

from tuneloop.bus.connection import NatsConnection
from tuneloop.bus.streams import ApiError, call_api
from tuneloop.errors import Conflict, CorruptData, NotFound, Unavailable

META, DATA = "backup.json", "stream.tar.s2"
CHUNK_BYTES = 64 * 1024
ANSWER_SECONDS = 10.0
RESTORE_SECONDS = 600.0
"""How long the server may take to restore what it was sent."""


async def stream_names(connection: NatsConnection) -> list[str]:
    """Return the names of all streams, sorted. Raises `Unavailable`."""
    names: list[str] = []
    while True:
        page = await call_api(connection, "STREAM.NAMES", {"offset": len(names)}, ANSWER_SECONDS)
        names += page["streams"] or []
        if len(names) >= page["total"] or not page["streams"]:
            return sorted(names)


async def snapshot(connection: NatsConnection, stream: str, folder: Path) -> int:
    """Write a stream into `folder`; return how many messages it holds.

    Raises `NotFound`, `Unavailable`.
    """
    await asyncio.to_thread(folder.mkdir, parents=True)
    inbox = connection.client.new_inbox()
    chunks: asyncio.Queue[Any] = asyncio.Queue()
    subscription = await connection.client.subscribe(inbox, cb=chunks.put)
    try:
        request = {"deliver_subject": inbox, "chunk_size": CHUNK_BYTES}
        document = await call_api(connection, f"STREAM.SNAPSHOT.{stream}", request, ANSWER_SECONDS)
        with (folder / DATA).open("wb") as file:
            while message := await receive_chunk(connection, chunks, stream):
                if message.reply:
                    await connection.client.publish(message.reply, b"")
                await asyncio.to_thread(file.write, message.data)
    except ApiError as error:
        if error.code == 404:
            raise NotFound(f"no stream {stream!r}", param="stream") from error
        raise connection.unavailable(f"gave no snapshot of {stream}: {error}") from error
    finally:
        await subscription.unsubscribe()
    meta = {"config": document["config"], "state": document["state"]}
    (folder / META).write_text(json.dumps(meta, indent=2) + "\n")
    return int(document["state"]["messages"])


async def receive_chunk(
    connection: NatsConnection, chunks: "asyncio.Queue[Any]", stream: str
) -> Any | None:
    """Return the next piece of a snapshot, or None at its end.

    Raises `Unavailable` if the snapshot is cut off.
    """
    async with connection.waiting(ANSWER_SECONDS):
        message = await chunks.get()
    if message.data:
        return message
    status = (message.headers or {}).get("Status", "204")
    if not status.startswith("204"):
        what = (message.headers or {}).get("Description", status)
        raise Unavailable(f"the event bus cut the snapshot of {stream} off: {what}")
    return None


async def restore(connection: NatsConnection, folder: Path) -> int:
    """Create the stream that `folder` holds; return how many messages it has.

    Raises `Conflict` if the stream exists, `CorruptData`, `Unavailable`.
    """
    try:
        meta = json.loads((folder / META).read_text())
        stream = meta["config"]["name"]
    except (OSError, ValueError, KeyError) as error:
        raise CorruptData(f"{folder}: no snapshot of a stream: {error}") from error
    try:
        answer = await call_api(connection, f"STREAM.RESTORE.{stream}", meta, ANSWER_SECONDS)
        subject = answer["deliver_subject"]
        with (folder / DATA).open("rb") as file:
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                parse_answer(await connection.request(subject, chunk, seconds=ANSWER_SECONDS))
        done = parse_answer(await connection.request(subject, b"", seconds=RESTORE_SECONDS))
    except ApiError as error:
        if error.code == 400:
            raise Conflict(f"stream {stream} cannot be restored: {error}") from error
        raise Unavailable(f"stream {stream} cannot be restored: {error}") from error
    return int(done["state"]["messages"])


def parse_answer(answer: bytes) -> dict[str, Any]:
    """Parse the answer to a piece of a stream. Raises `ApiError`."""
    document: dict[str, Any] = json.loads(answer) if answer else {}
    if "error" in document:
        raise ApiError(document["error"])
    return document
