"""Request bodies of `/v1/responses`, and the chat that each of them asks for.

Unsupported fields that would change the answer are refused by name; unknown fields are ignored, as
clients keep adding new ones.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from tuneloop.gateway.openai.reasoning import ReasoningEffort
from tuneloop.gateway.openai.schemas import (
    INT32_MAX,
    INT64_MAX,
    MAX_MESSAGES,
    MAX_TOOLS,
    refuse_fields,
)
from tuneloop.gateway.openai.sessions import SessionId
from tuneloop.gateway.openai.tools import Function
from tuneloop.gateway.responses.items import InputItem, as_items, chat_messages
from tuneloop.text.messages import Message, Text
from tuneloop.text.unicode import json_text

CHOICES = "must be 'none', 'auto', 'required' or {'type': 'function', 'name': …}"
LOGPROBS = "message.output_text.logprobs"

unsupported: Mapping[str, tuple[object, ...]] = {
    "background": (False,),
    "conversation": (),
    "prompt": (),
    "truncation": ("disabled",),
    "top_logprobs": (0,),
    "moderation": (),
}
"""Unsupported fields, with the values that request nothing."""


class DeclaredFunction(Function):
    """A function that the caller runs."""

    type: Literal["function"]

    @model_validator(mode="before")
    @classmethod
    def check_type(cls, tool: object) -> object:
        """Refuse tools that OpenAI runs, and those whose calls are not JSON."""
        kind = tool.get("type") if isinstance(tool, dict) else "function"
        if kind != "function":
            raise ValueError(f"tools of type {str(kind)[:40]!r} are not supported, functions are")
        return tool

    def chat_tool(self) -> dict[str, Any]:
        """Return the tool in the form of a chat."""
        return {"type": "function", "function": self.model_dump(exclude={"type"})}


class FunctionChoice(BaseModel):
    """The choice of one function."""

    type: Literal["function"]
    name: str


def check_choice(value: object) -> object:
    """Return `value`; raises `ValueError` if it is not a supported choice."""
    if value in (None, "none", "auto", "required"):
        return value
    is_function = isinstance(value, dict) and value.get("type") == "function"
    if is_function and isinstance(value.get("name"), str):  # type: ignore[attr-defined]
        return value
    raise ValueError(CHOICES)


class TextFormat(BaseModel):
    """Plain text, any JSON object, or JSON of a schema, which holds with or without `strict`."""

    model_config = ConfigDict(hide_input_in_errors=True)

    type: Literal["text", "json_object", "json_schema"]
    name: Text | None = None
    description: Text | None = None
    definition: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def check_schema(self) -> Self:
        """Refuse the type `json_schema` without a schema, and one that cannot be sent."""
        if self.type == "json_schema" and None in (self.name, self.definition):
            raise ValueError("the type 'json_schema' needs name and schema")
        json_text(self.definition)
        return self

    def response_format(self) -> dict[str, Any]:
        """Return the form of the answer as a chat has it."""
        schema = {"name": self.name, "schema": self.definition}
        return {"type": self.type, "json_schema": schema if self.definition is not None else None}


class TextConfig(BaseModel):
    """The form of the answer."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningConfig(BaseModel):
    """How much to think, and whether the thought comes as a summary."""

    effort: ReasoningEffort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class ResponsesRequest(BaseModel):
    """`POST /v1/responses`."""

    model_config = ConfigDict(
        extra="ignore",
        allow_inf_nan=False,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    model: Text
    input: Annotated[
        list[InputItem],
        BeforeValidator(as_items, json_schema_input_type=str | list[InputItem]),
        Field(min_length=1, max_length=MAX_MESSAGES),
    ]
    instructions: Text | None = None
    """Of the system, before everything else; a next turn does not inherit them."""
    max_output_tokens: int | None = Field(None, ge=1, le=INT32_MAX)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=INT32_MAX)
    """Not OpenAI's; -1 and 0 keep all tokens."""
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    tools: list[DeclaredFunction] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Annotated[
        Any,
        BeforeValidator(
            check_choice,
            json_schema_input_type=Literal["none", "auto", "required"] | FunctionChoice | None,
        ),
    ] = None
    parallel_tool_calls: bool | None = None
    previous_response_id: Text | None = None
    """Go on from this response, if this gateway still knows it."""
    store: bool | None = None
    """False: no next turn will name this response."""
    stream: bool | None = None
    include: list[str] | None = None
    user: Text | None = Field(None, max_length=512)
    safety_identifier: Text | None = Field(None, max_length=512)
    """OpenAI's newer name of `user`, which wins over it."""
    metadata: dict[str, Any] | None = None
    """As a chat's."""
    session_id: SessionId | None = None
    """Not OpenAI's: the conversation that this is a turn of, by your own id of it."""
    policy_version: int | None = Field(None, ge=0, le=INT64_MAX)
    """Not OpenAI's: answer with this version; it must be loaded."""
    background: Any = None
    conversation: Any = None
    prompt: Any = None
    truncation: Any = None
    top_logprobs: Any = None
    moderation: Any = None

    refuse = refuse_fields(unsupported)

    @field_validator("include")
    @classmethod
    def check_include(cls, include: list[str] | None) -> list[str] | None:
        """Refuse log-probs; whatever else may be included, there is none of."""
        if LOGPROBS in (include or ()):
            raise ValueError(f"{LOGPROBS!r} is not supported")
        return include

    @field_validator("metadata")
    @classmethod
    def check_metadata(cls, metadata: dict[str, Any] | None) -> dict[str, Any] | None:
        """Refuse what cannot be sent back."""
        json_text(metadata)
        return metadata

    @field_validator("tool_choice")
    @classmethod
    def check_has_tools(cls, value: object, info: Any) -> object:
        """Refuse a choice that forces a call without tools."""
        if value not in (None, "none", "auto") and "tools" in info.data and not info.data["tools"]:
            raise ValueError("needs tools")
        return value

    @property
    def may_be_continued(self) -> bool:
        """Whether a next turn may name the response."""
        return self.store is not False

    def chat_fields(self, before: Iterable[Message]) -> dict[str, Any]:
        """Return the fields of the chat request that this stands for, after messages `before`."""
        choice, form = self.tool_choice, self.text.format if self.text else None
        if isinstance(choice, dict):
            choice = {"type": "function", "function": {"name": choice["name"]}}
        system = [Message(role="system", content=self.instructions)] if self.instructions else []
        return {
            "model": self.model,
            "messages": [*system, *before, *chat_messages(self.input)],
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "reasoning_effort": self.reasoning.effort if self.reasoning else None,
            "response_format": form and form.response_format(),
            "tools": [tool.chat_tool() for tool in self.tools] if self.tools else None,
            "tool_choice": choice,
            "parallel_tool_calls": self.parallel_tool_calls,
            "stream": self.stream,
            "user": self.user,
            "safety_identifier": self.safety_identifier,
            "metadata": self.metadata,
            "session_id": self.session_id,
            "policy_version": self.policy_version,
        }
