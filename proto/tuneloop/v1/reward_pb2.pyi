from tuneloop.v1 import rollout_pb2 as _rollout_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ScoreRolloutsRequest(_message.Message):
    __slots__ = ("chat", "text", "completions")
    CHAT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    COMPLETIONS_FIELD_NUMBER: _ClassVar[int]
    chat: _rollout_pb2.ChatPrompt
    text: str
    completions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, chat: _Optional[_Union[_rollout_pb2.ChatPrompt, _Mapping]] = ..., text: _Optional[str] = ..., completions: _Optional[_Iterable[str]] = ...) -> None: ...

class ScorerResult(_message.Message):
    __slots__ = ("scorer", "score", "weight", "informative")
    SCORER_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    INFORMATIVE_FIELD_NUMBER: _ClassVar[int]
    scorer: str
    score: float
    weight: float
    informative: bool
    def __init__(self, scorer: _Optional[str] = ..., score: _Optional[float] = ..., weight: _Optional[float] = ..., informative: bool = ...) -> None: ...

class Score(_message.Message):
    __slots__ = ("reward", "results")
    REWARD_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    reward: float
    results: _containers.RepeatedCompositeFieldContainer[ScorerResult]
    def __init__(self, reward: _Optional[float] = ..., results: _Optional[_Iterable[_Union[ScorerResult, _Mapping]]] = ...) -> None: ...

class ScoreRolloutsResponse(_message.Message):
    __slots__ = ("scores", "reward_model_version")
    SCORES_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    scores: _containers.RepeatedCompositeFieldContainer[Score]
    reward_model_version: int
    def __init__(self, scores: _Optional[_Iterable[_Union[Score, _Mapping]]] = ..., reward_model_version: _Optional[int] = ...) -> None: ...
