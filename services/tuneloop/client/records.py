"""Records that the client returns: versions, scores, feedback."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from tuneloop.api import feedback, policies

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyVersion:
    """One version: its origin and its results."""

    policy_version: int
    parent_version: int | None
    state: str
    """`candidate`, `canary`, `stable`, `retired` …"""
    algorithms: list[str] = field(default_factory=list)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Of training."""
    samples: Mapping[str, int] = field(default_factory=dict)
    """How many of each kind it learned from."""
    created_time: str | None = None
    activated_time: str | None = None
    evaluation: policies.Evaluation | None = None
    traffic: policies.Traffic | None = None
    """Thumbs, rewards and lengths of what it answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """The newest versions, and the one that serves."""

    policy: str
    policy_version: int | None
    """Serving now; None while generation does not answer."""
    versions: tuple[PolicyVersion, ...] | None
    """Newest first; None while the learner does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Rewards of completions, in their order."""

    scores: list[float | None]
    """None if no scorer could score it."""
    reward_model_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackItem:
    """Feedback in the ledger."""

    id: str
    kind: str
    status: str
    completion_id: str | None
    """None for feedback on a session."""
    accepted_time: str
    session_id: str | None = None
    """None for feedback on a completion."""
    value: str | bool | float | None = None
    name: str | None = None
    """Of a metric."""
    chosen: str | None = None
    rejected: list[str] | None = None
    ranking: list[str] | None = None
    text: str | None = None
    user_hash: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    """Of the request that was answered."""
    policy_version: int | None = None
    """The version it judges, if its rollout is known."""
    prompt: list[feedback.Turn] | str | None = None
    """Messages or text."""
    completion: str | None = None
    completions: list[feedback.JudgedCompletion] = field(default_factory=list)
    """`completion_id`, `text` and `policy_version` of each completion that it names."""
    used_by_versions: list[int] = field(default_factory=list)
    """Those that learned from it, oldest first."""
    effects: list[feedback.Effect] = field(default_factory=list)
    """How much likelier versions made its texts; only of `get_feedback`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackReach:
    """Which versions learned from feedback."""

    id: str
    kind: str
    status: str
    accepted_time: str
    policy_versions: list[int] | None
    """Those that learned from it themselves, oldest first; None while the learner is down."""
    serving_version: int | None
    is_serving: bool | None
    """Whether what serves learned from it, or descends from a version that did."""
    effects: list[feedback.Effect] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackPage:
    """Feedback, newest first."""

    items: tuple[FeedbackItem, ...]
    next: str | None
    """The `before` of the next page; None at the end."""


def record_from(kind: type[T], document: Mapping[str, Any]) -> T:
    """Return a record of the members that this client knows; newer services may send more."""
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in document.items() if name in names})


def policies_from(document: policies.PolicyList) -> Policies:
    """Read the answer of `GET /v1/policies`."""
    rows = document["data"]
    return Policies(
        policy=document["policy"],
        policy_version=document["policy_version"],
        versions=None if rows is None else tuple(record_from(PolicyVersion, row) for row in rows),
    )


def page_from(document: feedback.FeedbackPage) -> FeedbackPage:
    """Read the answer of `GET /v1/feedback`."""
    items = tuple(record_from(FeedbackItem, item) for item in document["data"])
    return FeedbackPage(items=items, next=document["next"])
