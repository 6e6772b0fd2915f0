"""Check the alarms regularly: metrics, the log, and whether new versions wait."""

import asyncio
import json
import logging
from collections.abc import Callable

from tuneloop.host import steady_time
from tuneloop.learner import metrics
from tuneloop.learner.guards.alarms import NAMES, Figures, alarms
from tuneloop.learner.guards.settings import GuardSettings
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.reports import alarm_figures
from tuneloop.learner.ledger.reports import alarms as ledger_alarms
from tuneloop.learner.ledger.reports.alarms import Raised
from tuneloop.learner.ledger.reports.metric_sums import fall_of_metric

logger = logging.getLogger("tuneloop.learner.monitoring")

EVERY_SECONDS = 10.0


def show_answers(figures: Figures) -> None:
    """Show how the newest versions answer, thoughts apart."""
    for gauge, part, sums in (
        (metrics.answer_length, "answer", figures.length),
        (metrics.answer_length, "thought", figures.thought_length),
        (metrics.answer_repetition, "answer", figures.repetition),
        (metrics.answer_repetition, "thought", figures.thought_repetition),
    ):
        if sums.count:
            gauge.labels(part).set(sums.mean)


class AlarmMonitor:
    """The alarms that are raised."""

    def __init__(
        self,
        database: Database,
        settings: GuardSettings,
        *,
        clock: Callable[[], float] = steady_time,
    ) -> None:
        self.raised: tuple[Raised, ...] = ()
        self._database = database
        self._settings = settings
        self._clock = clock
        for name in NAMES:
            metrics.guard_alarm.labels(name).set(0)

    @property
    def holding(self) -> str:
        """The alarm that keeps new versions candidates; empty if none does.

        A fallen metric does so by itself: it is only watched where somebody named it.
        """
        holding = [a.name for a in self.raised if self._settings.hold or a.name == "metric"]
        return holding[0] if holding else ""

    def check_alarms(self) -> None:
        """Check the alarms once; log the new ones and those that ended."""
        settings = self._settings
        seen = alarm_figures.seen(
            self._database,
            least=settings.least,
            window=settings.window,
            metric=fall_of_metric(self._database, settings),
        )
        show_answers(seen.newest)
        raised, new, ended = ledger_alarms.record_alarms(
            self._database, alarms(seen, settings), self._clock()
        )
        self.raised = tuple(raised)
        for alarm in raised:
            if alarm.name in new:
                logger.warning("alarm: %s %s", alarm.name, json.dumps(dict(alarm.numbers)))
        for name in ended:
            logger.info("alarm ended: %s", name)
        on = {alarm.name for alarm in raised}
        for name in NAMES:
            metrics.guard_alarm.labels(name).set(name in on)

    async def run(self) -> None:
        """Check the alarms until cancelled."""
        while True:
            await asyncio.to_thread(self.check_alarms)
            await asyncio.sleep(EVERY_SECONDS)
