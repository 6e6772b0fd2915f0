"""`tools` and `tool_choice` of a request body: which functions the model may call."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from tuneloop.rollouts import Tool, ToolUse
from tuneloop.text.messages import Text
from tuneloop.text.unicode import json_text

CHOICES = "must be 'none', 'auto', 'required' or {'type': 'function', 'function': {'name': …}}"


class Function(BaseModel):
    """A function that may be called."""

    model_config = ConfigDict(hide_input_in_errors=True, use_attribute_docstrings=True)

    name: Text
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of its arguments."""
    strict: bool | None = None

    @field_validator("parameters")
    @classmethod
    def check_json(cls, parameters: dict[str, Any] | None) -> dict[str, Any] | None:
        """Refuse a schema that cannot be sent."""
        json_text(parameters)
        return parameters


class FunctionTool(BaseModel):
    """A tool; functions are the only kind there is."""

    type: Literal["function"]
    function: Function


class FunctionName(BaseModel):
    """The name of a function."""

    name: str


class NamedChoice(BaseModel):
    """The choice of one function."""

    type: Literal["function"]
    function: FunctionName


ToolChoice = Literal["none", "auto", "required"] | NamedChoice
"""What `tool_choice` may be, for the schema."""


def check_tool_choice(value: object) -> object:
    """Return `value`; raises `ValueError` if it is not a supported choice."""
    if value in (None, "none", "auto", "required") or chosen_function(value):
        return value
    raise ValueError(CHOICES)


def chosen_function(value: object) -> str:
    """Return the function that a choice names, or an empty string."""
    if not isinstance(value, dict) or value.get("type") != "function":
        return ""
    function = value.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


def tool_use(
    tools: list[FunctionTool] | None, choice: object, parallel: bool | None
) -> ToolUse | None:
    """Return the tools that may be called, or None."""
    if not tools or choice == "none":
        return None
    return ToolUse(
        tools=tuple(
            Tool(
                name=f.name,
                description=f.description or "",
                parameters="" if f.parameters is None else json_text(f.parameters),
                strict=bool(f.strict),
            )
            for f in (tool.function for tool in tools)
        ),
        required=choice == "required",
        name=chosen_function(choice),
        single=parallel is False,
    )
