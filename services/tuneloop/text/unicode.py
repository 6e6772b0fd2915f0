"""Strings of request bodies: JSON can spell half of a surrogate pair, UTF-8 and protobuf cannot."""

import json
from typing import Any


def unicode(value: str) -> str:
    """Return `value`; raises `ValueError` if it is not valid Unicode."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"is not valid Unicode at character {error.start}") from None
    return value


def json_text(value: object) -> str:
    """Return `value` as JSON; raises `ValueError` if protobuf or a reader could not take it."""
    try:
        return unicode(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def read_json_object(line: str) -> dict[str, Any]:
    """Return a line of a file of JSON objects; NaN, which data frames write, is no value.

    Raises `ValueError` that says what is wrong with it.
    """
    try:
        value = json.loads(line, parse_constant=value_of_constant)
        json_text(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def value_of_constant(name: str) -> None:
    """Return what a data frame means by NaN: nothing. Raises `ValueError` for infinity."""
    if name != "NaN":
        raise ValueError(f"{name} is not a number of JSON")
