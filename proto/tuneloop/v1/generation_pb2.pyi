import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from tuneloop.v1 import rollout_pb2 as _rollout_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TokenPrompt(_message.Message):
    __slots__ = ("token_ids",)
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Tool(_message.Message):
    __slots__ = ("name", "description", "parameters", "strict")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    STRICT_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    parameters: str
    strict: bool
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., parameters: _Optional[str] = ..., strict: bool = ...) -> None: ...

class ToolUse(_message.Message):
    __slots__ = ("tools", "required", "name", "single")
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SINGLE_FIELD_NUMBER: _ClassVar[int]
    tools: _containers.RepeatedCompositeFieldContainer[Tool]
    required: bool
    name: str
    single: bool
    def __init__(self, tools: _Optional[_Iterable[_Union[Tool, _Mapping]]] = ..., required: bool = ..., name: _Optional[str] = ..., single: bool = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("completion_id", "policy", "chat", "text", "tokens", "sampling", "tenant", "user_hash", "policy_version", "publish_rollout", "clip_max_tokens", "source", "columns", "tool_use", "api_key_id", "route_by", "session_id", "tags", "template_options", "thinking_budget", "are_candidates", "redacted")
    class ColumnsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class TagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class TemplateOptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    COMPLETION_ID_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    USER_HASH_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    CLIP_MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    TOOL_USE_FIELD_NUMBER: _ClassVar[int]
    API_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    ROUTE_BY_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    THINKING_BUDGET_FIELD_NUMBER: _ClassVar[int]
    ARE_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    REDACTED_FIELD_NUMBER: _ClassVar[int]
    completion_id: str
    policy: str
    chat: _rollout_pb2.ChatPrompt
    text: str
    tokens: TokenPrompt
    sampling: _rollout_pb2.SamplingParameters
    tenant: str
    user_hash: str
    policy_version: int
    publish_rollout: bool
    clip_max_tokens: bool
    source: _rollout_pb2.RolloutSource
    columns: _containers.ScalarMap[str, str]
    tool_use: ToolUse
    api_key_id: str
    route_by: str
    session_id: str
    tags: _containers.ScalarMap[str, str]
    template_options: _containers.ScalarMap[str, str]
    thinking_budget: int
    are_candidates: bool
    redacted: bool
    def __init__(self, completion_id: _Optional[str] = ..., policy: _Optional[str] = ..., chat: _Optional[_Union[_rollout_pb2.ChatPrompt, _Mapping]] = ..., text: _Optional[str] = ..., tokens: _Optional[_Union[TokenPrompt, _Mapping]] = ..., sampling: _Optional[_Union[_rollout_pb2.SamplingParameters, _Mapping]] = ..., tenant: _Optional[str] = ..., user_hash: _Optional[str] = ..., policy_version: _Optional[int] = ..., publish_rollout: bool = ..., clip_max_tokens: bool = ..., source: _Optional[_Union[_rollout_pb2.RolloutSource, str]] = ..., columns: _Optional[_Mapping[str, str]] = ..., tool_use: _Optional[_Union[ToolUse, _Mapping]] = ..., api_key_id: _Optional[str] = ..., route_by: _Optional[str] = ..., session_id: _Optional[str] = ..., tags: _Optional[_Mapping[str, str]] = ..., template_options: _Optional[_Mapping[str, str]] = ..., thinking_budget: _Optional[int] = ..., are_candidates: bool = ..., redacted: bool = ...) -> None: ...

class TokenLogprob(_message.Message):
    __slots__ = ("token_id", "token", "logprob", "token_bytes")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOKEN_BYTES_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    token: str
    logprob: float
    token_bytes: bytes
    def __init__(self, token_id: _Optional[int] = ..., token: _Optional[str] = ..., logprob: _Optional[float] = ..., token_bytes: _Optional[bytes] = ...) -> None: ...

class PositionLogprobs(_message.Message):
    __slots__ = ("chosen", "top")
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    chosen: TokenLogprob
    top: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    def __init__(self, chosen: _Optional[_Union[TokenLogprob, _Mapping]] = ..., top: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ...) -> None: ...

class ToolCallDelta(_message.Message):
    __slots__ = ("index", "call_id", "name", "arguments")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    index: int
    call_id: str
    name: str
    arguments: str
    def __init__(self, index: _Optional[int] = ..., call_id: _Optional[str] = ..., name: _Optional[str] = ..., arguments: _Optional[str] = ...) -> None: ...

class GenerateDelta(_message.Message):
    __slots__ = ("index", "text", "token_ids", "logprobs", "policy_version", "tool_calls", "reasoning")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    REASONING_FIELD_NUMBER: _ClassVar[int]
    index: int
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[PositionLogprobs]
    policy_version: int
    tool_calls: _containers.RepeatedCompositeFieldContainer[ToolCallDelta]
    reasoning: str
    def __init__(self, index: _Optional[int] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[PositionLogprobs, _Mapping]]] = ..., policy_version: _Optional[int] = ..., tool_calls: _Optional[_Iterable[_Union[ToolCallDelta, _Mapping]]] = ..., reasoning: _Optional[str] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "completion_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    completion_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ...) -> None: ...

