"""Policy versions: what serves, where each comes from, what feedback and users reached."""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from tuneloop.api.feedback import Effect, FeedbackItem


class CanaryShare(TypedDict):
    """The version that a share of the users gets."""

    policy_version: int
    share: float
    loaded: bool


class Serving(TypedDict):
    """What generation serves and holds."""

    policy_version: int
    activated_time: str | None
    base_model: str
    weights_kind: str
    engine: str
    max_model_len: int
    loaded_versions: list[int]
    canary: CanaryShare | None


class Evaluation(TypedDict):
    """How a version answers the eval prompts; null where it is not known yet.

    A margin is half the width of a 95 % interval.
    """

    policy_version: int
    prompts: int
    scored: int
    mean_length: float
    """Of answers in tokens, without their thoughts."""
    mean_thought_length: float
    reward_model_version: int
    mean_reward: float | None
    reward_margin: float | None
    length_margin: float | None
    thought_length_margin: float | None
    kl: float | None


class MetricFigures(TypedDict):
    """A metric of a version's answers: the mean with its 95 % interval."""

    name: str
    type: Literal["boolean", "number"]
    """Booleans and numbers of one name are two metrics."""
    count: int
    mean: float
    """Of booleans the share that is true."""
    low: float | None
    """Null for fewer than two numbers; the interval of booleans is Wilson's."""
    high: float | None


class Traffic(TypedDict):
    """How a version answers users; the rate of thumbs up with its 95 % Wilson interval."""

    rollouts: int
    mean_length: float
    """Of answers in tokens, without their thoughts."""
    length_margin: float | None
    mean_thought_length: float
    thought_length_margin: float | None
    mean_reward: float | None
    reward_margin: float | None
    thumbs_up: int
    thumbs_down: int
    thumbs_rate: float | None
    thumbs_low: float | None
    thumbs_high: float | None
    metrics: list[MetricFigures]
    """By name, at most 16: those that most users were measured for."""


class Decision(TypedDict):
    """A decision about a version."""

    kind: str
    outcome: str
    reason: str
    actor: str
    decided_time: str | None
    numbers: NotRequired[dict[str, Any]]
    """What it was decided on; not in lists."""


class PolicyVersion(TypedDict):
    """A version in a list."""

    policy_version: int
    parent_version: int | None
    state: str
    algorithms: list[str]
    metrics: dict[str, Any]
    """Of training."""
    samples: dict[str, int]
    """How many of each objective it learned from."""
    created_time: str | None
    activated_time: str | None
    evaluation: Evaluation | None
    traffic: Traffic | None
    decisions: list[Decision]


class Use(TypedDict):
    """A sample that a version learned from."""

    sample_id: str
    objective: str
    step: int
    epoch: int
    feedback_id: str | None
    completion_ids: list[str]


class PolicyVersionDetails(PolicyVersion):
    """`GET /v1/policies/{version}`: with manifest, lineage and settings."""

    manifest: dict[str, Any] | None
    ancestors: list[int]
    uses: list[Use]
    settings: dict[str, Any]
    """That it was trained with."""


class PolicyList(TypedDict):
    """`GET /v1/policies`; each half is null while its service does not answer."""

    object: Literal["list"]
    policy: str
    policy_version: int | None
    """Serving now."""
    serving: Serving | None
    data: list[PolicyVersion] | None
    """Newest first."""


class Activated(TypedDict):
    """The version that serves from now on."""

    policy: str
    policy_version: int


class Rebuilt(Activated):
    """`POST /v1/policies/rebuild`."""

    restored_version: int
    """The version whose checkpoint training starts from: that one, or 0."""
    left_behind: list[int]
    """Versions that do not serve again."""
    samples_put_back: int
    feedback_retracted: int
    """Of a key or a tenant."""


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
    effects: list[Effect]


class ForgottenRecord(TypedDict):
    """What was removed when a user or a session was forgotten, and what had learned from it."""

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
    signals: int
    samples: dict[str, int]
    """By state."""
    policy: Downstream
    reward_model: Downstream
    rebuild_from: int | None
    """The last version that had not learned from the user."""
    forgotten: list[ForgottenRecord]


class ShareOfVersion(TypedDict):
    """A part of what a version's own steps used."""

    policy_version: int
    """0 for steps that are not part of a version yet."""
    samples: int
    share: float
    """Of the weight of all of them, 0 to 1."""


class SenderLineage(TypedDict):
    """`GET /v1/lineage/keys/{name}`, `/v1/lineage/tenants/{name}` and `/v1/lineage/tags/{tag}`."""

    id: str
    feedback: int
    retracted: int
    users: int
    samples: dict[str, int]
    """By state."""
    policy: Downstream
    reward_model: Downstream
    versions: list[ShareOfVersion]
    """Those of the policy whose own steps used it."""
    rebuild_from: int | None
    """The last version that had not learned from it."""


class ForgottenUser(TypedDict):
    """`DELETE /v1/users/{id}`."""

    id: str
    deleted: bool
    rollouts_removed: int
    feedback_removed: int
    events_purged: int
    events_left_on_disk: int
    """How many of these nats-server keeps in its files for a while, after its index forgot them."""
    policy_versions: list[int]
    descended_versions: list[int]
    reward_model_versions: list[int]
    rebuild_from: int | None
    note: str | None
    """What deletion does not do, where versions had learned from the user."""


class SessionTurn(TypedDict):
    """One answer of a session."""

    completion_id: str
    policy_version: int
    finished_time: str | None
    feedback_ids: list[str]
    """Feedback on this completion itself, not on the session."""
    used_by_versions: list[int]


class Session(TypedDict):
    """`GET /v1/sessions/{id}`."""

    id: str
    turns: list[SessionTurn]
    """In the order in which they were finished; several choices of a request are one each."""
    feedback: list[FeedbackItem]
    """On the session and on its turns, oldest first."""
    policy: Downstream
    reward_model: Downstream
    rebuild_from: int | None
    """The last version that had not learned from the session."""
    forgotten: list[ForgottenRecord]


class ForgottenSession(ForgottenUser):
    """`DELETE /v1/sessions/{id}`."""
