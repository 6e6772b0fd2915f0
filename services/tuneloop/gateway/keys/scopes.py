"""Scopes of API keys; without pydantic, so that `tuneloop keys --help` does not need it."""

from enum import StrEnum


class Scope(StrEnum):
    """A scope of a key."""

    INFER = "infer"
    """Request completions and scores, and list models."""
    FEEDBACK = "feedback"
    """Give feedback; read and retract it by its id."""
    ADMIN = "admin"
    """Everything, including the other scopes."""
