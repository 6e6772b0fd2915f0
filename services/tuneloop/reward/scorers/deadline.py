"""A limit on how long a scorer takes for a batch.

A thread cannot be killed, so a function that never returns is contained instead: it runs in a
thread of its own, and after its timeout the service continues without it. Until that call returns
the function is not called again: at most one thread per function hangs, and completions that it
should score fail at once. An async function is cancelled at its timeout; one that blocks the event
loop instead of awaiting delays the other async functions, which then time out too. The limit cannot
help against a function that holds the interpreter's lock inside a C extension.
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
from tuneloop.reward.scorers.background import BackgroundCall

logger = logging.getLogger("tuneloop.reward")

CANCEL_SECONDS = 1.0
"""Longest wait for a call to end after it was cancelled."""


class Overdue(Exception):
    """A scorer took too long, or has not returned from an earlier batch."""


class ScorerCall:
    """A call of a scorer, made in another thread."""

    def __init__(self, score: Callable[[], Any]) -> None:
        self._score = score
        self._awaited: BackgroundCall[Any] | None = None
        self._answer: Any = None
        self._error: BaseException | None = None
        self._cancelled = False
        self.began = time.monotonic()
        self.done = threading.Event()
        """Set when the scorer has returned."""

    def run(self) -> None:
        """Make the call, and keep its outcome for `result`."""
        try:
            answer = self._score()
            if inspect.isawaitable(answer):
                self._awaited = BackgroundCall(answer)
                if self._cancelled:
                    self._awaited.cancel()
                answer = self._awaited.result()
            self._answer = answer
        except BaseException as error:
            # Even `sys.exit` in a function must end neither the thread nor the service.
            self._error = error
        finally:
            self.done.set()

    def give_up(self) -> None:
        """Stop waiting for it, although it may still run."""
        self._error = Overdue("was cut short")
        self.done.set()

    def cancel(self) -> bool:
        """Cancel it, which works if it is async; return whether the scorer has returned."""
        self._cancelled = True
        if self._awaited is not None:
            self._awaited.cancel()
        return self.done.wait(CANCEL_SECONDS)

    def result(self) -> Any:
        """Return what the scorer returned, or raise what it raised."""
        if isinstance(self._error, Exception):
            raise self._error
        if self._error is not None:
            name = type(self._error).__name__
            raise RuntimeError(f"{name}: {self._error}") from self._error
        return self._answer


class LimitedScorer:
    """A scorer with a timeout of `seconds` for each batch."""

    def __init__(self, scorer: Scorer, seconds: float) -> None:
        self._scorer = scorer
        self._seconds = seconds
        self._calls: queue.SimpleQueue[ScorerCall] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._call: ScorerCall | None = None
        self._overdue_call: ScorerCall | None = None

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
        """Whether it has not returned from a batch after its timeout."""
        left = self._overdue_call
        return left is not None and not left.done.is_set()

    def close(self) -> None:
        """Stop waiting for the scorer, because the process ends."""
        if self._call is not None:
            self._call.give_up()

    def score(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]
    ) -> Any:
        """Run the scorer. Raises `Overdue`, or what it raises. Not thread-safe."""
        if self._overdue_call is not None:
            waited = time.monotonic() - self._overdue_call.began
            if not self._overdue_call.done.is_set():
                raise Overdue(f"has been at an earlier batch for {waited:.0f} s")
            logger.warning("scorer %s returned after at most %.0f s", self.name, waited)
            self._overdue_call = None
            metrics.hanging.labels(self.name).set(0)
        call = self._call = ScorerCall(lambda: self._scorer.score(prompts, completions, **columns))
        self._begin(call)
        if not call.done.wait(self._seconds):
            if not call.cancel():
                self._overdue_call = call
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
        """Hand a call to the scorer's thread, which is always the same one."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
            self._thread.start()
        self._calls.put(call)

    def _work(self) -> None:
        while True:
            self._calls.get().run()
