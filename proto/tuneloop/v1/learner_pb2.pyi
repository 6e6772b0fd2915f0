import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
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
    __slots__ = ("state", "policy", "step", "policy_version", "reward_model_version", "samples", "last_step_metrics", "last_step_time", "waiting_for", "rollouts", "feedback_events", "evaluation", "base_evaluation")
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
    def __init__(self, state: _Optional[str] = ..., policy: _Optional[str] = ..., step: _Optional[int] = ..., policy_version: _Optional[int] = ..., reward_model_version: _Optional[int] = ..., samples: _Optional[_Iterable[_Union[SampleCount, _Mapping]]] = ..., last_step_metrics: _Optional[_Mapping[str, float]] = ..., last_step_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., waiting_for: _Optional[str] = ..., rollouts: _Optional[int] = ..., feedback_events: _Optional[int] = ..., evaluation: _Optional[_Union[Evaluation, _Mapping]] = ..., base_evaluation: _Optional[_Union[Evaluation, _Mapping]] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("policy_version", "prompts", "scored", "mean_reward", "reward_margin", "mean_length", "length_margin", "kl", "reward_model_version")
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    SCORED_FIELD_NUMBER: _ClassVar[int]
    MEAN_REWARD_FIELD_NUMBER: _ClassVar[int]
    REWARD_MARGIN_FIELD_NUMBER: _ClassVar[int]
    MEAN_LENGTH_FIELD_NUMBER: _ClassVar[int]
    LENGTH_MARGIN_FIELD_NUMBER: _ClassVar[int]
    KL_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    policy_version: int
    prompts: int
    scored: int
    mean_reward: float
    reward_margin: float
    mean_length: float
    length_margin: float
    kl: float
    reward_model_version: int
    def __init__(self, policy_version: _Optional[int] = ..., prompts: _Optional[int] = ..., scored: _Optional[int] = ..., mean_reward: _Optional[float] = ..., reward_margin: _Optional[float] = ..., mean_length: _Optional[float] = ..., length_margin: _Optional[float] = ..., kl: _Optional[float] = ..., reward_model_version: _Optional[int] = ...) -> None: ...

class PolicyVersion(_message.Message):
    __slots__ = ("policy", "policy_version", "parent_version", "state", "manifest_json", "created_time", "activated_time", "evaluation")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    PARENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    CREATED_TIME_FIELD_NUMBER: _ClassVar[int]
    ACTIVATED_TIME_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    policy: str
    policy_version: int
    parent_version: int
    state: str
    manifest_json: str
    created_time: _timestamp_pb2.Timestamp
    activated_time: _timestamp_pb2.Timestamp
    evaluation: Evaluation
    def __init__(self, policy: _Optional[str] = ..., policy_version: _Optional[int] = ..., parent_version: _Optional[int] = ..., state: _Optional[str] = ..., manifest_json: _Optional[str] = ..., created_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., activated_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., evaluation: _Optional[_Union[Evaluation, _Mapping]] = ...) -> None: ...

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
    __slots__ = ("sample_id", "objective", "step", "epoch")
    SAMPLE_ID_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    sample_id: str
    objective: str
    step: int
    epoch: int
    def __init__(self, sample_id: _Optional[str] = ..., objective: _Optional[str] = ..., step: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class GetLineageResponse(_message.Message):
    __slots__ = ("version", "ancestors", "uses")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ANCESTORS_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    version: PolicyVersion
    ancestors: _containers.RepeatedScalarFieldContainer[int]
    uses: _containers.RepeatedCompositeFieldContainer[SampleUse]
    def __init__(self, version: _Optional[_Union[PolicyVersion, _Mapping]] = ..., ancestors: _Optional[_Iterable[int]] = ..., uses: _Optional[_Iterable[_Union[SampleUse, _Mapping]]] = ...) -> None: ...

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
    __slots__ = ()
    def __init__(self) -> None: ...

class PauseResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: str
    def __init__(self, state: _Optional[str] = ...) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

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
    __slots__ = ("rollouts_removed", "feedback_removed", "events_purged", "policy_versions")
    ROLLOUTS_REMOVED_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_REMOVED_FIELD_NUMBER: _ClassVar[int]
    EVENTS_PURGED_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    rollouts_removed: int
    feedback_removed: int
    events_purged: int
    policy_versions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, rollouts_removed: _Optional[int] = ..., feedback_removed: _Optional[int] = ..., events_purged: _Optional[int] = ..., policy_versions: _Optional[_Iterable[int]] = ...) -> None: ...
