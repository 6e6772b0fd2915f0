"""Counts how requests ended, by version: a canary's error rate is computed from it."""

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tuneloop.errors import InvalidRequest

KEPT = 16
"""Versions counted; those that answered longest ago are dropped first."""


@dataclass(slots=True)
class Count:
    """The requests of one version."""

    answered: int = 0
    failed: int = 0
    """Through the service's fault: a request that the caller got wrong or cancelled is neither."""


class Outcomes:
    """Counts since the process started; `counted_by` identifies the process."""

    def __init__(self) -> None:
        self.counted_by = uuid.uuid4().hex
        self.counts: OrderedDict[int, Count] = OrderedDict()

    def by_version(self) -> list[tuple[int, Count]]:
        """Return the versions that answered recently, in order."""
        return sorted(self.counts.items())

    @contextmanager
    def count_outcome(self, version: int, counts: bool) -> Iterator[None]:
        """Count, if it `counts`, how the block ends: as answered, as failed, or as neither."""
        try:
            yield
        except (InvalidRequest, GeneratorExit, asyncio.CancelledError):
            raise
        except Exception:
            if counts:
                self.count_of(version).failed += 1
            raise
        if counts:
            self.count_of(version).answered += 1

    def count_of(self, version: int) -> Count:
        """Return the version's count, marked as the most recently used."""
        count = self.counts.setdefault(version, Count())
        self.counts.move_to_end(version)
        if len(self.counts) > KEPT:
            self.counts.popitem(last=False)
        return count
