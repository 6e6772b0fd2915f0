"""The learner's status, and what the gateway tells of itself."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from tuneloop.api.policies import Evaluation, ShareOfVersion


class SampleCounts(TypedDict):
    """Samples of one objective."""

    objective: str
    ready: int
    used: int
    waiting: int
    """For a rollout or for feedback that is still to come."""


class BatchProgress(TypedDict):
    """How far an objective's next batch is."""

    objective: str
    have: int
    want: int


class NextVersion(TypedDict):
    """How far the next version is."""

    steps_done: int
    steps_wanted: int
    """Full ones, of `batch_size` judgements."""
    seconds_left: float
    """After which it is published with less."""
    evidence: float
    """The full steps that those done amount to: a step on half a batch counts 0.5."""


class Alarm(TypedDict):
    """An alarm that is raised."""

    name: str
    since: str | None
    numbers: dict[str, float]


class LearnerState(TypedDict):
    """`POST /v1/learner/pause` and `/resume`."""

    state: str


class LearnerStatus(LearnerState):
    """`GET /v1/learner`."""

    policy: str
    step: int
    policy_version: int
    reward_model_version: int
    samples: list[SampleCounts]
    last_step_metrics: dict[str, float]
    last_step_time: str | None
    waiting_for: str
    """In words, for people."""
    rollouts: int
    feedback_events: int
    progress: list[BatchProgress]
    publish: NextVersion | None
    staleness: float | None
    """Mean age of the last step's rollouts, in versions."""
    evaluation: Evaluation | None
    """Of the newest version evaluated."""
    base_evaluation: Evaluation | None
    """Of version 0."""
    alarms: list[Alarm]
    retracted: list[ShareOfVersion]
    """What the policy was trained on and was retracted since, by version, oldest first."""
    learns_from_comments: bool | None
    """Whether comments teach the policy; false: they are only kept. Null of an older learner."""


class TokenPrice(TypedDict):
    """Per million tokens, in the operator's currency."""

    input: float
    output: float


class UsedTokens(TypedDict):
    """The tokens of a day, an API key and a version, and what they cost."""

    day: str
    """In UTC: `2026-11-30`."""
    key: str
    """Name of the API key; `local` without one."""
    policy: str
    policy_version: int
    input_tokens: int
    output_tokens: int
    cost: float
    """By the prices of the time."""


class UsageReport(TypedDict):
    """`GET /v1/usage`, the newest day first."""

    object: Literal["list"]
    prices: dict[str, TokenPrice]
    """By policy; empty where nothing is counted."""
    data: list[UsedTokens]


class Throughput(TypedDict):
    """The event `throughput`: rates of this gateway over the last seconds, null at first."""

    tokens_per_second: float | None
    requests_per_second: float | None
    in_flight: int


class Health(TypedDict):
    """`GET /healthz`."""

    status: Literal["ok"]


class Readiness(TypedDict):
    """`GET /readyz`."""

    status: Literal["ready", "unavailable"]
    reason: NotRequired[str]
    """Why no chat would be answered now."""
    policy: NotRequired[str]
    policy_version: NotRequired[int]
    feedback: NotRequired[Literal["accepted", "unavailable"]]
