"""What signals add to a step of the reward model: at most as much as the judgements beside them."""

from collections.abc import Callable, Collection

from tuneloop.host import steady_time
from tuneloop.learner.guards.signals import Calibration, calibrate
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.queue import signals
from tuneloop.learner.samples import SignalledText

EVERY_SECONDS = 300.0
"""How often it is found out what signals predict."""
SILENT_SECONDS = 300.0
"""How long a user must have done nothing with an answer."""
MOST = 1024
"""Samples looked at for a step: those that tell little weigh little."""


class SoftLabels:
    """Takes samples of signals for steps."""

    def __init__(self, database: Database, clock: Callable[[], float] = steady_time) -> None:
        self._database = database
        self._clock = clock
        self._calibration = Calibration()
        self._calibrated_time = float("-inf")

    def take(
        self, most_weight: float, *, not_before: float, exclude: Collection[str]
    ) -> list[SignalledText]:
        """Return the newest soft labels that weigh `most_weight` together at most."""
        now = self._clock()
        if now - self._calibrated_time >= EVERY_SECONDS:
            self._calibration = calibrate(signals.behaviors(self._database))
            self._calibrated_time = now
        found = signals.soft_labels(
            self._database,
            self._calibration,
            MOST,
            silent_since=now - SILENT_SECONDS,
            not_before=not_before,
            exclude=exclude,
        )
        taken, weight = list[SignalledText](), 0.0
        for label in found:
            if weight + label.weight > most_weight:
                break
            weight += label.weight
            if label.weight > 0:
                taken.append(label)
        return taken
