"""The streams and the bucket of the event bus: their limits, and how they are created."""

import base64
import json
import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tuneloop.bus import Owner, StreamUsage, subjects
from tuneloop.bus.connection import NatsConnection
from tuneloop.errors import Conflict, InvalidRequest, NotFound, Unavailable

logger = logging.getLogger("tuneloop.bus")

API = "$JS.API"
NANOSECONDS = 1_000_000_000
DAY = 86_400
GIB = 1024**3
IN_USE_WITH_OTHER_CONFIGURATION = 10058
CONSUMER_EXISTS = 10148
STREAM_NOT_FOUND = 10059
NEED_A_STREAM = ("STREAM.MSG.GET.", "CONSUMER.")
"""Requests that come after the streams were made: without one, the server has lost it."""
WRONG_LAST_SEQUENCE = {10071, 10164}
OWNER = "tuneloop-owner"
"""Metadata of a consumer: the id of who alone may consume."""
ROUTING_STREAM = f"KV_{subjects.ROUTING_BUCKET}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """How much the streams keep."""

    rollout_bytes: int = 2 * GIB
    """Oldest rollouts go first beyond this size."""
    rollout_days: float = 7.0
    feedback_bytes: int = GIB
    """Beyond this size new feedback is refused: acknowledged feedback is never dropped."""
    signal_bytes: int = GIB // 8
    """Oldest signals go first beyond this size, as under `signal_days`: losing some is no harm."""
    signal_days: float = 7.0
    other_bytes: int = GIB // 8
    """For versions and steps, and for dead letters."""
    other_days: float = 30.0


class ApiError(Exception):
    """JetStream refused a request of its API."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error.get("description", "unknown error"))
        self.code = int(error.get("code", 0))
        self.err_code = int(error.get("err_code", 0))


async def call_api(
    connection: NatsConnection, verb: str, body: dict[str, Any], seconds: float
) -> Any:
    """Call JetStream's API. Raises `ApiError`, or `Unavailable` while JetStream is down."""
    answer = await connection.request(f"{API}.{verb}", json.dumps(body).encode(), seconds=seconds)
    document = json.loads(answer)
    if "error" not in document:
        return document
    error = ApiError(document["error"])
    if error.err_code == STREAM_NOT_FOUND and verb.startswith(NEED_A_STREAM):
        connection.note_loss()
        raise connection.unavailable(f"has lost a stream: {error}") from error
    if error.code == 503:
        raise connection.unavailable(f"refused: {error}") from error
    raise error


async def last_message(
    connection: NatsConnection, stream: str, subject_filter: str, seconds: float
) -> tuple[str, int, bytes, dict[str, str]] | None:
    """Return subject, sequence, data and headers of the newest message that matches, or None."""
    return await one_message(connection, stream, {"last_by_subj": subject_filter}, seconds)


async def one_message(
    connection: NatsConnection, stream: str, body: dict[str, Any], seconds: float
) -> tuple[str, int, bytes, dict[str, str]] | None:
    """Return the message that `body` asks for, or None."""
    try:
        answer = await call_api(connection, f"STREAM.MSG.GET.{stream}", body, seconds)
    except ApiError as error:
        if error.code == 404:
            return None
        raise connection.unavailable(f"failed: {error}") from error
    message = answer["message"]
    lines = base64.b64decode(message.get("hdrs", "")).decode(errors="replace").split("\r\n")[1:]
    pairs = (line.partition(": ") for line in lines if ": " in line)
    headers = {name: value for name, _, value in pairs}
    data = base64.b64decode(message.get("data", ""))
    return message["subject"], message["seq"], data, headers


def configurations(limits: StreamLimits, replicas: int = 1) -> list[dict[str, Any]]:
    """Return JetStream's configuration of every stream and of the routing bucket.

    `replicas` is the number of copies in a NATS cluster.
    """
    sizes: dict[str, tuple[int, float, str]] = {
        subjects.ROLLOUTS: (limits.rollout_bytes, limits.rollout_days, "old"),
        subjects.FEEDBACK: (limits.feedback_bytes, 0, "new"),
        subjects.SIGNALS: (limits.signal_bytes, limits.signal_days, "old"),
        subjects.LEARNER: (limits.other_bytes, limits.other_days, "old"),
        subjects.DEAD_LETTERS: (limits.other_bytes, limits.other_days, "old"),
    }
    common: dict[str, Any] = {
        "retention": "limits",
        "storage": "file",
        "num_replicas": replicas,
        "duplicate_window": 120 * NANOSECONDS,
        "max_msgs": -1,
        "max_msg_size": -1,
        "max_consumers": -1,
    }
    streams = [
        common
        | {
            "name": name,
            "subjects": subjects.stream_subjects[name],
            "max_bytes": size,
            "max_age": int(days * DAY * NANOSECONDS),
            "discard": discard,
            "max_msgs_per_subject": -1,
        }
        for name, (size, days, discard) in sizes.items()
    ]
    bucket = common | {
        "name": ROUTING_STREAM,
        "subjects": [f"$KV.{subjects.ROUTING_BUCKET}.>"],
        "max_bytes": -1,
        "max_age": 0,
        "discard": "new",
        "max_msgs_per_subject": 64,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
    }
    return [*streams, bucket]


