import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from tuneloop.v1 import events_pb2 as _events_pb2
from tuneloop.v1 import rollout_pb2 as _rollout_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SampleCount(_message.Message):
    __slots__ = ("objective", "ready", "used", "waiting")
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    objective: str
    ready: int
    used: int
    waiting: int
    def __init__(self, objective: _Optional[str] = ..., ready: _Optional[int] = ..., used: _Optional[int] = ..., waiting: _Optional[int] = ...) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("state", "policy", "step", "policy_version", "reward_model_version", "samples", "last_step_metrics", "last_step_time", "waiting_for", "rollouts", "feedback_events", "evaluation", "base_evaluation", "progress", "next_version", "staleness", "alarms", "retracted", "learns_from_comments")
    class LastStepMetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    STATE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    LAST_STEP_METRICS_FIELD_NUMBER: _ClassVar[int]
    LAST_STEP_TIME_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    ROLLOUTS_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_EVENTS_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    BASE_EVALUATION_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    NEXT_VERSION_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    ALARMS_FIELD_NUMBER: _ClassVar[int]
    RETRACTED_FIELD_NUMBER: _ClassVar[int]
    LEARNS_FROM_COMMENTS_FIELD_NUMBER: _ClassVar[int]
    state: str
    policy: str
    step: int
    policy_version: int
    reward_model_version: int
    samples: _containers.RepeatedCompositeFieldContainer[SampleCount]
    last_step_metrics: _containers.ScalarMap[str, float]
    last_step_time: _timestamp_pb2.Timestamp
    waiting_for: str
    rollouts: int
    feedback_events: int
    evaluation: Evaluation
    base_evaluation: Evaluation
    progress: _containers.RepeatedCompositeFieldContainer[Progress]
    next_version: NextVersion
    staleness: float
    alarms: _containers.RepeatedCompositeFieldContainer[Alarm]
    retracted: _containers.RepeatedCompositeFieldContainer[RetractedEvidence]
    learns_from_comments: bool
    def __init__(self, state: _Optional[str] = ..., policy: _Optional[str] = ..., step: _Optional[int] = ..., policy_version: _Optional[int] = ..., reward_model_version: _Optional[int] = ..., samples: _Optional[_Iterable[_Union[SampleCount, _Mapping]]] = ..., last_step_metrics: _Optional[_Mapping[str, float]] = ..., last_step_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., waiting_for: _Optional[str] = ..., rollouts: _Optional[int] = ..., feedback_events: _Optional[int] = ..., evaluation: _Optional[_Union[Evaluation, _Mapping]] = ..., base_evaluation: _Optional[_Union[Evaluation, _Mapping]] = ..., progress: _Optional[_Iterable[_Union[Progress, _Mapping]]] = ..., next_version: _Optional[_Union[NextVersion, _Mapping]] = ..., staleness: _Optional[float] = ..., alarms: _Optional[_Iterable[_Union[Alarm, _Mapping]]] = ..., retracted: _Optional[_Iterable[_Union[RetractedEvidence, _Mapping]]] = ..., learns_from_comments: bool = ...) -> None: ...

class RetractedEvidence(_message.Message):
    __slots__ = ("policy_version", "samples", "share")
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    policy_version: int
    samples: int
    share: float
    def __init__(self, policy_version: _Optional[int] = ..., samples: _Optional[int] = ..., share: _Optional[float] = ...) -> None: ...

