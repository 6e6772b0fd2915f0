"""What was found, and how to mend it."""

import enum
from dataclasses import dataclass


class FindingState(enum.StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """It will run, but worse than it could."""
    PROBLEM = "problem"
    """It will not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    check: str
    state: FindingState
    found: str
    mend: str | None = None
    """What to do about it, as a command where one does it."""


def fine(check: str, found: str) -> Finding:
    """As it should be."""
    return Finding(check=check, state=FindingState.OK, found=found)


def warning(check: str, found: str, mend: str) -> Finding:
    """Not as good as it could be."""
    return Finding(check=check, state=FindingState.WARNING, found=found, mend=mend)


def problem(check: str, found: str, mend: str) -> Finding:
    """In the way."""
    return Finding(check=check, state=FindingState.PROBLEM, found=found, mend=mend)