async def ensure_streams(
    connection: NatsConnection, limits: StreamLimits | None, replicas: int = 1
) -> None:
    """Create missing streams; change existing ones only to `limits` or `replicas` that were given.

    Raises `Unavailable`; the message says if the server's storage is too small, or if streams are
    missing that this process may not create.
    """
    for configuration in configurations(limits or StreamLimits(), replicas):
        # Looked up first: in production only the learner may create them.
        found = await stream_configuration(connection, configuration["name"])
        if found is None:
            await create_stream(connection, configuration)
        elif limits is not None:
            await update_stream(connection, configuration)
        elif replicas > 1 and found["num_replicas"] != replicas:
            await update_stream(connection, found | {"num_replicas": replicas})


async def purge_stream(
    connection: NatsConnection, stream: str, subject_filter: str, up_to: int | None
) -> int:
    """Delete matching messages; see `Bus.purge`. Raises `NotFound` and `Unavailable`."""
    # The server keeps the one with the sequence that it is told.
    until = {} if up_to is None else {"seq": up_to + 1}
    body = {"filter": subject_filter, **until}
    try:
        answer = await call_api(connection, f"STREAM.PURGE.{stream}", body, 30.0)
    except ApiError as error:
        if error.code == 404:
            raise NotFound(f"no stream {stream!r}", param="stream") from error
        raise connection.unavailable(f"failed: {error}") from error
    return int(answer["purged"])


async def stream_usage(connection: NatsConnection, stream: str) -> StreamUsage:
    """Return how full a stream is. Raises `Unavailable`."""
    info = await _stream_info(connection, stream, {}, 5.0)
    return StreamUsage(
        stored=int(info["state"]["bytes"]),
        limit=max(0, int(info["config"].get("max_bytes", 0))),
        time=datetime.fromisoformat(info["ts"]),
        created=datetime.fromisoformat(info["created"]),
    )


async def count_messages(connection: NatsConnection, stream: str, subject_filter: str) -> int:
    """Count a stream's matching messages, of 100,000 subjects at most. Raises `Unavailable`."""
    info = await _stream_info(connection, stream, {"subjects_filter": subject_filter}, 30.0)
    return sum((info["state"].get("subjects") or {}).values())


async def _stream_info(
    connection: NatsConnection, stream: str, body: dict[str, Any], seconds: float
) -> Any:
    try:
        return await call_api(connection, f"STREAM.INFO.{stream}", body, seconds)
    except ApiError as error:
        raise connection.unavailable(f"failed: {error}") from error


async def consumer_state(connection: NatsConnection, stream: str, durable: str) -> Any:
    """Return the server's information on a consumer. Raises `Unavailable`."""
    try:
        return await call_api(connection, f"CONSUMER.INFO.{stream}.{durable}", {}, 5.0)
    except ApiError as error:
        raise connection.unavailable(f"failed: {error}") from error


async def stream_configuration(connection: NatsConnection, name: str) -> dict[str, Any] | None:
    """Return a stream's configuration, or None if it does not exist."""
    try:
        info = await call_api(connection, f"STREAM.INFO.{name}", {}, 5.0)
    except ApiError as error:
        if error.code == 404:
            return None
        raise stream_error(name, error) from error
    configuration: dict[str, Any] = info["config"]
    return configuration


async def create_stream(connection: NatsConnection, configuration: dict[str, Any]) -> None:
    """Create a stream, unless another process just did."""
    name = configuration["name"]
    try:
        await call_api(connection, f"STREAM.CREATE.{name}", configuration, 5.0)
    except ApiError as error:
        if error.err_code != IN_USE_WITH_OTHER_CONFIGURATION:
            raise stream_error(name, error) from error


async def update_stream(connection: NatsConnection, configuration: dict[str, Any]) -> None:
    """Update an existing stream to this configuration."""
    name = configuration["name"]
    try:
        await call_api(connection, f"STREAM.UPDATE.{name}", configuration, 5.0)
    except ApiError as error:
        raise stream_error(name, error) from error
    logger.info("stream %s: updated", name)


def stream_error(stream: str, error: ApiError) -> Unavailable:
    """Log that a stream can be neither created nor changed; return the error to raise."""
    logger.error("stream %s cannot be created: %s", stream, error)
    return Unavailable(f"the event bus refused stream {stream}: {error}", retry_after=30.0)


async def create_consumer(
    connection: NatsConnection,
    stream: str,
    configuration: dict[str, Any],
    owner: Owner | None,
    seconds: float,
) -> None:
    """Create a consumer, or update it; if it has an owner, only for this one.

    Raises `FailedPrecondition` where it belongs to another, `ApiError`, and `Unavailable`.
    """
    name = configuration["name"]
    request = {"stream_name": stream, "config": configuration}
    verb = f"CONSUMER.CREATE.{stream}.{name}"
    if owner is None:
        await call_api(connection, verb, request, seconds)
        return
    request["config"] = {**configuration, "metadata": {OWNER: owner.owner_id}}
    try:
        # Of two at once, the server lets one create it.
        await call_api(connection, verb, {**request, "action": "create"}, seconds)
    except ApiError as error:
        if error.err_code != CONSUMER_EXISTS:
            raise
        info = await call_api(connection, f"CONSUMER.INFO.{stream}.{name}", {}, seconds)
        owner.check(name, str((info["config"].get("metadata") or {}).get(OWNER, "")))
        await call_api(connection, verb, {**request, "action": "update"}, seconds)


def refusal_error(error: ApiError) -> Conflict | InvalidRequest | Unavailable:
    """Return the error to raise when a stream refused an event."""
    if error.err_code in WRONG_LAST_SEQUENCE:
        return Conflict("an event with this id exists", param="id")
    if error.code == 400:
        return InvalidRequest(f"the event bus refused the event: {error}")
    # 503: the stream is full (that of feedback drops nothing) or has no leader.
    return Unavailable(f"the event bus refused the event: {error}", retry_after=30.0)
