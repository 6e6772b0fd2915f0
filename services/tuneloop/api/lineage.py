"""Which versions feedback or a user reached, and what was forgotten."""

from typing_extensions import TypedDict


class Downstream(TypedDict):
    """Versions whose own steps used it, and those that grew from them."""

    direct: list[int]
    descended: list[int]


class SampleUses(TypedDict):
    """A sample that feedback made, and the steps that used it."""

    sample_id: str
    objective: str
    state: str
    steps: list[int]


class FeedbackLineage(TypedDict):
    """`GET /v1/lineage/feedback/{id}`."""

    id: str
    kind: str
    status: str
    user_hash: str
    completion_ids: list[str]
    accepted_time: str | None
    samples: list[SampleUses]
    policy: Downstream
    reward_model: Downstream


class ForgottenRecord(TypedDict):
    """What was removed when a user was forgotten, and which versions had learned from it."""

    time: str | None
    rollouts: int
    feedback: int
    policy_versions: list[int]
    reward_model_versions: list[int]


class UserLineage(TypedDict):
    """`GET /v1/lineage/users/{id}`."""

    id: str
    rollouts: int
    feedback: int
    samples: dict[str, int]
    """By state."""
    policy: Downstream
    reward_model: Downstream
    rebuild_from: int | None
    """The last version that had not learned from the user."""
    forgotten: list[ForgottenRecord]


class ForgottenUser(TypedDict):
    """`DELETE /v1/users/{id}`."""

    id: str
    deleted: bool
    rollouts_removed: int
    feedback_removed: int
    events_purged: int
    policy_versions: list[int]
    descended_versions: list[int]
    reward_model_versions: list[int]
    rebuild_from: int | None
    note: str | None
    """What deletion does not do, where versions had learned from the user."""
