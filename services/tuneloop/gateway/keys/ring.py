"""The gateway's keys: looked up by hash, reloaded when their file changes."""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from tuneloop.errors import CorruptData
from tuneloop.gateway.edge.limits import Meter, limited
from tuneloop.gateway.edge.quotas import Book, KeyUsage
from tuneloop.gateway.keys.scopes import Scope
from tuneloop.gateway.keys.store import ApiKey, KeyFile, hash_key

logger = logging.getLogger("tuneloop.gateway")

LOOK_SECONDS = 1.0
"""How long a new or revoked key takes to count; a check is one `stat`."""


class KeyRing:
    """The key of the environment and those of the file, with their meters."""

    def __init__(
        self, api_key: str | None, path: Path | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.file = None if path is None else KeyFile(path)
        self.clock = clock
        self.book = Book()
        self._of_environment = (
            {} if api_key is None else {hash_key(api_key): environment_key(api_key)}
        )
        self._by_hash = self._of_environment
        self._meters: dict[str, Meter] = {}
        self._looked = float("-inf")
        self._seen: object = None
        self.reload_if_changed()

    @property
    def is_empty(self) -> bool:
        """Whether no key was ever created; revoked keys count, so that revoking opens nothing."""
        self.reload_if_changed()
        return not self._by_hash

    def find(self, given: str) -> ApiKey | None:
        """Return the key, which may be revoked, or None."""
        self.reload_if_changed()
        return self._by_hash.get(hash_key(given))

    def meter(self, key: ApiKey) -> Meter | None:
        """Return the meter of a key, or None if it has no limits."""
        if not limited(key.limits):
            return None
        known = self._meters.get(key.id)
        if known is None or known.limits != key.limits:
            by_day = key.limits.requests_per_day or key.limits.tokens_per_day
            usage = self.book.of(key.id) if by_day else KeyUsage()
            known = self._meters[key.id] = Meter(key, usage, self.clock)
        return known

    def reload_if_changed(self) -> None:
        """Reload the file if it has changed."""
        now = self.clock()
        if self.file is None or now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        seen = file_identity(self.file.path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            keys = self.file.read()
        except CorruptData as error:
            # Keep the keys: revoked ones stay revoked, and a typing error locks nobody out.
            logger.error("%s; the keys read before stay in use", error.message)
            return
        self._by_hash = {key.sha256: key for key in keys} | self._of_environment
        for key in keys:
            self.meter(key)
        logger.info("%d keys are active", sum(key.is_active for key in keys))


def file_identity(path: Path) -> object:
    """Return a value that changes when the file is replaced; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def environment_key(api_key: str) -> ApiKey:
    """Return `TUNELOOP_API_KEY` as a key with every scope."""
    return ApiKey(
        id="environment",
        name="TUNELOOP_API_KEY",
        sha256=hash_key(api_key),
        ends_with="",
        scopes=frozenset({Scope.ADMIN}),
        created_time=datetime.now(UTC),
    )
