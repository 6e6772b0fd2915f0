"""The state of a canary: what it has seen so far and what was decided about it."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from tuneloop.learner.release.canary.error_rates import ErrorTally

Outcome: TypeAlias = Literal["promote", "roll_back", "hold", "stop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryVerdict:
    """How a canary ends."""

    outcome: Outcome
    reason: str
    """In words, for people."""
    numbers: dict[str, Any]


@dataclass(slots=True, kw_only=True)
class CanaryState:
    """A canary from its start until its verdict was carried out."""

    version: int
    share: float
    salt: str
    started: float
    """When it was started: the deadline counts from here."""
    stable: int | None = None
    """What it is compared with; None before it is routed."""
    counted_from: float | None = None
    """When it was in generation's memory: traffic counts from here."""
    errors: ErrorTally = field(default_factory=ErrorTally)
    verdict: CanaryVerdict | None = None
    """Decided, and not carried out yet."""

    def to_json(self) -> str:
        """Return the text that the ledger keeps."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "CanaryState":
        """Return the state of `to_json`."""
        found = json.loads(text)
        found["errors"] = ErrorTally(**found["errors"])
        if found["verdict"] is not None:
            found["verdict"] = CanaryVerdict(**found["verdict"])
        return cls(**found)
