"""What the service tells of itself: versions, scores, the feedback it has."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from tuneloop.api import feedback, policies

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyVersion:
    """One version: where it comes from and how it does."""

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
    """Serving now; None while generation is away."""
    versions: tuple[PolicyVersion, ...] | None
    """Newest first; None while the learner is away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Rewards of completions, in their order."""

    scores: list[float | None]
    """None where no scorer could."""
    reward_model_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackItem:
    """Feedback as the service has it."""

    id: str
    kind: str
    status: str
    completion_id: str
    accepted_time: str
    value: str | float | None = None
    chosen: str | None = None
    rejected: list[str] | None = None
    ranking: list[str] | None = None
    text: str | None = None
    user_hash: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    policy_version: int | None = None
    """Which version it judges, where its rollout is known."""
    prompt: list[feedback.Turn] | str | None = None
    """Messages or text."""
    completion: str | None = None
    completions: list[feedback.JudgedCompletion] = field(default_factory=list)
    """`completion_id`, `text` and `policy_version` of each that it speaks of."""
    used_by_versions: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackPage:
    """Feedback, newest first."""

    items: tuple[FeedbackItem, ...]
    next: str | None
    """What `before` takes to read on; None at the end."""


def record(kind: type[T], document: Mapping[str, Any]) -> T:
    """A record of the members that this client knows; newer services may send more."""
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in document.items() if name in names})


def policies_from(document: policies.PolicyList) -> Policies:
    """The answer of `GET /v1/policies`."""
    rows = document["data"]
    return Policies(
        policy=document["policy"],
        policy_version=document["policy_version"],
        versions=None if rows is None else tuple(record(PolicyVersion, row) for row in rows),
    )


def page_from(document: feedback.FeedbackPage) -> FeedbackPage:
    """The answer of `GET /v1/feedback`."""
    items = tuple(record(FeedbackItem, item) for item in document["data"])
    return FeedbackPage(items=items, next=document["next"])
