"""Turns of a conversation as JSON: what the API takes, and what training data may hold."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tuneloop.rollouts import ChatMessage, ToolCall
from tuneloop.text.unicode import json_text, unicode

Text = Annotated[str, AfterValidator(unicode)]
"""A string that UTF-8 and protobuf can hold."""


def as_json(arguments: object) -> object:
    """Return arguments as JSON text; training data often has them as an object."""
    return json_text(arguments) if isinstance(arguments, dict) else arguments


class CalledFunction(BaseModel):
    """The function of a call."""

    name: Text
    arguments: Annotated[
        Text, BeforeValidator(as_json, json_schema_input_type=str | dict[str, Any])
    ] = ""


class MessageToolCall(BaseModel):
    """A call that the assistant made in an earlier turn."""

    id: Text
    type: Literal["function"] = "function"
    function: CalledFunction


class TextPart(BaseModel):
    """A part of a turn's content; text is the only kind there is."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn; names and other extras are ignored."""

    model_config = ConfigDict(hide_input_in_errors=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: Text | None = None
    reasoning_content: Annotated[
        Text | None, Field(validation_alias=AliasChoices("reasoning_content", "reasoning"))
    ] = None
    """What the assistant thought before this turn."""
    content: Text = Field(None, validate_default=True)

    @field_validator("content", mode="before", json_schema_input_type=str | list[TextPart] | None)
    @classmethod
    def as_text(cls, content: object, info: ValidationInfo) -> object:
        """Return a string, or joined text parts; calls and thoughts may have none beside them."""
        if isinstance(content, str):
            return content
        if content is None and (info.data.get("tool_calls") or info.data.get("reasoning_content")):
            return ""
        if not isinstance(content, list):
            raise ValueError("must be a string or a list of text parts")
        return "".join(map(text_of, content))

    @model_validator(mode="after")
    def check_role(self) -> Self:
        """Check that only the assistant has calls, and that a result names its call."""
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls belong to the role 'assistant'")
        if self.role == "tool" and not self.tool_call_id:
            raise ValueError("the role 'tool' needs tool_call_id")
        return self


def text_of(part: object) -> str:
    """Return the text of a content part; raises `ValueError` for another kind."""
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("text") if isinstance(part, dict) else None
    if kind != "text" or not isinstance(text, str):
        raise ValueError(f"only text parts are supported, not {kind!r}")
    return text


def conversation(messages: Sequence[Message]) -> tuple[ChatMessage, ...]:
    """Return the turns as domain types."""
    return tuple(
        ChatMessage(
            # OpenAI renamed "system" to "developer"; chat templates know the old name.
            role="system" if m.role == "developer" else m.role,
            content=m.content,
            tool_calls=tuple(
                ToolCall(call_id=c.id, name=c.function.name, arguments=c.function.arguments)
                for c in m.tool_calls or ()
            ),
            tool_call_id=m.tool_call_id or "",
            # A thought is the assistant's; clients send empty ones with other turns.
            reasoning=(m.reasoning_content or "") if m.role == "assistant" else "",
        )
        for m in messages
    )


def read_message(turn: Any) -> ChatMessage:
    """Return one turn of JSON as a domain type; raises `ValueError` that names the field."""
    try:
        [message] = conversation([Message.model_validate(turn)])
    except ValidationError as error:
        [first, *_] = error.errors(include_url=False)
        place = ".".join(map(str, first["loc"]))
        problem = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{place}: {problem}" if place else problem) from None
    return message
