"""A finding of a check, and its remedy."""

import enum
from dataclasses import dataclass


class FindingState(enum.StrEnum):
    """The severity of a finding."""

    OK = "ok"
    WARNING = "warning"
    """The service runs, but worse than it could."""
    PROBLEM = "problem"
    """The service does not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check."""

    check: str
    state: FindingState
    found: str
    remedy: str | None = None
    """What to do about it; a command if one is enough."""


def fine(check: str, found: str) -> Finding:
    """Return a finding that is fine."""
    return Finding(check=check, state=FindingState.OK, found=found)


def warning(check: str, found: str, remedy: str) -> Finding:
    """Return a finding that makes the service worse."""
    return Finding(check=check, state=FindingState.WARNING, found=found, remedy=remedy)


def problem(check: str, found: str, remedy: str) -> Finding:
    """Return a finding that keeps the service from running."""
    return Finding(check=check, state=FindingState.PROBLEM, found=found, remedy=remedy)
