"""Anthropic's documents, with the members that tuneloop adds to them."""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from tuneloop.api.openai import BestOf, PolicyVersionSpan

StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]


class TextBlock(TypedDict):
    """Text of the answer."""

    type: Literal["text"]
    text: str


class ThinkingBlock(TypedDict):
    """What the model thought before it answered."""

    type: Literal["thinking"]
    thinking: str
    """Empty where its display is omitted."""
    signature: str
    """The answer's id: clients expect a value, and nothing reads it."""


class ToolUseBlock(TypedDict):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    """`{"INVALID_JSON": …}` with the text that the model wrote, where that is no JSON object."""


class OutputTokensDetails(TypedDict):
    """What the output tokens are."""

    thinking_tokens: int


class MessageUsage(TypedDict):
    """Tokens counted by the service."""

    input_tokens: int
    output_tokens: int
    output_tokens_details: NotRequired[OutputTokensDetails]
    """Only where the model thought."""


ContentBlock = ThinkingBlock | TextBlock | ToolUseBlock


class AnthropicMessage(TypedDict):
    """`POST /v1/messages`."""

    id: str
    """What feedback on this answer names."""
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ContentBlock]
    stop_reason: StopReason
    stop_sequence: str | None
    """Which of `stop_sequences` ended the answer."""
    usage: MessageUsage
    policy_version: int
    """The version that sampled the last token."""
    policy_version_spans: NotRequired[list[PolicyVersionSpan]]
    """Only where more than one version sampled the tokens."""
    best_of: NotRequired[BestOf]


class TokenCount(TypedDict):
    """`POST /v1/messages/count_tokens`."""

    input_tokens: int


class AnthropicErrorDetails(TypedDict):
    """What went wrong."""

    type: str
    message: str


class AnthropicError(TypedDict):
    """The answer of every request under `/v1/messages` that failed."""

    type: Literal["error"]
    error: AnthropicErrorDetails
    request_id: str
    """Also the header `request-id`; the gateway's log names it where the service was at fault."""
