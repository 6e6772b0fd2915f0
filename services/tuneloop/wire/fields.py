"""Parsing, checks that name the field, times and JSON, for the fields of all messages."""

import json
from datetime import UTC, datetime
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from tuneloop.errors import CorruptData

M = TypeVar("M", bound=Message)


def parse(message_type: type[M], data: bytes) -> M:
    """Parse `data`, or raise `CorruptData`."""
    try:
        return message_type.FromString(data)
    except DecodeError as error:
        raise CorruptData(f"not a {message_type.DESCRIPTOR.full_name}: {error}") from error


def require(condition: bool, field: str, problem: str) -> None:
    """Raise `CorruptData` naming `field` unless `condition` holds."""
    if not condition:
        raise CorruptData(f"{field}: {problem}", param=field)


def timestamp(when: datetime) -> Timestamp:
    """Return an aware datetime as a protobuf timestamp."""
    stamp = Timestamp()
    stamp.FromDatetime(when.astimezone(UTC))
    return stamp


def moment(stamp: Timestamp, field: str) -> datetime:
    """Return a protobuf timestamp as an aware datetime. Raises `CorruptData` if it is invalid."""
    require(stamp.seconds > 0, field, "missing")
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise CorruptData(f"{field}: not a time: {error}", param=field) from error


def json_object(text: str, field: str) -> None:
    """Raise `CorruptData` naming `field` unless `text` is a JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptData(f"{field}: not JSON: {error}", param=field) from error
    require(isinstance(value, dict), field, "must be a JSON object")
