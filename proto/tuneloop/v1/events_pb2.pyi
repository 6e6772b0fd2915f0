import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from tuneloop.v1 import generation_pb2 as _generation_pb2
from tuneloop.v1 import reward_pb2 as _reward_pb2
from tuneloop.v1 import rollout_pb2 as _rollout_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ThumbValue(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    THUMB_VALUE_UNSPECIFIED: _ClassVar[ThumbValue]
    THUMB_VALUE_UP: _ClassVar[ThumbValue]
    THUMB_VALUE_DOWN: _ClassVar[ThumbValue]
THUMB_VALUE_UNSPECIFIED: ThumbValue
THUMB_VALUE_UP: ThumbValue
THUMB_VALUE_DOWN: ThumbValue

class RolloutGenerated(_message.Message):
    __slots__ = ("event_id", "rollout", "siblings", "traceparent")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    SIBLINGS_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    rollout: _rollout_pb2.Rollout
    siblings: _containers.RepeatedCompositeFieldContainer[_rollout_pb2.Rollout]
    traceparent: str
    def __init__(self, event_id: _Optional[str] = ..., rollout: _Optional[_Union[_rollout_pb2.Rollout, _Mapping]] = ..., siblings: _Optional[_Iterable[_Union[_rollout_pb2.Rollout, _Mapping]]] = ..., traceparent: _Optional[str] = ...) -> None: ...

class RolloutScored(_message.Message):
    __slots__ = ("event_id", "policy", "completion_id", "score", "reward_model_version", "scored_time", "traceparent")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SCORED_TIME_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    policy: str
    completion_id: str
    score: _reward_pb2.Score
    reward_model_version: int
    scored_time: _timestamp_pb2.Timestamp
    traceparent: str
    def __init__(self, event_id: _Optional[str] = ..., policy: _Optional[str] = ..., completion_id: _Optional[str] = ..., score: _Optional[_Union[_reward_pb2.Score, _Mapping]] = ..., reward_model_version: _Optional[int] = ..., scored_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., traceparent: _Optional[str] = ...) -> None: ...

class Thumb(_message.Message):
    __slots__ = ("value",)
    VALUE_FIELD_NUMBER: _ClassVar[int]
    value: ThumbValue
    def __init__(self, value: _Optional[_Union[ThumbValue, str]] = ...) -> None: ...

class Rating(_message.Message):
    __slots__ = ("value",)
    VALUE_FIELD_NUMBER: _ClassVar[int]
    value: float
    def __init__(self, value: _Optional[float] = ...) -> None: ...

class Comparison(_message.Message):
    __slots__ = ("chosen", "rejected")
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    chosen: str
    rejected: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, chosen: _Optional[str] = ..., rejected: _Optional[_Iterable[str]] = ...) -> None: ...