class Alarm(_message.Message):
    __slots__ = ("name", "since", "numbers")
    class NumbersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    since: _timestamp_pb2.Timestamp
    numbers: _containers.ScalarMap[str, float]
    def __init__(self, name: _Optional[str] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., numbers: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("objective", "have", "want")
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    HAVE_FIELD_NUMBER: _ClassVar[int]
    WANT_FIELD_NUMBER: _ClassVar[int]
    objective: str
    have: int
    want: int
    def __init__(self, objective: _Optional[str] = ..., have: _Optional[int] = ..., want: _Optional[int] = ...) -> None: ...

class NextVersion(_message.Message):
    __slots__ = ("steps_done", "steps_wanted", "seconds_left", "evidence")
    STEPS_DONE_FIELD_NUMBER: _ClassVar[int]
    STEPS_WANTED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    steps_done: int
    steps_wanted: int
    seconds_left: float
    evidence: float
    def __init__(self, steps_done: _Optional[int] = ..., steps_wanted: _Optional[int] = ..., seconds_left: _Optional[float] = ..., evidence: _Optional[float] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("policy_version", "prompts", "scored", "mean_reward", "reward_margin", "mean_length", "length_margin", "kl", "reward_model_version", "mean_thought_length", "thought_length_margin")
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    SCORED_FIELD_NUMBER: _ClassVar[int]
    MEAN_REWARD_FIELD_NUMBER: _ClassVar[int]
    REWARD_MARGIN_FIELD_NUMBER: _ClassVar[int]
    MEAN_LENGTH_FIELD_NUMBER: _ClassVar[int]
    LENGTH_MARGIN_FIELD_NUMBER: _ClassVar[int]
    KL_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    MEAN_THOUGHT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    THOUGHT_LENGTH_MARGIN_FIELD_NUMBER: _ClassVar[int]
    policy_version: int
    prompts: int
    scored: int
    mean_reward: float
    reward_margin: float
    mean_length: float
    length_margin: float
    kl: float
    reward_model_version: int
    mean_thought_length: float
    thought_length_margin: float
    def __init__(self, policy_version: _Optional[int] = ..., prompts: _Optional[int] = ..., scored: _Optional[int] = ..., mean_reward: _Optional[float] = ..., reward_margin: _Optional[float] = ..., mean_length: _Optional[float] = ..., length_margin: _Optional[float] = ..., kl: _Optional[float] = ..., reward_model_version: _Optional[int] = ..., mean_thought_length: _Optional[float] = ..., thought_length_margin: _Optional[float] = ...) -> None: ...

class PolicyVersion(_message.Message):
    __slots__ = ("policy", "policy_version", "parent_version", "state", "manifest_json", "created_time", "activated_time", "evaluation", "traffic", "decisions")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    PARENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    CREATED_TIME_FIELD_NUMBER: _ClassVar[int]
    ACTIVATED_TIME_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    policy: str
    policy_version: int
    parent_version: int
    state: str
    manifest_json: str
    created_time: _timestamp_pb2.Timestamp
    activated_time: _timestamp_pb2.Timestamp
    evaluation: Evaluation
    traffic: Traffic
    decisions: _containers.RepeatedCompositeFieldContainer[Decision]
    def __init__(self, policy: _Optional[str] = ..., policy_version: _Optional[int] = ..., parent_version: _Optional[int] = ..., state: _Optional[str] = ..., manifest_json: _Optional[str] = ..., created_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., activated_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., evaluation: _Optional[_Union[Evaluation, _Mapping]] = ..., traffic: _Optional[_Union[Traffic, _Mapping]] = ..., decisions: _Optional[_Iterable[_Union[Decision, _Mapping]]] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("kind", "outcome", "reason", "actor", "decided_time", "numbers_json")
    KIND_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    DECIDED_TIME_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_JSON_FIELD_NUMBER: _ClassVar[int]
    kind: str
    outcome: str
    reason: str
    actor: str
    decided_time: _timestamp_pb2.Timestamp
    numbers_json: str
    def __init__(self, kind: _Optional[str] = ..., outcome: _Optional[str] = ..., reason: _Optional[str] = ..., actor: _Optional[str] = ..., decided_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., numbers_json: _Optional[str] = ...) -> None: ...

class Traffic(_message.Message):
    __slots__ = ("rollouts", "mean_length", "length_margin", "mean_reward", "reward_margin", "thumbs_up", "thumbs_down", "metrics", "mean_thought_length", "thought_length_margin")
    ROLLOUTS_FIELD_NUMBER: _ClassVar[int]
    MEAN_LENGTH_FIELD_NUMBER: _ClassVar[int]
    LENGTH_MARGIN_FIELD_NUMBER: _ClassVar[int]
    MEAN_REWARD_FIELD_NUMBER: _ClassVar[int]
    REWARD_MARGIN_FIELD_NUMBER: _ClassVar[int]
    THUMBS_UP_FIELD_NUMBER: _ClassVar[int]
    THUMBS_DOWN_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    MEAN_THOUGHT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    THOUGHT_LENGTH_MARGIN_FIELD_NUMBER: _ClassVar[int]
    rollouts: int
    mean_length: float
    length_margin: float
    mean_reward: float
    reward_margin: float
    thumbs_up: int
    thumbs_down: int
    metrics: _containers.RepeatedCompositeFieldContainer[MetricFigures]
    mean_thought_length: float
    thought_length_margin: float
    def __init__(self, rollouts: _Optional[int] = ..., mean_length: _Optional[float] = ..., length_margin: _Optional[float] = ..., mean_reward: _Optional[float] = ..., reward_margin: _Optional[float] = ..., thumbs_up: _Optional[int] = ..., thumbs_down: _Optional[int] = ..., metrics: _Optional[_Iterable[_Union[MetricFigures, _Mapping]]] = ..., mean_thought_length: _Optional[float] = ..., thought_length_margin: _Optional[float] = ...) -> None: ...

class MetricFigures(_message.Message):
    __slots__ = ("name", "is_boolean", "count", "mean", "margin")
    NAME_FIELD_NUMBER: _ClassVar[int]
    IS_BOOLEAN_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    MARGIN_FIELD_NUMBER: _ClassVar[int]
    name: str
    is_boolean: bool
    count: int
    mean: float
    margin: float
    def __init__(self, name: _Optional[str] = ..., is_boolean: bool = ..., count: _Optional[int] = ..., mean: _Optional[float] = ..., margin: _Optional[float] = ...) -> None: ...

class ListPolicyVersionsRequest(_message.Message):
    __slots__ = ("policy", "page_size", "before_version")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    BEFORE_VERSION_FIELD_NUMBER: _ClassVar[int]
    policy: str
    page_size: int
    before_version: int
    def __init__(self, policy: _Optional[str] = ..., page_size: _Optional[int] = ..., before_version: _Optional[int] = ...) -> None: ...

class ListPolicyVersionsResponse(_message.Message):
    __slots__ = ("versions",)
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[PolicyVersion]
    def __init__(self, versions: _Optional[_Iterable[_Union[PolicyVersion, _Mapping]]] = ...) -> None: ...

class GetLineageRequest(_message.Message):
    __slots__ = ("policy", "policy_version")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    policy: str
    policy_version: int
    def __init__(self, policy: _Optional[str] = ..., policy_version: _Optional[int] = ...) -> None: ...

class SampleUse(_message.Message):
    __slots__ = ("sample_id", "objective", "step", "epoch", "feedback_id", "completion_id", "rejected_id")
    SAMPLE_ID_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_ID_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_ID_FIELD_NUMBER: _ClassVar[int]
    REJECTED_ID_FIELD_NUMBER: _ClassVar[int]
    sample_id: str
    objective: str
    step: int
    epoch: int
    feedback_id: str
    completion_id: str
    rejected_id: str
    def __init__(self, sample_id: _Optional[str] = ..., objective: _Optional[str] = ..., step: _Optional[int] = ..., epoch: _Optional[int] = ..., feedback_id: _Optional[str] = ..., completion_id: _Optional[str] = ..., rejected_id: _Optional[str] = ...) -> None: ...

class GetLineageResponse(_message.Message):
    __slots__ = ("version", "ancestors", "uses", "settings_json")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ANCESTORS_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_JSON_FIELD_NUMBER: _ClassVar[int]
    version: PolicyVersion
    ancestors: _containers.RepeatedScalarFieldContainer[int]
    uses: _containers.RepeatedCompositeFieldContainer[SampleUse]
    settings_json: str
    def __init__(self, version: _Optional[_Union[PolicyVersion, _Mapping]] = ..., ancestors: _Optional[_Iterable[int]] = ..., uses: _Optional[_Iterable[_Union[SampleUse, _Mapping]]] = ..., settings_json: _Optional[str] = ...) -> None: ...

class PromoteRequest(_message.Message):
    __slots__ = ("policy", "policy_version", "actor")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    policy: str
    policy_version: int
    actor: str
    def __init__(self, policy: _Optional[str] = ..., policy_version: _Optional[int] = ..., actor: _Optional[str] = ...) -> None: ...

class PromoteResponse(_message.Message):
    __slots__ = ("policy_version",)
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    policy_version: int
    def __init__(self, policy_version: _Optional[int] = ...) -> None: ...

class RollBackRequest(_message.Message):
    __slots__ = ("policy", "policy_version", "actor")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    policy: str
    policy_version: int
    actor: str
    def __init__(self, policy: _Optional[str] = ..., policy_version: _Optional[int] = ..., actor: _Optional[str] = ...) -> None: ...

class RollBackResponse(_message.Message):
    __slots__ = ("policy_version",)
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    policy_version: int
    def __init__(self, policy_version: _Optional[int] = ...) -> None: ...

class PauseRequest(_message.Message):
    __slots__ = ("actor",)
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    actor: str
    def __init__(self, actor: _Optional[str] = ...) -> None: ...

class PauseResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: str
    def __init__(self, state: _Optional[str] = ...) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ("actor",)
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    actor: str
    def __init__(self, actor: _Optional[str] = ...) -> None: ...

class ResumeResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: str
    def __init__(self, state: _Optional[str] = ...) -> None: ...

class ForgetUserRequest(_message.Message):
    __slots__ = ("user_hash",)
    USER_HASH_FIELD_NUMBER: _ClassVar[int]
    user_hash: str
    def __init__(self, user_hash: _Optional[str] = ...) -> None: ...

class ForgetUserResponse(_message.Message):
    __slots__ = ("rollouts_removed", "feedback_removed", "events_purged", "events_left_on_disk", "policy_versions", "descended_versions", "reward_model_versions", "rebuild_from")
    ROLLOUTS_REMOVED_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_REMOVED_FIELD_NUMBER: _ClassVar[int]
    EVENTS_PURGED_FIELD_NUMBER: _ClassVar[int]
    EVENTS_LEFT_ON_DISK_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    DESCENDED_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    REBUILD_FROM_FIELD_NUMBER: _ClassVar[int]
    rollouts_removed: int
    feedback_removed: int
    events_purged: int
    events_left_on_disk: int
    policy_versions: _containers.RepeatedScalarFieldContainer[int]
    descended_versions: _containers.RepeatedScalarFieldContainer[int]
    reward_model_versions: _containers.RepeatedScalarFieldContainer[int]
    rebuild_from: int
    def __init__(self, rollouts_removed: _Optional[int] = ..., feedback_removed: _Optional[int] = ..., events_purged: _Optional[int] = ..., events_left_on_disk: _Optional[int] = ..., policy_versions: _Optional[_Iterable[int]] = ..., descended_versions: _Optional[_Iterable[int]] = ..., reward_model_versions: _Optional[_Iterable[int]] = ..., rebuild_from: _Optional[int] = ...) -> None: ...

class ListFeedbackRequest(_message.Message):
    __slots__ = ("kind", "value", "policy_version", "user_hash", "status", "page_size", "before", "feedback_id", "tags")
    class TagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    KIND_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    USER_HASH_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_ID_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    value: str
    policy_version: int
    user_hash: str
    status: str
    page_size: int
    before: str
    feedback_id: str
    tags: _containers.ScalarMap[str, str]
    def __init__(self, kind: _Optional[str] = ..., value: _Optional[str] = ..., policy_version: _Optional[int] = ..., user_hash: _Optional[str] = ..., status: _Optional[str] = ..., page_size: _Optional[int] = ..., before: _Optional[str] = ..., feedback_id: _Optional[str] = ..., tags: _Optional[_Mapping[str, str]] = ...) -> None: ...

class JudgedCompletion(_message.Message):
    __slots__ = ("completion_id", "text", "policy_version")
    COMPLETION_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    completion_id: str
    text: str
    policy_version: int
    def __init__(self, completion_id: _Optional[str] = ..., text: _Optional[str] = ..., policy_version: _Optional[int] = ...) -> None: ...

class RecordedFeedback(_message.Message):
    __slots__ = ("feedback", "status", "chat", "prompt_text", "completions", "used_by_versions", "tags")
    class TagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TEXT_FIELD_NUMBER: _ClassVar[int]
    COMPLETIONS_FIELD_NUMBER: _ClassVar[int]
    USED_BY_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    feedback: _events_pb2.FeedbackGiven
    status: str
    chat: _rollout_pb2.ChatPrompt
    prompt_text: str
    completions: _containers.RepeatedCompositeFieldContainer[JudgedCompletion]
    used_by_versions: _containers.RepeatedScalarFieldContainer[int]
    tags: _containers.ScalarMap[str, str]
    def __init__(self, feedback: _Optional[_Union[_events_pb2.FeedbackGiven, _Mapping]] = ..., status: _Optional[str] = ..., chat: _Optional[_Union[_rollout_pb2.ChatPrompt, _Mapping]] = ..., prompt_text: _Optional[str] = ..., completions: _Optional[_Iterable[_Union[JudgedCompletion, _Mapping]]] = ..., used_by_versions: _Optional[_Iterable[int]] = ..., tags: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ListFeedbackResponse(_message.Message):
    __slots__ = ("feedback", "next")
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    feedback: _containers.RepeatedCompositeFieldContainer[RecordedFeedback]
    next: str
    def __init__(self, feedback: _Optional[_Iterable[_Union[RecordedFeedback, _Mapping]]] = ..., next: _Optional[str] = ...) -> None: ...

class ExportDataRequest(_message.Message):
    __slots__ = ("kind", "policy_version", "since", "tags")
    class TagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    KIND_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    policy_version: int
    since: _timestamp_pb2.Timestamp
    tags: _containers.ScalarMap[str, str]
    def __init__(self, kind: _Optional[str] = ..., policy_version: _Optional[int] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., tags: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ExportDataResponse(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, rows: _Optional[_Iterable[str]] = ...) -> None: ...

class ImportDataRequest(_message.Message):
    __slots__ = ("kind", "rows")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    rows: _containers.RepeatedCompositeFieldContainer[ImportedRow]
    def __init__(self, kind: _Optional[str] = ..., rows: _Optional[_Iterable[_Union[ImportedRow, _Mapping]]] = ...) -> None: ...

class ImportedRow(_message.Message):
    __slots__ = ("place", "row", "occurrence")
    PLACE_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    OCCURRENCE_FIELD_NUMBER: _ClassVar[int]
    place: str
    row: str
    occurrence: int
    def __init__(self, place: _Optional[str] = ..., row: _Optional[str] = ..., occurrence: _Optional[int] = ...) -> None: ...

class ImportDataResponse(_message.Message):
    __slots__ = ("added", "known")
    ADDED_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    added: int
    known: int
    def __init__(self, added: _Optional[int] = ..., known: _Optional[int] = ...) -> None: ...

class Reach(_message.Message):
    __slots__ = ("direct", "descended")
    DIRECT_FIELD_NUMBER: _ClassVar[int]
    DESCENDED_FIELD_NUMBER: _ClassVar[int]
    direct: _containers.RepeatedScalarFieldContainer[int]
    descended: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, direct: _Optional[_Iterable[int]] = ..., descended: _Optional[_Iterable[int]] = ...) -> None: ...

class GetFeedbackLineageRequest(_message.Message):
    __slots__ = ("feedback_id",)
    FEEDBACK_ID_FIELD_NUMBER: _ClassVar[int]
    feedback_id: str
    def __init__(self, feedback_id: _Optional[str] = ...) -> None: ...

class SampleLineage(_message.Message):
    __slots__ = ("sample_id", "objective", "state", "steps")
    SAMPLE_ID_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    sample_id: str
    objective: str
    state: str
    steps: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, sample_id: _Optional[str] = ..., objective: _Optional[str] = ..., state: _Optional[str] = ..., steps: _Optional[_Iterable[int]] = ...) -> None: ...

class GetFeedbackLineageResponse(_message.Message):
    __slots__ = ("feedback_id", "kind", "status", "user_hash", "completion_ids", "accepted_time", "samples", "policy", "reward_model", "effects")
    FEEDBACK_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    USER_HASH_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_IDS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TIME_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    EFFECTS_FIELD_NUMBER: _ClassVar[int]
    feedback_id: str
    kind: str
    status: str
    user_hash: str
    completion_ids: _containers.RepeatedScalarFieldContainer[str]
    accepted_time: _timestamp_pb2.Timestamp
    samples: _containers.RepeatedCompositeFieldContainer[SampleLineage]
    policy: Reach
    reward_model: Reach
    effects: _containers.RepeatedCompositeFieldContainer[Effect]
    def __init__(self, feedback_id: _Optional[str] = ..., kind: _Optional[str] = ..., status: _Optional[str] = ..., user_hash: _Optional[str] = ..., completion_ids: _Optional[_Iterable[str]] = ..., accepted_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., samples: _Optional[_Iterable[_Union[SampleLineage, _Mapping]]] = ..., policy: _Optional[_Union[Reach, _Mapping]] = ..., reward_model: _Optional[_Union[Reach, _Mapping]] = ..., effects: _Optional[_Iterable[_Union[Effect, _Mapping]]] = ...) -> None: ...

class Effect(_message.Message):
    __slots__ = ("policy_version", "text", "completion_id", "tokens", "logprob_before", "logprob_after")
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_ID_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_BEFORE_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_AFTER_FIELD_NUMBER: _ClassVar[int]
    policy_version: int
    text: str
    completion_id: str
    tokens: int
    logprob_before: float
    logprob_after: float
    def __init__(self, policy_version: _Optional[int] = ..., text: _Optional[str] = ..., completion_id: _Optional[str] = ..., tokens: _Optional[int] = ..., logprob_before: _Optional[float] = ..., logprob_after: _Optional[float] = ...) -> None: ...

class GetSessionRequest(_message.Message):
    __slots__ = ("tenant", "session_id")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    session_id: str
    def __init__(self, tenant: _Optional[str] = ..., session_id: _Optional[str] = ...) -> None: ...

class SessionTurn(_message.Message):
    __slots__ = ("completion_id", "policy_version", "finished_time", "feedback_ids", "used_by_versions")
    COMPLETION_ID_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    FINISHED_TIME_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_IDS_FIELD_NUMBER: _ClassVar[int]
    USED_BY_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    completion_id: str
    policy_version: int
    finished_time: _timestamp_pb2.Timestamp
    feedback_ids: _containers.RepeatedScalarFieldContainer[str]
    used_by_versions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, completion_id: _Optional[str] = ..., policy_version: _Optional[int] = ..., finished_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., feedback_ids: _Optional[_Iterable[str]] = ..., used_by_versions: _Optional[_Iterable[int]] = ...) -> None: ...

class GetSessionResponse(_message.Message):
    __slots__ = ("turns", "feedback", "policy", "reward_model", "rebuild_from", "forgotten")
    TURNS_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    REBUILD_FROM_FIELD_NUMBER: _ClassVar[int]
    FORGOTTEN_FIELD_NUMBER: _ClassVar[int]
    turns: _containers.RepeatedCompositeFieldContainer[SessionTurn]
    feedback: _containers.RepeatedCompositeFieldContainer[RecordedFeedback]
    policy: Reach
    reward_model: Reach
    rebuild_from: int
    forgotten: _containers.RepeatedCompositeFieldContainer[ForgottenRecord]
    def __init__(self, turns: _Optional[_Iterable[_Union[SessionTurn, _Mapping]]] = ..., feedback: _Optional[_Iterable[_Union[RecordedFeedback, _Mapping]]] = ..., policy: _Optional[_Union[Reach, _Mapping]] = ..., reward_model: _Optional[_Union[Reach, _Mapping]] = ..., rebuild_from: _Optional[int] = ..., forgotten: _Optional[_Iterable[_Union[ForgottenRecord, _Mapping]]] = ...) -> None: ...

class ForgetSessionRequest(_message.Message):
    __slots__ = ("tenant", "session_id")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    session_id: str
    def __init__(self, tenant: _Optional[str] = ..., session_id: _Optional[str] = ...) -> None: ...

class ForgetSessionResponse(_message.Message):
    __slots__ = ("rollouts_removed", "feedback_removed", "events_purged", "events_left_on_disk", "policy_versions", "descended_versions", "reward_model_versions", "rebuild_from")
    ROLLOUTS_REMOVED_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_REMOVED_FIELD_NUMBER: _ClassVar[int]
    EVENTS_PURGED_FIELD_NUMBER: _ClassVar[int]
    EVENTS_LEFT_ON_DISK_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    DESCENDED_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    REBUILD_FROM_FIELD_NUMBER: _ClassVar[int]
    rollouts_removed: int
    feedback_removed: int
    events_purged: int
    events_left_on_disk: int
    policy_versions: _containers.RepeatedScalarFieldContainer[int]
    descended_versions: _containers.RepeatedScalarFieldContainer[int]
    reward_model_versions: _containers.RepeatedScalarFieldContainer[int]
    rebuild_from: int
    def __init__(self, rollouts_removed: _Optional[int] = ..., feedback_removed: _Optional[int] = ..., events_purged: _Optional[int] = ..., events_left_on_disk: _Optional[int] = ..., policy_versions: _Optional[_Iterable[int]] = ..., descended_versions: _Optional[_Iterable[int]] = ..., reward_model_versions: _Optional[_Iterable[int]] = ..., rebuild_from: _Optional[int] = ...) -> None: ...

class GetUserLineageRequest(_message.Message):
    __slots__ = ("user_hash",)
    USER_HASH_FIELD_NUMBER: _ClassVar[int]
    user_hash: str
    def __init__(self, user_hash: _Optional[str] = ...) -> None: ...

class ForgottenRecord(_message.Message):
    __slots__ = ("time", "rollouts", "feedback", "policy_versions", "reward_model_versions")
    TIME_FIELD_NUMBER: _ClassVar[int]
    ROLLOUTS_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    time: _timestamp_pb2.Timestamp
    rollouts: int
    feedback: int
    policy_versions: _containers.RepeatedScalarFieldContainer[int]
    reward_model_versions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., rollouts: _Optional[int] = ..., feedback: _Optional[int] = ..., policy_versions: _Optional[_Iterable[int]] = ..., reward_model_versions: _Optional[_Iterable[int]] = ...) -> None: ...

class GetUserLineageResponse(_message.Message):
    __slots__ = ("rollouts", "feedback", "samples", "policy", "reward_model", "rebuild_from", "forgotten", "signals")
    class SamplesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    ROLLOUTS_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    REBUILD_FROM_FIELD_NUMBER: _ClassVar[int]
    FORGOTTEN_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    rollouts: int
    feedback: int
    samples: _containers.ScalarMap[str, int]
    policy: Reach
    reward_model: Reach
    rebuild_from: int
    forgotten: _containers.RepeatedCompositeFieldContainer[ForgottenRecord]
    signals: int
    def __init__(self, rollouts: _Optional[int] = ..., feedback: _Optional[int] = ..., samples: _Optional[_Mapping[str, int]] = ..., policy: _Optional[_Union[Reach, _Mapping]] = ..., reward_model: _Optional[_Union[Reach, _Mapping]] = ..., rebuild_from: _Optional[int] = ..., forgotten: _Optional[_Iterable[_Union[ForgottenRecord, _Mapping]]] = ..., signals: _Optional[int] = ...) -> None: ...

class GetSignalReportRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ShareWithInterval(_message.Message):
    __slots__ = ("value", "low", "high")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    value: float
    low: float
    high: float
    def __init__(self, value: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class SignalKindReport(_message.Message):
    __slots__ = ("kind", "count", "rated", "up_with", "up_without", "gain", "gain_low", "used", "reason", "chance")
    KIND_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    RATED_FIELD_NUMBER: _ClassVar[int]
    UP_WITH_FIELD_NUMBER: _ClassVar[int]
    UP_WITHOUT_FIELD_NUMBER: _ClassVar[int]
    GAIN_FIELD_NUMBER: _ClassVar[int]
    GAIN_LOW_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CHANCE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    count: int
    rated: int
    up_with: ShareWithInterval
    up_without: ShareWithInterval
    gain: float
    gain_low: float
    used: bool
    reason: str
    chance: float
    def __init__(self, kind: _Optional[str] = ..., count: _Optional[int] = ..., rated: _Optional[int] = ..., up_with: _Optional[_Union[ShareWithInterval, _Mapping]] = ..., up_without: _Optional[_Union[ShareWithInterval, _Mapping]] = ..., gain: _Optional[float] = ..., gain_low: _Optional[float] = ..., used: bool = ..., reason: _Optional[str] = ..., chance: _Optional[float] = ...) -> None: ...

class GetSignalReportResponse(_message.Message):
    __slots__ = ("kinds", "base", "answers", "rated", "learned")
    KINDS_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    RATED_FIELD_NUMBER: _ClassVar[int]
    LEARNED_FIELD_NUMBER: _ClassVar[int]
    kinds: _containers.RepeatedCompositeFieldContainer[SignalKindReport]
    base: float
    answers: int
    rated: int
    learned: int
    def __init__(self, kinds: _Optional[_Iterable[_Union[SignalKindReport, _Mapping]]] = ..., base: _Optional[float] = ..., answers: _Optional[int] = ..., rated: _Optional[int] = ..., learned: _Optional[int] = ...) -> None: ...

class RebuildPolicyRequest(_message.Message):
    __slots__ = ("policy", "policy_version", "before_user_hash", "before_api_key", "before_tenant", "actor")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    BEFORE_USER_HASH_FIELD_NUMBER: _ClassVar[int]
    BEFORE_API_KEY_FIELD_NUMBER: _ClassVar[int]
    BEFORE_TENANT_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    policy: str
    policy_version: int
    before_user_hash: str
    before_api_key: str
    before_tenant: str
    actor: str
    def __init__(self, policy: _Optional[str] = ..., policy_version: _Optional[int] = ..., before_user_hash: _Optional[str] = ..., before_api_key: _Optional[str] = ..., before_tenant: _Optional[str] = ..., actor: _Optional[str] = ...) -> None: ...

class RebuildPolicyResponse(_message.Message):
    __slots__ = ("policy_version", "restored_version", "left_behind", "samples_put_back", "feedback_retracted")
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    RESTORED_VERSION_FIELD_NUMBER: _ClassVar[int]
    LEFT_BEHIND_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PUT_BACK_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_RETRACTED_FIELD_NUMBER: _ClassVar[int]
    policy_version: int
    restored_version: int
    left_behind: _containers.RepeatedScalarFieldContainer[int]
    samples_put_back: int
    feedback_retracted: int
    def __init__(self, policy_version: _Optional[int] = ..., restored_version: _Optional[int] = ..., left_behind: _Optional[_Iterable[int]] = ..., samples_put_back: _Optional[int] = ..., feedback_retracted: _Optional[int] = ...) -> None: ...

class GetSenderLineageRequest(_message.Message):
    __slots__ = ("api_key", "tenant", "tag")
    API_KEY_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    api_key: str
    tenant: str
    tag: str
    def __init__(self, api_key: _Optional[str] = ..., tenant: _Optional[str] = ..., tag: _Optional[str] = ...) -> None: ...

class SenderShare(_message.Message):
    __slots__ = ("policy_version", "samples", "share")
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    policy_version: int
    samples: int
    share: float
    def __init__(self, policy_version: _Optional[int] = ..., samples: _Optional[int] = ..., share: _Optional[float] = ...) -> None: ...

class GetSenderLineageResponse(_message.Message):
    __slots__ = ("feedback", "retracted", "users", "samples", "policy", "reward_model", "versions", "rebuild_from")
    class SamplesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    RETRACTED_FIELD_NUMBER: _ClassVar[int]
    USERS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    REBUILD_FROM_FIELD_NUMBER: _ClassVar[int]
    feedback: int
    retracted: int
    users: int
    samples: _containers.ScalarMap[str, int]
    policy: Reach
    reward_model: Reach
    versions: _containers.RepeatedCompositeFieldContainer[SenderShare]
    rebuild_from: int
    def __init__(self, feedback: _Optional[int] = ..., retracted: _Optional[int] = ..., users: _Optional[int] = ..., samples: _Optional[_Mapping[str, int]] = ..., policy: _Optional[_Union[Reach, _Mapping]] = ..., reward_model: _Optional[_Union[Reach, _Mapping]] = ..., versions: _Optional[_Iterable[_Union[SenderShare, _Mapping]]] = ..., rebuild_from: _Optional[int] = ...) -> None: ...
