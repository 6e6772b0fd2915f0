"""What webhooks are sent: `POST` to each URL of `TUNELOOP_LEARNER_WEBHOOK_URLS`."""

from typing import Literal, NotRequired, TypeAlias

from typing_extensions import TypedDict


class VersionChange(TypedDict):
    """What became of a version of the policy."""

    policy: str
    policy_version: int
    """Promoted, rolled back to, or quarantined."""
    previous_version: NotRequired[int]
    """Which served until then; absent of a quarantine."""
    reason: str
    """In words, for people."""
    decided_by: str
    """`gate`, `canary`, `learner`, `retractions`, or the name of a person's key."""


class AlarmChange(TypedDict):
    """An alarm that was raised or is over."""

    policy: str
    alarm: str
    raised_time: str
    numbers: dict[str, float]
    """The figures that raised it."""


class VersionEvent(TypedDict):
    """A version was promoted, rolled back to or quarantined."""

    type: Literal["version.promoted", "version.rolled_back", "version.quarantined"]
    timestamp: str
    """When it was decided, ISO 8601."""
    data: VersionChange


class AlarmEvent(TypedDict):
    """An alarm was raised, or is over."""

    type: Literal["alarm.raised", "alarm.resolved"]
    timestamp: str
    data: AlarmChange


WebhookEvent: TypeAlias = VersionEvent | AlarmEvent