class Ranking(_message.Message):
    __slots__ = ("completion_ids",)
    COMPLETION_IDS_FIELD_NUMBER: _ClassVar[int]
    completion_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, completion_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class Demonstration(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class Comment(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class Metric(_message.Message):
    __slots__ = ("name", "boolean", "number")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BOOLEAN_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    name: str
    boolean: bool
    number: float
    def __init__(self, name: _Optional[str] = ..., boolean: bool = ..., number: _Optional[float] = ...) -> None: ...

class FeedbackGiven(_message.Message):
    __slots__ = ("event_id", "policy", "tenant", "user_hash", "completion_id", "thumb", "rating", "comparison", "ranking", "demonstration", "comment", "metric", "accepted_time", "metadata", "api_key_id", "api_key_name", "session_id", "traceparent")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    USER_HASH_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_ID_FIELD_NUMBER: _ClassVar[int]
    THUMB_FIELD_NUMBER: _ClassVar[int]
    RATING_FIELD_NUMBER: _ClassVar[int]
    COMPARISON_FIELD_NUMBER: _ClassVar[int]
    RANKING_FIELD_NUMBER: _ClassVar[int]
    DEMONSTRATION_FIELD_NUMBER: _ClassVar[int]
    COMMENT_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TIME_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    API_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    API_KEY_NAME_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    policy: str
    tenant: str
    user_hash: str
    completion_id: str
    thumb: Thumb
    rating: Rating
    comparison: Comparison
    ranking: Ranking
    demonstration: Demonstration
    comment: Comment
    metric: Metric
    accepted_time: _timestamp_pb2.Timestamp
    metadata: _containers.ScalarMap[str, str]
    api_key_id: str
    api_key_name: str
    session_id: str
    traceparent: str
    def __init__(self, event_id: _Optional[str] = ..., policy: _Optional[str] = ..., tenant: _Optional[str] = ..., user_hash: _Optional[str] = ..., completion_id: _Optional[str] = ..., thumb: _Optional[_Union[Thumb, _Mapping]] = ..., rating: _Optional[_Union[Rating, _Mapping]] = ..., comparison: _Optional[_Union[Comparison, _Mapping]] = ..., ranking: _Optional[_Union[Ranking, _Mapping]] = ..., demonstration: _Optional[_Union[Demonstration, _Mapping]] = ..., comment: _Optional[_Union[Comment, _Mapping]] = ..., metric: _Optional[_Union[Metric, _Mapping]] = ..., accepted_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., metadata: _Optional[_Mapping[str, str]] = ..., api_key_id: _Optional[str] = ..., api_key_name: _Optional[str] = ..., session_id: _Optional[str] = ..., traceparent: _Optional[str] = ...) -> None: ...

class FeedbackRetracted(_message.Message):
    __slots__ = ("event_id", "policy", "tenant", "user_hash", "feedback_id", "kind", "retracted_time", "api_key_id")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    USER_HASH_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    RETRACTED_TIME_FIELD_NUMBER: _ClassVar[int]
    API_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    policy: str
    tenant: str
    user_hash: str
    feedback_id: str
    kind: str
    retracted_time: _timestamp_pb2.Timestamp
    api_key_id: str
    def __init__(self, event_id: _Optional[str] = ..., policy: _Optional[str] = ..., tenant: _Optional[str] = ..., user_hash: _Optional[str] = ..., feedback_id: _Optional[str] = ..., kind: _Optional[str] = ..., retracted_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., api_key_id: _Optional[str] = ...) -> None: ...

class SignalGiven(_message.Message):
    __slots__ = ("event_id", "policy", "tenant", "user_hash", "completion_id", "kind", "distance", "accepted_time", "metadata", "api_key_id", "traceparent")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    USER_HASH_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DISTANCE_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TIME_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    API_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    policy: str
    tenant: str
    user_hash: str
    completion_id: str
    kind: str
    distance: float
    accepted_time: _timestamp_pb2.Timestamp
    metadata: _containers.ScalarMap[str, str]
    api_key_id: str
    traceparent: str
    def __init__(self, event_id: _Optional[str] = ..., policy: _Optional[str] = ..., tenant: _Optional[str] = ..., user_hash: _Optional[str] = ..., completion_id: _Optional[str] = ..., kind: _Optional[str] = ..., distance: _Optional[float] = ..., accepted_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., metadata: _Optional[_Mapping[str, str]] = ..., api_key_id: _Optional[str] = ..., traceparent: _Optional[str] = ...) -> None: ...

class WeightsPublished(_message.Message):
    __slots__ = ("event_id", "weights", "published_time")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_TIME_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    weights: _generation_pb2.WeightsReference
    published_time: _timestamp_pb2.Timestamp
    def __init__(self, event_id: _Optional[str] = ..., weights: _Optional[_Union[_generation_pb2.WeightsReference, _Mapping]] = ..., published_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class PolicyActivated(_message.Message):
    __slots__ = ("event_id", "policy", "policy_version", "replica", "activated_time", "swap_seconds", "traceparent")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    ACTIVATED_TIME_FIELD_NUMBER: _ClassVar[int]
    SWAP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    policy: str
    policy_version: int
    replica: str
    activated_time: _timestamp_pb2.Timestamp
    swap_seconds: float
    traceparent: str
    def __init__(self, event_id: _Optional[str] = ..., policy: _Optional[str] = ..., policy_version: _Optional[int] = ..., replica: _Optional[str] = ..., activated_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., swap_seconds: _Optional[float] = ..., traceparent: _Optional[str] = ...) -> None: ...

class LearnerStepped(_message.Message):
    __slots__ = ("event_id", "policy", "step", "metrics", "stepped_time")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    STEPPED_TIME_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    policy: str
    step: int
    metrics: _containers.ScalarMap[str, float]
    stepped_time: _timestamp_pb2.Timestamp
    def __init__(self, event_id: _Optional[str] = ..., policy: _Optional[str] = ..., step: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., stepped_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
