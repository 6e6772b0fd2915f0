"""The session of a request: the conversation that it is a turn of, by the application's own id."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from starlette.datastructures import Headers

from tuneloop.errors import InvalidRequest
from tuneloop.rollouts import SESSION_ID
from tuneloop.text.messages import Text

HEADER = "x-session-id"
MAX_LENGTH = 128


def check_session_id(value: str) -> str:
    """Return `value`; raises `ValueError` if no session may be called that."""
    if SESSION_ID.fullmatch(value) is None:
        raise ValueError(
            f"must be 1 to {MAX_LENGTH} characters, none a control character, got {value[:40]!r}"
        )
    return value


SessionId = Annotated[
    Text, AfterValidator(check_session_id), Field(min_length=1, max_length=MAX_LENGTH)
]


def session_of(session_id: str | None, metadata: Mapping[str, Any] | None, headers: Headers) -> str:
    """Return the session in the body, else in its `metadata`, else in the header; empty: none.

    Raises `InvalidRequest` naming the one that is no id of a session.
    """
    if session_id is not None:
        return session_id
    name, value = "metadata.session_id", (metadata or {}).get("session_id")
    if value is None:
        name, value = HEADER, header_text(headers.get(HEADER))
    if value is None:
        return ""
    try:
        if not isinstance(value, str):
            raise ValueError("must be text")
        return check_session_id(value)
    except ValueError as error:
        raise InvalidRequest(f"{name}: {error}", param=name) from None


def header_text(value: str | None) -> str | None:
    """Return a header's value as the UTF-8 that clients send; Latin-1 if it is none."""
    if value is None:
        return None
    try:
        return value.encode("latin-1").decode()
    except UnicodeDecodeError:
        return value
