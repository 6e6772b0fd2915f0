"""`tools` and `tool_choice` of a request body: which functions the model may call."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tuneloop.gateway.text import Text, json_text
from tuneloop.rollouts import Tool, ToolUse

CHOICES = "must be 'none', 'auto', 'required' or {'type': 'function', 'function': {'name': …}}"


class Function(BaseModel):
    """A function that may be called."""

    model_config = ConfigDict(hide_input_in_errors=True)

    name: Text
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of its arguments."""
    strict: bool | None = None


class FunctionTool(BaseModel):
    """A tool; functions are the only kind there is."""

    type: Literal["function"]
    function: Function


def checked_choice(value: object) -> object:
    """`value`; raises `ValueError` for a choice that is none of OpenAI's plain ones."""
    if value in (None, "none", "auto", "required") or chosen_name(value):
        return value
    raise ValueError(CHOICES)


def chosen_name(value: object) -> str:
    """The function that a choice names; empty where it names none."""
    if not isinstance(value, dict) or value.get("type") != "function":
        return ""
    function = value.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


def tool_use(
    tools: list[FunctionTool] | None, choice: object, parallel: bool | None
) -> ToolUse | None:
    """What may be called; None where nothing may. Raises `ValueError` for a schema that is bad."""
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
        name=chosen_name(choice),
        single=parallel is False,
    )
