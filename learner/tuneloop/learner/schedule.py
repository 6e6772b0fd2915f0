"""When steps are committed and when they become a version.

A version is made when there is something to say: when the steps since the last one learned from as
much evidence as `publish_every_steps` full steps, or when the last version is
`publish_every_seconds` old. So the first judgement after a pause is in a version at once, with its
small step; those that follow it wait for each other, and none waits longer than that.
"""

from dataclasses import dataclass

from tuneloop.learner.training_run import TrainingRun

ROUNDING = 1e-6
"""Sums of evidence may miss a whole number by this much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NextVersion:
    """Steps towards a version."""

    steps_done: int
    steps_wanted: int
    """Full ones."""
    evidence: float
    """The full steps that those done amount to: a step on half a batch counts 0.5."""
    seconds_left: float
    """After this time it is published with less."""

    @property
    def due(self) -> bool:
        """Whether it is to be published now."""
        return self.evidence >= self.steps_wanted - ROUNDING or self.seconds_left == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSchedule:
    """How often to commit and to publish."""

    publish_every_steps: int
    publish_every_seconds: float
    checkpoint_every_steps: int

    def next_version(self, training_run: TrainingRun, now: float) -> NextVersion | None:
        """Return how far a model's next version is; None while no step waits for one."""
        since = training_run.unpublished_since
        if since is None:
            return None
        # A clock that was set back must not make a step wait for longer.
        last = min(since, training_run.last_version_time or 0.0)
        return NextVersion(
            steps_done=training_run.unpublished_steps,
            steps_wanted=self.publish_every_steps,
            evidence=training_run.unpublished_evidence,
            seconds_left=max(0.0, last + self.publish_every_seconds - now),
        )
