"""Feedback of users on completions, and signals: what users do with them.

Frozen, slotted, standard library only.
"""

import enum
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


class FeedbackStatus(enum.StrEnum):
    """The state of feedback."""

    ACCEPTED = "accepted"
    RETRACTED = "retracted"
    """Withdrawn by its author."""
    EXPIRED = "expired"
    """Too old to learn from, or its completion never arrived."""


class FeedbackKind(enum.StrEnum):
    """The kinds of feedback, as in the HTTP body and in the subject."""

    THUMB = "thumb"
    RATING = "rating"
    COMPARISON = "comparison"
    RANKING = "ranking"
    DEMONSTRATION = "demonstration"
    COMMENT = "comment"
    METRIC = "metric"


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumb:
    """Desirable (up) or undesirable (down)."""

    up: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating:
    """A number; larger is better."""

    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A completion preferred over others, by their ids."""

    chosen: str
    rejected: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Completion ids, best first."""

    completion_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """The answer as it should have been."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comment:
    """A remark in words."""

    text: str


METRIC_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
"""What a metric may be called."""
MAX_NUMBER = 1e9
"""Numbers of users lie between minus this and this, so that sums of their squares stay exact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A figure that the application measured of one completion: a boolean or a number."""

    name: str
    value: bool | float

    def __eq__(self, other: object) -> bool:
        """Compare the type as well: `True` is not the number 1."""
        return (
            isinstance(other, Metric)
            and (self.name, self.value) == (other.name, other.value)
            and isinstance(self.value, bool) == isinstance(other.value, bool)
        )

    def __hash__(self) -> int:
        """Return a hash of both."""
        return hash((self.name, self.value))


type_of_kind: Mapping[FeedbackKind, type] = {
    FeedbackKind.THUMB: Thumb,
    FeedbackKind.RATING: Rating,
    FeedbackKind.COMPARISON: Comparison,
    FeedbackKind.RANKING: Ranking,
    FeedbackKind.DEMONSTRATION: Demonstration,
    FeedbackKind.COMMENT: Comment,
    FeedbackKind.METRIC: Metric,
}

kind_of_type: Mapping[type, FeedbackKind] = {t: kind for kind, t in type_of_kind.items()}

PUBLIC_ID = "public"
"""The `api_key_id` of what web pages send without a key."""
OF_SESSIONS = (FeedbackKind.THUMB, FeedbackKind.RATING, FeedbackKind.METRIC)
"""The kinds that may judge a whole session."""

Judgement = Thumb | Rating | Comparison | Ranking | Demonstration | Comment | Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """One user's judgement of a completion, or of a session, as the gateway accepted it."""

    feedback_id: str
    policy: str
    tenant: str
    user_hash: str
    completion_id: str
    """Its completion; of several the chosen or the first one; empty if it judges a session."""
    judgement: Judgement
    accepted_time: datetime
    metadata: Mapping[str, str] = field(default_factory=dict)
    session_id: str = ""
    """Its session, by the application's own id; empty if it judges a completion."""
    api_key_id: str = field(default="", compare=False)
    """Public id of the API key it came with: a retry may use another. `local` or `PUBLIC_ID`
    without one; empty for feedback from before this was recorded, and for imported feedback."""
    api_key_name: str = field(default="", compare=False)
    traceparent: str = field(default="", compare=False)
    """The trace it belongs to; empty without tracing."""

    @property
    def kind(self) -> FeedbackKind:
        """The kind, from the judgement's type."""
        return kind_of_type[type(self.judgement)]

    @property
    def completion_ids(self) -> tuple[str, ...]:
        """Every completion it names; none if it judges a session."""
        match self.judgement:
            case Comparison(chosen=chosen, rejected=rejected):
                return (chosen, *rejected)
            case Ranking(completion_ids=ids):
                return ids
            case _:
                return (self.completion_id,) if self.completion_id else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Retraction:
    """The retraction of feedback; the id cannot be used again."""

    feedback_id: str
    kind: FeedbackKind
    policy: str
    tenant: str
    user_hash: str
    retracted_time: datetime
    api_key_id: str = field(default="", compare=False)
    """Public id of the API key that it was retracted with; empty where that was not recorded."""


class SignalKind(enum.StrEnum):
    """What a user may do with an answer, as in the HTTP body and in the subject."""

    COPIED = "copied"
    REGENERATED = "regenerated"
    """Asked for another answer to the same message."""
    CONTINUED = "continued"
    """Asked for more of it."""
    EDITED = "edited"
    """Changed it, and kept the result."""
    ABANDONED = "abandoned"
    """Left before it was complete, or with it."""
    FOLLOW_UP = "follow_up"
    """Wrote another message after it; nothing of its text."""


class FollowUpLabel(enum.StrEnum):
    """What a judge reads in the message that a user wrote after an answer.

    Labels are signals like what users do, but no client can send them.
    """

    SATISFIED = "satisfied"
    """With the answer, or just goes on."""
    CORRECTED = "corrected"
    """Says what is wrong with it, or how it should be."""
    COMPLAINED = "complained"
    """Is unhappy with it."""


SIGNAL_KINDS: tuple[SignalKind | FollowUpLabel, ...] = (*SignalKind, *FollowUpLabel)
"""Everything that is calibrated as a signal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """What a user did with a completion, as the gateway accepted it.

    It is no judgement: whether it says anything of the answer is estimated (`guards.signals`).
    """

    signal_id: str
    """Of one user: the first with an id counts."""
    kind: SignalKind
    policy: str
    tenant: str
    user_hash: str
    completion_id: str
    accepted_time: datetime
    distance: float | None = None
    """Share of the answer that an edit changed, 0 to 1; None for other kinds."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    api_key_id: str = field(default="", compare=False)
    """Public id of the API key it came with; `local` or `public` without one."""
    traceparent: str = field(default="", compare=False)
    """The trace it belongs to; empty without tracing."""


def signal_id(completion_id: str, kind: SignalKind) -> str:
    """Return the id of a signal that came without one: each kind counts once for an answer."""
    return f"sg-{hashlib.sha256(f'{kind}:{completion_id}'.encode()).hexdigest()[:24]}"
