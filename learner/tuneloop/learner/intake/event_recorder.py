"""Record the events of each stream in the ledger, and count them."""

from collections.abc import Callable, Sequence

from tuneloop.feedback import Feedback, Retraction, Signal
from tuneloop.learner import metrics
from tuneloop.learner.ledger.accounting import lineage
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import lifecycle, recorder, signal_rules
from tuneloop.learner.ledger.events.sample_rules import SampleRules
from tuneloop.learner.samples import ModelRole
from tuneloop.policies import Activation
from tuneloop.rollouts import Rollout, ScoredRollout


class EventRecorder:
    """Records events in the ledger, and counts them."""

    def __init__(
        self, database: Database, rules: SampleRules, *, clock: Callable[[], float]
    ) -> None:
        self._database = database
        self._rules = rules
        self._clock = clock

    def record_rollouts(self, events: Sequence[Sequence[Rollout]]) -> None:
        """Record what generation sampled, given by request."""
        rollouts = [rollout for event in events for rollout in event]
        new = recorder.record_rollouts(self._database, rollouts, self._clock(), self._rules)
        metrics.rollouts_consumed.inc(new)
        metrics.duplicates.labels("rollouts").inc(len(rollouts) - new)

    def record_scores(self, events: Sequence[ScoredRollout]) -> None:
        """Record the scores of rollouts."""
        new = recorder.record_scores(self._database, events, self._clock(), self._rules)
        metrics.scores_consumed.inc(new)
        metrics.duplicates.labels("scores").inc(len(events) - new)

    def record_feedback(self, events: Sequence[tuple[Feedback | Retraction, int]]) -> None:
        """Record feedback and retractions, given with their sequence in the stream."""
        given = [(event, number) for event, number in events if isinstance(event, Feedback)]
        taken = [(event, number) for event, number in events if isinstance(event, Retraction)]
        new = recorder.record_feedback(self._database, given, self._clock(), self._rules)
        retracted = lifecycle.record_retractions(self._database, taken, self._clock())
        for feedback in new:
            metrics.feedback_consumed.labels(feedback.kind.value).inc()
        metrics.retractions_consumed.inc(retracted)
        metrics.duplicates.labels("feedback").inc(len(events) - len(new) - retracted)
        if new:
            newest = max(feedback.accepted_time.timestamp() for feedback in new)
            metrics.ledger_lag_seconds.set(max(0.0, self._clock() - newest))

    def record_signals(self, events: Sequence[tuple[Signal, int]]) -> None:
        """Record signals, given with their sequence in the stream."""
        new = signal_rules.record_signals(
            self._database, events, self._clock(), learned=self._rules.signals_count
        )
        for signal in new:
            metrics.signals_consumed.labels(signal.kind.value).inc()
        metrics.duplicates.labels("signals").inc(len(events) - len(new))

    def record_activations(self, events: Sequence[Activation]) -> None:
        """Record which versions began to serve."""
        for activation in events:
            if recorder.record_activation(self._database, ModelRole.POLICY, activation):
                observe_feedback_to_serving(self._database, activation)


def observe_feedback_to_serving(database: Database, activation: Activation) -> None:
    """Observe how long each feedback took until the version that learned from it served."""
    served = activation.activated_time.timestamp()
    for accepted in lineage.feedback_times(database, ModelRole.POLICY, activation.policy_version):
        metrics.feedback_to_serving.observe(max(0.0, served - accepted))
