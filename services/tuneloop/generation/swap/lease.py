"""Versions in the engine's memory, and leases that keep them there while requests use them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType

from tuneloop.policies import WeightsReference
from tuneloop.weights.manifest import Manifest

REPLACEMENTS = 1 << 30
"""No version's number gets so far."""


@dataclass(slots=True, kw_only=True)
class Live:
    """A version in the engine's memory."""

    loaded_time: datetime
    last_served: float
    manifest_sha256: str = ""
    """Tells weights apart where a restored learner gave a number twice; empty for version 0."""
    adapter: int = 0
    """The engine's number for it."""
    leases: int = 0
    manifest: Manifest | None = None
    """None for the base model."""


@dataclass(slots=True)
class Lease:
    """Keeps a version in memory while a request uses it; a context manager."""

    release: Callable[[Live], None]
    policy_version: int
    live: Live
    released: bool = field(default=False, init=False)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.released:
            self.released = True
            self.release(self.live)


class AdapterNumbers:
    """The engine's numbers of adapters: one for all time for the same weights, and only for them.

    It is the version's number, unless other weights had that before.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], int] = {}

    def number_of(self, reference: WeightsReference) -> int:
        """Return the number of a version's adapter."""
        number = reference.policy_version
        if number in self._known.values():
            number = REPLACEMENTS + len(self._known)
        known = (reference.policy_version, reference.manifest_sha256)
        return self._known.setdefault(known, number)
