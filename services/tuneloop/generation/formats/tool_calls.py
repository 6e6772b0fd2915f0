"""Tool calls: the protocols of a format and a parser, and the checks of a request.

A setting names the format in which the model writes calls. A call is text first: the rollout keeps
it as it was sampled, and only the caller sees the calls parsed from it.
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
    """What was added to one call of a completion; the first delta has its id and name."""

    index: int
    call_id: str
    name: str
    arguments: str
    """JSON text."""


class ToolParser(Protocol):
    """Parses the calls of one completion while it is sampled."""

    def feed(
        self, text: str, token_ids: Sequence[int], *, ends: bool
    ) -> tuple[str, tuple[ToolCallDelta, ...]]:
        """Return the text outside calls, and what was added to calls; `ends` flushes the rest."""
        ...


class ToolFormat(Protocol):
    """The way in which one family of models writes calls."""

    def structural_tag(self, use: ToolUse) -> str:
        """Return xgrammar's JSON that holds the model to the calls asked for; empty if it is free.

        Raises `InvalidRequest` if the format cannot force a call.
        """
        ...

    def parser(self, use: ToolUse) -> ToolParser:
        """Return a parser for one completion."""
        ...


def openai_form(tool: Tool, *, strict: bool) -> dict[str, Any]:
    """Return the tool as chat templates and grammars expect it."""
    function: dict[str, Any] = {
        "name": tool.name,
        "description": tool.description,
        "parameters": parameters_of(tool),
    }
    return {"type": "function", "function": function | ({"strict": True} if strict else {})}


def parameters_of(tool: Tool) -> dict[str, Any]:
    """Return the schema of the tool's arguments."""
    schema: dict[str, Any] = json.loads(tool.parameters or '{"type": "object"}')
    return schema


def check_tools(prompt: Prompt, tool_format: ToolFormat | None, *, in_template: bool) -> None:
    """Raise `InvalidRequest` if the conversation needs tools that are not available here.

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


def constrain_to_calls(
    sampling: SamplingParameters, use: ToolUse, tool_format: ToolFormat
) -> SamplingParameters:
    """Return `sampling` with the grammar that holds the model to the calls asked for."""
    if sampling.constrained:
        raise InvalidRequest(
            "response_format: excludes tools, unless tool_choice is 'none'", param="response_format"
        )
    return replace(sampling, structural_tag=tool_format.structural_tag(use))


def merge_calls(calls: Sequence[ToolCallDelta]) -> tuple[ToolCallDelta, ...]:
    """Join the deltas of each call into one."""
    by_index: dict[int, ToolCallDelta] = {}
    for call in calls:
        first = by_index.get(call.index)
        by_index[call.index] = (
            call if first is None else replace(first, arguments=first.arguments + call.arguments)
        )
    return tuple(by_index.values())
