"""The places for completions: no caller takes all of them while others want some.

A caller alone may use everything. Once others have asked too, a caller's next request is refused
when it would hold more than `SHARE` times what is left free after it (the dynamic threshold of
Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998): so
there is always room for who has little, without shares to configure.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tuneloop.errors import Overloaded

SHARE = 4
"""One greedy caller among modest ones gets four fifths of the places, two get four ninths each."""
OTHERS_SECONDS = 30.0
"""For how long a caller that asked counts as one of the others."""


class Slots:
    """Counts the completions that run, by caller."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self.clock = clock
        self.held: Counter[str] = Counter()
        self.asked: dict[str, float] = {}
        """When each caller asked last."""

    @property
    def running(self) -> int:
        """Of all callers."""
        return self.held.total()

    @contextmanager
    def take(self, caller: str, completions: int) -> Iterator[None]:
        """Hold places for as long as the completions run. Raises `Overloaded`."""
        self.check(caller, completions)
        self.held[caller] += completions
        try:
            yield
        finally:
            self.held[caller] -= completions
            if not self.held[caller]:
                del self.held[caller]

    def check(self, caller: str, completions: int) -> None:
        """Raise `Overloaded` if there is no room, or too little for the others."""
        left = self.most - self.running - completions
        others = self.others_ask(caller)
        if left < 0:
            raise Overloaded(
                f"{self.running} completions are running, at most {self.most} may",
                retry_after=1.0,
            )
        held = self.held[caller]
        if held and others and held + completions > SHARE * left:
            raise Overloaded(
                f"{held} completions of this caller are running, and others ask too: at most "
                f"{SHARE} times as many as are left free, which would be {left}",
                retry_after=1.0,
            )

    def others_ask(self, caller: str) -> bool:
        """Return whether another caller asked a short time ago; note that this one asks."""
        now = self.clock()
        self.asked = {c: at for c, at in self.asked.items() if now - at < OTHERS_SECONDS}
        self.asked[caller] = now
        return len(self.asked) > 1
