"""Strings of request bodies: JSON can spell half of a surrogate pair, UTF-8 and protobuf cannot."""

import json
from typing import Annotated

from pydantic import AfterValidator


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


Text = Annotated[str, AfterValidator(unicode)]
