"""How long to wait between attempts: twice as long each time, up to a limit."""

FIRST_SECONDS = 0.5
LONGEST_SECONDS = 10.0


class Backoff:
    """The delays between the attempts at one thing."""

    def __init__(self, first: float = FIRST_SECONDS, longest: float = LONGEST_SECONDS) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def next_delay(self) -> float:
        """Return the seconds to wait before the next attempt."""
        delay = self._next
        self._next = min(2 * delay, self._longest)
        return delay

    def reset(self) -> None:
        """Start over with the first delay, after a success."""
        self._next = self._first