class GenerateFinal(_message.Message):
    __slots__ = ("index", "completion_id", "token_ids", "generation_logprobs", "finish_reason", "policy_version_spans", "usage", "policy_version", "stop_sequence", "reasoning_tokens", "candidate_text")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_SPANS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    STOP_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REASONING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_TEXT_FIELD_NUMBER: _ClassVar[int]
    index: int
    completion_id: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    generation_logprobs: _containers.RepeatedScalarFieldContainer[float]
    finish_reason: _rollout_pb2.FinishReason
    policy_version_spans: _containers.RepeatedCompositeFieldContainer[_rollout_pb2.PolicyVersionSpan]
    usage: Usage
    policy_version: int
    stop_sequence: str
    reasoning_tokens: int
    candidate_text: str
    def __init__(self, index: _Optional[int] = ..., completion_id: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., generation_logprobs: _Optional[_Iterable[float]] = ..., finish_reason: _Optional[_Union[_rollout_pb2.FinishReason, str]] = ..., policy_version_spans: _Optional[_Iterable[_Union[_rollout_pb2.PolicyVersionSpan, _Mapping]]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., policy_version: _Optional[int] = ..., stop_sequence: _Optional[str] = ..., reasoning_tokens: _Optional[int] = ..., candidate_text: _Optional[str] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("delta", "final")
    DELTA_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    delta: GenerateDelta
    final: GenerateFinal
    def __init__(self, delta: _Optional[_Union[GenerateDelta, _Mapping]] = ..., final: _Optional[_Union[GenerateFinal, _Mapping]] = ...) -> None: ...

class ChooseCandidateRequest(_message.Message):
    __slots__ = ("policy", "group_id", "completion_id")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_ID_FIELD_NUMBER: _ClassVar[int]
    policy: str
    group_id: str
    completion_id: str
    def __init__(self, policy: _Optional[str] = ..., group_id: _Optional[str] = ..., completion_id: _Optional[str] = ...) -> None: ...

class ChooseCandidateResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CountTokensRequest(_message.Message):
    __slots__ = ("policy", "chat", "tool_use", "api_key_id", "template_options")
    class TemplateOptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    POLICY_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    TOOL_USE_FIELD_NUMBER: _ClassVar[int]
    API_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    policy: str
    chat: _rollout_pb2.ChatPrompt
    tool_use: ToolUse
    api_key_id: str
    template_options: _containers.ScalarMap[str, str]
    def __init__(self, policy: _Optional[str] = ..., chat: _Optional[_Union[_rollout_pb2.ChatPrompt, _Mapping]] = ..., tool_use: _Optional[_Union[ToolUse, _Mapping]] = ..., api_key_id: _Optional[str] = ..., template_options: _Optional[_Mapping[str, str]] = ...) -> None: ...

class CountTokensResponse(_message.Message):
    __slots__ = ("prompt_tokens",)
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ...) -> None: ...

class WeightsReference(_message.Message):
    __slots__ = ("policy", "policy_version", "uri", "manifest_sha256", "traceparent")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    policy: str
    policy_version: int
    uri: str
    manifest_sha256: str
    traceparent: str
    def __init__(self, policy: _Optional[str] = ..., policy_version: _Optional[int] = ..., uri: _Optional[str] = ..., manifest_sha256: _Optional[str] = ..., traceparent: _Optional[str] = ...) -> None: ...

class CanaryRoute(_message.Message):
    __slots__ = ("weights", "share", "salt")
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    weights: WeightsReference
    share: float
    salt: str
    def __init__(self, weights: _Optional[_Union[WeightsReference, _Mapping]] = ..., share: _Optional[float] = ..., salt: _Optional[str] = ...) -> None: ...

class Canary(_message.Message):
    __slots__ = ("policy_version", "share", "loaded")
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    policy_version: int
    share: float
    loaded: bool
    def __init__(self, policy_version: _Optional[int] = ..., share: _Optional[float] = ..., loaded: bool = ...) -> None: ...

class Outcomes(_message.Message):
    __slots__ = ("policy_version", "answered", "failed")
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    policy_version: int
    answered: int
    failed: int
    def __init__(self, policy_version: _Optional[int] = ..., answered: _Optional[int] = ..., failed: _Optional[int] = ...) -> None: ...

class LoadWeightsRequest(_message.Message):
    __slots__ = ("weights", "activate")
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATE_FIELD_NUMBER: _ClassVar[int]
    weights: WeightsReference
    activate: bool
    def __init__(self, weights: _Optional[_Union[WeightsReference, _Mapping]] = ..., activate: bool = ...) -> None: ...

class LoadWeightsResponse(_message.Message):
    __slots__ = ("policy_version", "swap_seconds", "pause_seconds")
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    SWAP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PAUSE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    policy_version: int
    swap_seconds: float
    pause_seconds: float
    def __init__(self, policy_version: _Optional[int] = ..., swap_seconds: _Optional[float] = ..., pause_seconds: _Optional[float] = ...) -> None: ...

class LoadedVersion(_message.Message):
    __slots__ = ("policy_version", "leases", "loaded_time")
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    LOADED_TIME_FIELD_NUMBER: _ClassVar[int]
    policy_version: int
    leases: int
    loaded_time: _timestamp_pb2.Timestamp
    def __init__(self, policy_version: _Optional[int] = ..., leases: _Optional[int] = ..., loaded_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Policy(_message.Message):
    __slots__ = ("name", "policy_version", "base_model", "weights_kind", "max_model_len", "loaded_versions", "activated_time", "engine", "outcomes", "counted_by", "canary")
    NAME_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_KIND_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    LOADED_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATED_TIME_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    COUNTED_BY_FIELD_NUMBER: _ClassVar[int]
    CANARY_FIELD_NUMBER: _ClassVar[int]
    name: str
    policy_version: int
    base_model: str
    weights_kind: str
    max_model_len: int
    loaded_versions: _containers.RepeatedCompositeFieldContainer[LoadedVersion]
    activated_time: _timestamp_pb2.Timestamp
    engine: str
    outcomes: _containers.RepeatedCompositeFieldContainer[Outcomes]
    counted_by: str
    canary: Canary
    def __init__(self, name: _Optional[str] = ..., policy_version: _Optional[int] = ..., base_model: _Optional[str] = ..., weights_kind: _Optional[str] = ..., max_model_len: _Optional[int] = ..., loaded_versions: _Optional[_Iterable[_Union[LoadedVersion, _Mapping]]] = ..., activated_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., engine: _Optional[str] = ..., outcomes: _Optional[_Iterable[_Union[Outcomes, _Mapping]]] = ..., counted_by: _Optional[str] = ..., canary: _Optional[_Union[Canary, _Mapping]] = ...) -> None: ...

class GetPolicyRequest(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: str
    def __init__(self, policy: _Optional[str] = ...) -> None: ...

class GetPolicyResponse(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: Policy
    def __init__(self, policy: _Optional[_Union[Policy, _Mapping]] = ...) -> None: ...

class ListPoliciesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPoliciesResponse(_message.Message):
    __slots__ = ("policies",)
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    policies: _containers.RepeatedCompositeFieldContainer[Policy]
    def __init__(self, policies: _Optional[_Iterable[_Union[Policy, _Mapping]]] = ...) -> None: ...
