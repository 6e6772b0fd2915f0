"""Feedback, its acknowledgements, the scores of the reward service, and imported rows."""

from typing import Literal

from typing_extensions import TypedDict

from tuneloop.api.openai import ErrorDetails


class FeedbackAccepted(TypedDict):
    """Feedback is stored durably."""

    id: str
    status: Literal["accepted"]
    receipt: str
    """Signed: its holder may see what became of the feedback, and retract it, without a key where
    feedback needs none (`/v1/receipts/{receipt}`)."""


class FeedbackRetracted(TypedDict):
    """Nothing learns from this feedback any more."""

    id: str
    status: Literal["retracted"]


class FeedbackRefused(TypedDict):
    """An entry of a batch that was refused."""

    error: ErrorDetails
    status_code: int


class FeedbackBatchResult(TypedDict):
    """`POST /v1/feedback/batch`: an entry for each body, in their order."""

    object: Literal["list"]
    data: list[FeedbackAccepted | FeedbackRefused]


class SignalAccepted(TypedDict):
    """A signal is stored durably."""

    id: str
    status: Literal["accepted"]


class SignalsAccepted(TypedDict):
    """`POST /v1/signals`: an entry for each signal, in their order."""

    object: Literal["list"]
    data: list[SignalAccepted]


class ShareWithInterval(TypedDict):
    """A share, 0 to 1, with its 95 % interval."""

    value: float
    low: float
    high: float


class SignalKindReport(TypedDict):
    """What one kind of signal predicts."""

    kind: str
    count: int
    """Answers with it."""
    rated: int
    """Those that the same user gave a thumb."""
    up_with: ShareWithInterval | None
    """Share of those thumbs that are up; null without any."""
    up_without: ShareWithInterval | None
    """The same of answers without it."""
    gain: float | None
    """Log-likelihood that it adds to a thumb it did not see, in nats; null if it was not tried."""
    gain_low: float | None
    """Lower end of the gain's one-sided 95 % interval."""
    used: bool
    """Whether labels are made of it, where the reward model learns from signals."""
    reason: str
    chance: float | None
    """Of a thumb up, of an answer with this signal alone; null if it is not used."""


class SignalReport(TypedDict):
    """`GET /v1/signals/report`: what the latest signals predict."""

    answers: int
    """Those that were looked at, of users who send signals."""
    rated: int
    """Those with a thumb."""
    up: float
    """Share of thumbs up, weighted as if every answer had been rated."""
    learned: int
    """Answers whose signals steps of the reward model have used."""
    kinds: list[SignalKindReport]


class FeedbackHead(TypedDict):
    """What names feedback."""

    id: str
    status: str
    kind: str
    completion_id: str | None
    """Null for feedback on a session."""
    session_id: str | None
    """Null for feedback on a completion."""


class Judgement(TypedDict, total=False):
    """What feedback says; which member it has depends on its kind."""

    value: str | bool | float
    """`up` or `down` of a thumb, the number of a rating, the boolean or number of a metric."""
    name: str
    """Of a metric."""
    chosen: str
    rejected: list[str]
    """Of a comparison."""
    ranking: list[str]
    """Completion ids, best first."""
    text: str
    """Of a demonstration or a comment."""


class AcceptedFeedback(FeedbackHead, Judgement):
    """Feedback as it was accepted."""

    metadata: dict[str, str]
    accepted_time: str


class Effect(TypedDict):
    """How much likelier or less likely a version made a text of feedback that it learned from."""

    policy_version: int
    text: str
    """`answer`, `edit`, `chosen` or `rejected`."""
    completion_id: str | None
    """Of that text; null for an edit."""
    tokens: int
    logprob_before: float
    """log π of the whole text, in nats, before the step that learned from it."""
    logprob_after: float
    """Under the version."""
    times_as_likely: float
    """exp(after - before): above 1 the version is likelier to write exactly this text."""


class Feedback(AcceptedFeedback):
    """`GET /v1/feedback/{id}`: feedback as it was accepted, and what learning from it changed."""

    used_by_versions: list[int]
    """Of the policy, those that learned from it themselves, oldest first; empty as `effects` is."""
    effects: list[Effect]
    """Oldest version first; empty before a version learned from it, and where the learner does not
    answer."""


class FeedbackReach(TypedDict):
    """`GET /v1/receipts/{receipt}`: which versions learned from feedback."""

    id: str
    kind: str
    status: str
    accepted_time: str
    policy_versions: list[int] | None
    """Those that learned from it themselves, oldest first; null while the learner does not answer.
    Versions after them carry on from them."""
    serving_version: int | None
    """What answers users now; null while generation does not answer."""
    is_serving: bool | None
    """Whether that version learned from it, or descends from one that did; null if not known."""
    effects: list[Effect]


class JudgedCompletion(TypedDict):
    """A completion that feedback is about; null where its rollout is not known."""

    completion_id: str
    text: str | None
    policy_version: int | None


class Turn(TypedDict):
    """One message of a prompt."""

    role: str
    content: str


class FeedbackItem(AcceptedFeedback):
    """Feedback in the ledger, with what it is about."""

    user_hash: str
    policy_version: int | None
    """Which version it judges; null for imported text or where that is not known."""
    tags: dict[str, str]
    """What the request of the answer had in `metadata`; of several answers the chosen or first."""
    prompt: list[Turn] | str | None
    completion: str | None
    completions: list[JudgedCompletion]
    """Of a session the turns that the feedback counts for, oldest first."""
    used_by_versions: list[int]


class FeedbackPage(TypedDict):
    """`GET /v1/feedback`, newest first."""

    object: Literal["list"]
    data: list[FeedbackItem]
    next: str | None
    """What `before` takes to read on; null at the end."""


class ScorerResult(TypedDict):
    """One scorer's part of a reward."""

    scorer: str
    score: float | None
    weight: float
    informative: bool
    """False while a reward model knows too little to be learned from."""


class Scores(TypedDict):
    """`POST /v1/score`, in the order of the completions."""

    scores: list[float | None]
    """Null where no scorer could score."""
    reward_model_version: int
    results: list[list[ScorerResult]]


class ImportResult(TypedDict):
    """`POST /v1/import`."""

    kind: str
    added: int
    known: int
    """Rows that an earlier import had added."""
