"""Calls of functions: what makes a model write them, what reads them, what a request may ask for.

How a model spells a call is a format, chosen by a setting. A call is first of all text: the rollout
keeps it as it was sampled, and only the caller is told of the calls that were read in it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from tuneloop.errors import InvalidRequest
from tuneloop.rollouts import Prompt, SamplingParameters, Tool, ToolUse

SETTING = "TUNELOOP_GENERATION_TOOL_PARSER"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDelta:
    """What was added to one call of a completion; its first delta has the id and the name."""

    index: int
    call_id: str
    name: str
    arguments: str
    """JSON text."""


class ToolParser(Protocol):
    """Reads the calls of one growing completion."""

    def feed(
        self, text: str, token_ids: Sequence[int], *, ends: bool
    ) -> tuple[str, tuple[ToolCallDelta, ...]]:
        """The text that is no call, and what was added to calls; nothing is lost at the end."""
        ...


class ToolFormat(Protocol):
    """How one family of models spells calls."""

    def structural_tag(self, use: ToolUse) -> str:
        """JSON of xgrammar that holds the model to the calls asked for; empty where it is free.

        Raises `InvalidRequest` where the format cannot force a call.
        """
        ...

    def parser(self, use: ToolUse) -> ToolParser:
        """A parser for one completion."""
        ...


def openai_form(tool: Tool, *, strict: bool) -> dict[str, Any]:
    """The function as chat templates and grammars want it."""
    function: dict[str, Any] = {
        "name": tool.name,
        "description": tool.description,
        "parameters": parameters_of(tool),
    }
    return {"type": "function", "function": function | ({"strict": True} if strict else {})}


def parameters_of(tool: Tool) -> dict[str, Any]:
    """The schema of the function's arguments."""
    schema: dict[str, Any] = json.loads(tool.parameters or '{"type": "object"}')
    return schema


def check_tools(prompt: Prompt, tool_format: ToolFormat | None, *, in_template: bool) -> None:
    """Raise `InvalidRequest` where the conversation needs tools that cannot be had here.

    `in_template` says whether the model's chat template shows tools to the model.
    """
    turns = [m for m in prompt.messages if m.tool_calls or m.role == "tool"]
    if prompt.tool_use is None and not turns:
        return
    param = "messages" if prompt.tool_use is None else "tools"
    if tool_format is None:
        raise InvalidRequest(
            f"{param}: calling functions is off: set {SETTING} to the model's format", param=param
        )
    if not in_template:
        raise InvalidRequest(
            f"{param}: this model's chat template has no place for functions", param=param
        )
    if not prompt.messages:
        raise InvalidRequest("tools: only a conversation can have them", param="tools")


def constrained(
    sampling: SamplingParameters, use: ToolUse, tool_format: ToolFormat
) -> SamplingParameters:
    """`sampling` with what makes the model keep to the calls asked for."""
    if sampling.constrained:
        raise InvalidRequest(
            "response_format: excludes tools, unless tool_choice is 'none'", param="response_format"
        )
    return replace(sampling, structural_tag=tool_format.structural_tag(use))


def merged(calls: Sequence[ToolCallDelta]) -> tuple[ToolCallDelta, ...]:
    """The same deltas with those of one call in one."""
    by_index: dict[int, ToolCallDelta] = {}
    for call in calls:
        first = by_index.get(call.index)
        by_index[call.index] = (
            call if first is None else replace(first, arguments=first.arguments + call.arguments)
        )
    return tuple(by_index.values())
