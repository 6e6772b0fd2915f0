"""Erase events from the files of nats-server, not only from its index.

A purge marks messages as deleted. Their bytes stay in the file until nats-server rewrites it, which
it does within minutes if more than half of the file is deleted and it is not the one being written
to. So each message is erased by its sequence, which overwrites its bytes at once, at the price of
rewriting its file (8 MiB at most, 14 ms on an SSD).

What was deleted before (by age, by a trim, by a purge) cannot be erased that way any more. Where
few events come, the file that holds it may stay the one being written to for years. So that file is
filled up, and then it is rewritten or deleted as the others are.
"""

import asyncio
import time
from collections.abc import Sequence

from tuneloop.bus import Erased, subjects
from tuneloop.bus.connection import NatsConnection
from tuneloop.bus.streams import (
    ApiError,
    call_api,
    count_messages,
    one_message,
    purge_stream,
    stream_usage,
)

CALL_SECONDS = 30.0
"""The server may have to search the whole stream for a user's next event."""
NO_MESSAGE = {10037, 10043}
AGAIN_SECONDS = 0.05
"""Between two looks for a message that the server counts and does not find."""
FILE_BYTES = 8 * 1024**2
"""Size of nats-server's files for streams as large as these."""
FILLER_BYTES = 512 * 1024
"""Below the largest message of a server as it comes, which is 1 MiB."""


async def erase(
    connection: NatsConnection, stream: str, filters: Sequence[str], seconds: float
) -> Erased:
    """Delete matching messages, overwritten as far as `seconds` go; see `Bus.erase`."""
    end = time.monotonic() + seconds
    overwritten = left = 0
    for subject_filter in filters:
        # On a busy machine the server now and then skips one that lies behind one just deleted.
        while time.monotonic() < end and await count_messages(connection, stream, subject_filter):
            found = await _overwrite(connection, stream, subject_filter, end)
            overwritten += found
            if not found:
                await asyncio.sleep(AGAIN_SECONDS)
        left += await purge_stream(connection, stream, subject_filter, None)
    await _fill_last_file(connection, stream)
    return Erased(overwritten=overwritten, left=left)


async def _overwrite(
    connection: NatsConnection, stream: str, subject_filter: str, end: float
) -> int:
    sequence = overwritten = 0
    while time.monotonic() < end:
        following = {"seq": sequence + 1, "next_by_subj": subject_filter}
        found = await one_message(connection, stream, following, CALL_SECONDS)
        if found is None:
            break
        sequence = found[1]
        try:
            request = {"seq": sequence, "no_erase": False}
            await call_api(connection, f"STREAM.MSG.DELETE.{stream}", request, CALL_SECONDS)
        except ApiError as error:
            if error.err_code not in NO_MESSAGE:
                raise connection.unavailable(f"failed: {error}") from error
            continue  # It expired a moment ago.
        overwritten += 1
    return overwritten


async def _fill_last_file(connection: NatsConnection, stream: str) -> None:
    usage = await stream_usage(connection, stream)
    if usage.limit and usage.stored + 2 * FILE_BYTES > usage.limit / 2:
        return  # So full a stream begins new files often enough by itself.
    filler = subjects.filler(stream)
    try:
        for _ in range(FILE_BYTES // FILLER_BYTES + 1):
            await connection.request(filler, bytes(FILLER_BYTES), seconds=CALL_SECONDS)
    finally:
        await purge_stream(connection, stream, filler, None)
