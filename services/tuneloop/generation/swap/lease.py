"""Versions in the engine's memory, and leases that keep them there while requests use them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType

from tuneloop.weights.manifest import Manifest


@dataclass(slots=True, kw_only=True)
class Live:
    """A version in the engine's memory."""

    loaded_time: datetime
    last_served: float
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
