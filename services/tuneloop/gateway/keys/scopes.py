"""What an API key may be used for: no pydantic, so that `tuneloop keys --help` needs none."""

from enum import StrEnum


class Scope(StrEnum):
    """What a key is good for."""

    INFER = "infer"
    """Ask for completions and scores, list models."""
    FEEDBACK = "feedback"
    """Give, read and retract feedback by its id."""
    ADMIN = "admin"
    """Everything, what the others may do included."""
