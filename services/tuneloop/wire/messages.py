"""A conversation's messages."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tuneloop.errors import CorruptData
from tuneloop.rollouts import ChatMessage, Tool, ToolCall, ToolUse
from tuneloop.v1 import generation_pb2, rollout_pb2
from tuneloop.wire.fields import json_object, require

TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def tool_use_to_proto(use: ToolUse) -> generation_pb2.ToolUse:
    """Which functions may be called."""
    return generation_pb2.ToolUse(
        tools=[
            generation_pb2.Tool(
                name=t.name, description=t.description, parameters=t.parameters, strict=t.strict
            )
            for t in use.tools
        ],
        required=use.required,
        name=use.name,
        single=use.single,
    )


def tool_use_from_proto(message: generation_pb2.ToolUse) -> ToolUse:
    """Return the tools that may be called. Raises `CorruptData` naming `tools` or `tool_choice`."""
    names = [tool.name for tool in message.tools]
    require(bool(names), "tools", "at least one")
    require(all(map(TOOL_NAME.fullmatch, names)), "tools", f"names must match {TOOL_NAME.pattern}")
    require(len(set(names)) == len(names), "tools", "names must differ")
    require(not message.name or message.name in names, "tool_choice", "names none of the tools")
    for tool in message.tools:
        json_object(tool.parameters or "{}", "tools")
    return ToolUse(
        tools=tuple(
            Tool(name=t.name, description=t.description, parameters=t.parameters, strict=t.strict)
            for t in message.tools
        ),
        required=message.required,
        name=message.name,
        single=message.single,
    )


def template_options_from_proto(options: Mapping[str, str]) -> dict[str, Any]:
    """Arguments for the chat template. Raises `CorruptData` naming one that is not JSON."""
    values = {}
    for name, value in options.items():
        try:
            values[name] = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise CorruptData(
                f"template_options.{name}: not JSON: {error}", param="chat_template_kwargs"
            ) from error
    return values


def messages_to_proto(messages: Sequence[ChatMessage]) -> rollout_pb2.ChatPrompt:
    """A conversation."""
    return rollout_pb2.ChatPrompt(
        messages=[
            rollout_pb2.ChatMessage(
                role=m.role,
                content=m.content,
                tool_calls=[
                    rollout_pb2.ToolCall(call_id=c.call_id, name=c.name, arguments=c.arguments)
                    for c in m.tool_calls
                ],
                tool_call_id=m.tool_call_id,
                reasoning=m.reasoning,
            )
            for m in messages
        ]
    )


def messages_from_proto(chat: rollout_pb2.ChatPrompt) -> tuple[ChatMessage, ...]:
    """A conversation; may be empty."""
    return tuple(
        ChatMessage(
            role=m.role,
            content=m.content,
            tool_calls=tuple(
                ToolCall(call_id=c.call_id, name=c.name, arguments=c.arguments)
                for c in m.tool_calls
            ),
            tool_call_id=m.tool_call_id,
            reasoning=m.reasoning,
        )
        for m in chat.messages
    )
