"""Strings of request bodies: JSON can spell half of a surrogate pair, UTF-8 and protobuf cannot."""

from typing import Annotated

from pydantic import AfterValidator


def unicode(value: str) -> str:
    """`value`; raises `ValueError` where it is not valid Unicode."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"is not valid Unicode at character {error.start}") from None
    return value


Text = Annotated[str, AfterValidator(unicode)]
