"""A limit on how long a scorer takes for a batch.

A thread cannot be killed, so a function that never returns is contained instead: it runs in a
thread of its own, and once it is overdue the service goes on without it. Until that call returns
the function is not called again: at most one thread of each function hangs, and what it should have
scored fails at once. An async function that is overdue is cancelled; one that blocks the event loop
instead of awaiting holds up the other async functions, which are then overdue too. What no limit
helps against is a function that keeps the interpreter's lock, inside a C extension.
"""

import inspect
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from tuneloop.reward import metrics
from tuneloop.reward.scorer import Scorer
from tuneloop.reward.scorers.background import Begun

logger = logging.getLogger("tuneloop.reward")

CANCEL_SECONDS = 1.0
"""Longest wait for an overdue call to end once it was cancelled."""


class Overdue(Exception):
    """A scorer took too long, or has not come back from an earlier batch."""


class ScorerCall:
    """One call of a scorer, made in another thread."""

    def __init__(self, score: Callable[[], Any]) -> None:
        self._score = score
        self._awaited: Begun[Any] | None = None
        self._answer: Any = None
        self._error: BaseException | None = None
        self._cancelled = False
        self.began = time.monotonic()
        self.done = threading.Event()
        """Set when the scorer has come back."""

    def run(self) -> None:
        """Make the call; its outcome is kept for `result`."""
        try:
            answer = self._score()
            if inspect.isawaitable(answer):
                self._awaited = Begun(answer)
                if self._cancelled:
                    self._awaited.cancel()
                answer = self._awaited.result()
            self._answer = answer
        except BaseException as error:
            # `sys.exit` in a function is its failure: it must end neither thread nor service.
            self._error = error
        finally:
            self.done.set()

    def give_up(self) -> None:
        """Let who waits for it go; it may still run."""
        self._error = Overdue("was cut short")
        self.done.set()

    def cancel(self) -> bool:
        """Cancel it, which works if it is async; whether the scorer has come back."""
        self._cancelled = True
        if self._awaited is not None:
            self._awaited.cancel()
        return self.done.wait(CANCEL_SECONDS)

    def result(self) -> Any:
        """What the scorer returned; raises what it raised."""
        if isinstance(self._error, Exception):
            raise self._error
        if self._error is not None:
            name = type(self._error).__name__
            raise RuntimeError(f"{name}: {self._error}") from self._error
        return self._answer


class LimitedScorer:
    """A scorer that has `seconds` for each batch; see the module."""

    def __init__(self, scorer: Scorer, seconds: float) -> None:
        self._scorer = scorer
        self._seconds = seconds
        self._calls: queue.SimpleQueue[ScorerCall] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._call: ScorerCall | None = None
        self._left: ScorerCall | None = None

    @property
    def name(self) -> str:
        """The scorer's."""
        return self._scorer.name

    @property
    def weight(self) -> float:
        """The scorer's."""
        return self._scorer.weight

    @property
    def informative(self) -> bool:
        """The scorer's."""
        return self._scorer.informative

    @property
    def hangs(self) -> bool:
        """Whether it has not come back from a batch it was overdue with."""
        left = self._left
        return left is not None and not left.done.is_set()

    def close(self) -> None:
        """Wait for the scorer no longer: for the end of the process."""
        if self._call is not None:
            self._call.give_up()

    def score(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]
    ) -> Any:
        """Ask the scorer; raises `Overdue`, or what it raises. Of one thread at a time."""
        if self._left is not None:
            waited = time.monotonic() - self._left.began
            if not self._left.done.is_set():
                raise Overdue(f"has been at an earlier batch for {waited:.0f} s")
            logger.warning("scorer %s came back after at most %.0f s", self.name, waited)
            self._left = None
            metrics.hanging.labels(self.name).set(0)
        call = self._call = ScorerCall(lambda: self._scorer.score(prompts, completions, **columns))
        self._begin(call)
        if not call.done.wait(self._seconds):
            if not call.cancel():
                self._left = call
                metrics.hanging.labels(self.name).set(1)
                logger.error(
                    "scorer %s hangs: it has not come back from %d completions in %g s; what it "
                    "should score fails until it does",
                    self.name,
                    len(completions),
                    self._seconds,
                )
            raise Overdue(f"took longer than {self._seconds:g} s")
        return call.result()

    def _begin(self, call: ScorerCall) -> None:
        """Hand a call to the scorer's thread: always the same, for functions that care."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
            self._thread.start()
        self._calls.put(call)

    def _work(self) -> None:
        while True:
            self._calls.get().run()
