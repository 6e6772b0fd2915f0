"""OpenAI's documents, with the members that tuneloop adds to them."""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

FinishReason = Literal["stop", "length", "tool_calls", "abort"]


class ErrorDetails(TypedDict):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    """The field at fault."""
    code: str
    """A stable word for programs."""


class Error(TypedDict):
    """The answer of every request that failed."""

    error: ErrorDetails


class CompletionTokensDetails(TypedDict):
    """What the completion tokens are."""

    reasoning_tokens: int


class Usage(TypedDict):
    """Tokens counted by the service."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: NotRequired[CompletionTokensDetails]
    """Only where the model thought."""


class PolicyVersionSpan(TypedDict):
    """The tokens of a completion, from `start` to before `end`, that one version sampled."""

    policy_version: int
    start: int
    end: int


class BestOf(TypedDict):
    """The best of several candidates, where the request asked for it."""

    n: int
    """Candidates that were sampled."""
    chosen: int
    """Which of them is the answer, from 0."""
    chosen_by: Literal["reward", "none"]
    """`none`: nothing could tell, so it is the first."""
    reason: str | None
    """Why nothing could tell; null otherwise."""
    scores: dict[str, float | None]
    """The reward of each by its completion id; null of one that was not scored."""
    reward_model_version: int | None
    """Null if none was scored."""


class Choice(TypedDict):
    """What the choices of all answers have in common."""

    index: int
    completion_id: str
    """What feedback on this choice names."""
    logprobs: dict[str, Any] | None
    policy_version_spans: NotRequired[list[PolicyVersionSpan]]
    """Only where more than one version sampled the tokens."""


class FunctionCall(TypedDict):
    """A function that the model calls; `arguments` is JSON."""

    name: NotRequired[str]
    """Absent in later deltas of a call."""
    arguments: str


class ToolCall(TypedDict):
    """A call of a function."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class AssistantMessage(TypedDict):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: NotRequired[list[ToolCall]]
    reasoning_content: NotRequired[str]
    """What the model thought before it answered; absent where it did not."""
    reasoning: NotRequired[str]
    """The same."""


class ChatChoice(Choice):
    """One answer to a conversation."""

    message: AssistantMessage
    finish_reason: FinishReason


class TextChoice(Choice):
    """One continuation of a prompt."""

    text: str
    finish_reason: FinishReason


class CompletionHead(TypedDict):
    """What all answers have in common."""

    id: str
    created: int
    """Unix seconds."""
    model: str
    policy_version: int
    """The version that sampled the last token."""
    best_of: NotRequired[BestOf]
    """Of a stream, in its last chunk with a choice."""


class ChatCompletion(CompletionHead):
    """`POST /v1/chat/completions`."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class Completion(CompletionHead):
    """`POST /v1/completions`."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: Usage


class ToolCallDelta(TypedDict):
    """What was added to a call; the first delta names the function."""

    index: int
    function: FunctionCall
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]


class Delta(TypedDict, total=False):
    """What was added to a message."""

    role: Literal["assistant"]
    content: str | None
    tool_calls: list[ToolCallDelta]
    reasoning_content: str
    """What was added to the thought."""
    reasoning: str
    """The same."""


class ChatChunkChoice(Choice):
    """A choice of a chunk."""

    delta: Delta
    finish_reason: FinishReason | None


class ChatCompletionChunk(CompletionHead):
    """One event of a streamed chat completion."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]
    """Where it was asked for: null in all chunks but the last."""


class OutputText(TypedDict):
    """Text of an answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    """Always empty."""


ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputMessage(TypedDict):
    """What the answer says."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: ItemStatus
    content: list[OutputText]


class OutputCall(TypedDict):
    """A call of a function."""

    id: str
    type: Literal["function_call"]
    status: ItemStatus
    call_id: str
    """What its `function_call_output` names."""
    name: str
    arguments: str


class ReasoningText(TypedDict):
    """Text of a thought."""

    type: Literal["reasoning_text"]
    text: str


class SummaryText(TypedDict):
    """Text of a thought, where a summary was asked for."""

    type: Literal["summary_text"]
    text: str


class OutputReasoning(TypedDict):
    """What the model thought before it answered: as `content`, or as its own `summary`."""

    id: str
    type: Literal["reasoning"]
    status: ItemStatus
    content: list[ReasoningText]
    summary: list[SummaryText]


OutputItem = OutputReasoning | OutputMessage | OutputCall


class InputTokensDetails(TypedDict):
    """Not counted apart."""

    cached_tokens: Literal[0]
    cache_write_tokens: Literal[0]


class OutputTokensDetails(TypedDict):
    """What the output tokens are."""

    reasoning_tokens: int


class ResponseUsage(TypedDict):
    """Tokens counted by the service."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(TypedDict):
    """Why an answer is incomplete."""

    reason: Literal["max_output_tokens"]


class ResponseFailure(TypedDict):
    """Why a streamed answer failed."""

    code: Literal["rate_limit_exceeded", "server_error"]
    message: str


class OpenAIResponse(TypedDict):
    """`POST /v1/responses`, and what the events of its stream tell of it."""

    id: str
    """What feedback on this answer names, and the next turn's `previous_response_id`."""
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    background: Literal[False]
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, Any]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    store: bool
    """Whether a next turn may name this response."""
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    """Null until the answer has ended."""
    user: str | None
    reasoning: dict[str, Any]
    """`effort` and `summary` as they were asked for."""
    policy_version: int | None
    """The version that sampled the last token; null in a stream that failed before the first."""
    policy_version_spans: NotRequired[list[PolicyVersionSpan]]
    """Only where more than one version sampled the tokens."""
    best_of: NotRequired[BestOf]


class Model(TypedDict):
    """A policy in OpenAI's form, with what clients of vLLM read."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    """The base model."""
    max_model_len: int
    policy_version: int


class ModelList(TypedDict):
    """`GET /v1/models`."""

    object: Literal["list"]
    data: list[Model]
