"""Request bodies of `/v1/messages`, and the chat that each of them asks for.

Unsupported fields that would change the answer are refused by name; unknown fields are ignored, as
clients keep adding new ones.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from tuneloop.gateway.anthropic.turns import JoinedText, MessageTurn, chat_messages
from tuneloop.gateway.openai.schemas import (
    INT32_MAX,
    INT64_MAX,
    MAX_MESSAGES,
    MAX_STOPS,
    MAX_TOOLS,
    StopText,
    as_strings,
    refuse_fields,
)
from tuneloop.gateway.openai.sessions import SessionId
from tuneloop.text.messages import Text
from tuneloop.text.unicode import json_text

unsupported: Mapping[str, tuple[object, ...]] = {
    "container": (),
    "mcp_servers": ([],),
    "inference_geo": (),
    "compaction": (),
    "thread": (),
    "output_format": (),
}
"""Unsupported fields, with the values that request nothing."""


class ClientTool(BaseModel):
    """A tool that the caller runs."""

    model_config = ConfigDict(hide_input_in_errors=True, use_attribute_docstrings=True)

    name: Text
    description: Text | None = None
    input_schema: dict[str, Any]
    """JSON schema of its input."""
    strict: bool | None = None
    type: Literal["custom"] | None = None

    @model_validator(mode="before")
    @classmethod
    def check_type(cls, tool: object) -> object:
        """Refuse tools that Anthropic runs, which have a type and no schema."""
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind not in (None, "custom"):
            raise ValueError(f"tools of type {str(kind)[:40]!r} are not supported")
        return tool

    @field_validator("input_schema")
    @classmethod
    def check_json(cls, schema: dict[str, Any]) -> dict[str, Any]:
        """Refuse a schema that cannot be sent."""
        json_text(schema)
        return schema

    def function(self) -> dict[str, Any]:
        """Return the tool in OpenAI's form."""
        function = {"name": self.name, "description": self.description, "strict": self.strict}
        return {"type": "function", "function": {**function, "parameters": self.input_schema}}


class ToolSelection(BaseModel):
    """Whether tools must be called, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: Text | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def check_name(self) -> Self:
        """Refuse the choice of a tool that does not name it."""
        if self.type == "tool" and self.name is None:
            raise ValueError("the type 'tool' needs name")
        return self

    def choice(self) -> str | dict[str, Any]:
        """Return the choice in OpenAI's form."""
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name}}
        return "required" if self.type == "any" else self.type


class OutputSchema(BaseModel):
    """The JSON schema that the answer must satisfy."""

    model_config = ConfigDict(hide_input_in_errors=True)

    type: Literal["json_schema"]
    definition: dict[str, Any] = Field(alias="schema")

    @field_validator("definition")
    @classmethod
    def check_json(cls, definition: dict[str, Any]) -> dict[str, Any]:
        """Refuse a schema that cannot be sent."""
        json_text(definition)
        return definition


class OutputConfig(BaseModel):
    """The form of the answer, and how much to think about it."""

    format: OutputSchema | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class ThinkingConfig(BaseModel):
    """Whether the model thinks before it answers, and whether that is shown."""

    model_config = ConfigDict(hide_input_in_errors=True, use_attribute_docstrings=True)

    type: Literal["enabled", "adaptive", "between_tools", "disabled"]
    budget_tokens: int | None = Field(None, ge=1, le=INT32_MAX)
    """The most tokens of the thought."""
    display: Literal["summarized", "omitted"] | None = None

    @model_validator(mode="after")
    def check_budget(self) -> Self:
        """Refuse the type that has a budget without one."""
        if self.type == "enabled" and self.budget_tokens is None:
            raise ValueError("the type 'enabled' needs budget_tokens")
        return self


class RequestMetadata(BaseModel):
    """`user_id`, and what a chat's `metadata` may have."""

    model_config = ConfigDict(extra="allow", hide_input_in_errors=True)

    user_id: Text | None = Field(None, max_length=512)


class TokenCountRequest(BaseModel):
    """`POST /v1/messages/count_tokens`."""

    model_config = ConfigDict(
        extra="ignore",
        allow_inf_nan=False,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    model: Text
    messages: Annotated[list[MessageTurn], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: JoinedText = ""
    tools: list[ClientTool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: ToolSelection | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None

    @property
    def shows_thoughts(self) -> bool:
        """Whether answers have blocks of thoughts."""
        return self.thinking is not None and self.thinking.type != "disabled"

    @property
    def reasoning_effort(self) -> str | None:
        """How much to think, as a chat says it; None: as the model does by itself."""
        effort = self.output_config.effort if self.output_config else None
        if self.thinking is None or self.thinking.type != "disabled":
            return effort or ("medium" if self.shows_thoughts else None)
        return "none"

    @field_validator("tool_choice")
    @classmethod
    def check_has_tools(cls, value: ToolSelection | None, info: Any) -> ToolSelection | None:
        """Refuse a choice that forces a call without tools."""
        forced = value is not None and value.type in ("any", "tool")
        if forced and "tools" in info.data and not info.data["tools"]:
            raise ValueError("needs tools")
        return value

    def chat_fields(self) -> dict[str, Any]:
        """Return the fields of the chat request that this stands for."""
        choice = self.tool_choice
        return {
            "model": self.model,
            "messages": list(chat_messages(self.system, self.messages)),
            "tools": [tool.function() for tool in self.tools] if self.tools else None,
            "tool_choice": choice and choice.choice(),
            "parallel_tool_calls": not (choice and choice.disable_parallel_tool_use),
            "reasoning_effort": self.reasoning_effort,
        }


class MessagesRequest(TokenCountRequest):
    """`POST /v1/messages`."""

    max_tokens: int = Field(ge=1, le=INT32_MAX)
    """Fewer where fewer fit after the prompt."""
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=INT32_MAX)
    stop_sequences: Annotated[
        tuple[Text, ...],
        BeforeValidator(
            as_strings,
            json_schema_input_type=Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None,
        ),
    ] = ()
    stream: bool | None = None
    metadata: RequestMetadata | None = None
    session_id: SessionId | None = None
    """Not Anthropic's: the conversation that this is a turn of, by your own id of it."""
    policy_version: int | None = Field(None, ge=0, le=INT64_MAX)
    """Not Anthropic's: answer with this version; it must be loaded."""
    container: Any = None
    mcp_servers: Any = None
    inference_geo: Any = None
    compaction: Any = None
    thread: Any = None
    output_format: Any = None

    refuse = refuse_fields(unsupported)

    @field_validator("messages")
    @classmethod
    def check_last_turn(cls, turns: list[MessageTurn]) -> list[MessageTurn]:
        """Refuse to continue a turn of the assistant."""
        if turns[-1].role == "assistant":
            raise ValueError("the last turn is the assistant's; prefill is not supported")
        return turns

    def chat_fields(self) -> dict[str, Any]:
        """Return the fields of the chat request that this stands for."""
        metadata = self.metadata
        form = self.output_config.format if self.output_config else None
        schema = {"name": "answer", "schema": form.definition} if form else None
        return super().chat_fields() | {
            "max_tokens": self.max_tokens,
            "thinking_token_budget": self.thinking.budget_tokens if self.thinking else None,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "stop": self.stop_sequences,
            "stream": self.stream,
            "user": metadata.user_id if metadata else None,
            "metadata": metadata.model_extra if metadata else None,
            "response_format": schema and {"type": "json_schema", "json_schema": schema},
            "session_id": self.session_id,
            "policy_version": self.policy_version,
        }
