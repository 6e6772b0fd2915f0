"""How requests ended, by version: what a canary's error rate is computed from."""

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tuneloop.errors import InvalidRequest

KEPT = 16
"""Versions counted; those that answered longest ago are forgotten first."""


@dataclass(slots=True)
class Count:
    """Of one version."""

    answered: int = 0
    failed: int = 0
    """By the service: what the caller did wrong or cancelled counts as neither."""


class Outcomes:
    """Counts that begin with the process: `counted_by` tells one beginning from the next."""

    def __init__(self) -> None:
        self.counted_by = uuid.uuid4().hex
        self.counts: OrderedDict[int, Count] = OrderedDict()

    def by_version(self) -> list[tuple[int, Count]]:
        """Every version that answered lately, in order."""
        return sorted(self.counts.items())

    @contextmanager
    def counted(self, version: int, counts: bool) -> Iterator[None]:
        """Count how the block ends, if it `counts`: as answered, as failed, or as neither."""
        try:
            yield
        except (InvalidRequest, GeneratorExit, asyncio.CancelledError):
            raise
        except Exception:
            if counts:
                self.of(version).failed += 1
            raise
        if counts:
            self.of(version).answered += 1

    def of(self, version: int) -> Count:
        """The version's count, which is the newest now."""
        count = self.counts.setdefault(version, Count())
        self.counts.move_to_end(version)
        if len(self.counts) > KEPT:
            self.counts.popitem(last=False)
        return count
