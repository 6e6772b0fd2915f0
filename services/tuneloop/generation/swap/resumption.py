"""What requests wait for after a swap of full weights: their next token.

The pause ends when sampling resumes, but the first token comes later: the key-value cache of every
request that runs is computed again with the new weights.
"""

import logging
import time

from tuneloop.generation import metrics
from tuneloop.generation.swap.lease import Live

logger = logging.getLogger("tuneloop.generation")


class Resumption:
    """Measures the time from the end of a pause to the first token after it."""

    def __init__(self) -> None:
        self._loaded: Live | None = None
        self._resumed = 0.0

    def start(self, loaded: Live) -> None:
        """Note that sampling resumes, on the weights that were loaded in the pause."""
        self._loaded, self._resumed = loaded, time.monotonic()

    def record_token(self, live: Live) -> None:
        """Note that a request that began with `live` got a token.

        It counts if it is the first since the pause, and the request is older than that.
        """
        if self._loaded is None or live is self._loaded:
            return
        self._loaded = None
        seconds = time.monotonic() - self._resumed
        metrics.resume_seconds.observe(seconds)
        logger.info("the first token came %s after the pause", *durations(seconds))


def durations(*seconds: float) -> list[str]:
    """Return durations in units in which they are not zero: `1.25 s`, `43 ms`, `0.2 ms`, `none`."""
    return [f"{s:.2f} s" if s >= 0.9995 else f"{s * 1e3:.3g} ms" if s else "none" for s in seconds]
