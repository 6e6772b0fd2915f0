"""Turns of a conversation in a file: as the API takes them, and as other data sets spell them.

ShareGPT has `from` and `value` for `role` and `content`, human and gpt for user and assistant.
Tool-calling data as TRL has it lacks the ids of calls, and in results those of what they answer.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tuneloop.rollouts import ChatMessage, Tool
from tuneloop.text.messages import read_message
from tuneloop.text.unicode import json_text, unicode

api_roles: Mapping[str, str] = {"human": "user", "gpt": "assistant"}
"""ShareGPT's names of roles; the others are the API's."""


def read_turns(turns: Sequence[Any]) -> tuple[ChatMessage, ...]:
    """Return a conversation; raises `ValueError` that names the message by its number."""
    unanswered: list[str] = []
    messages = []
    for number, turn in enumerate(turns, start=1):
        where = f"message {number}"
        if not isinstance(turn, Mapping):
            raise ValueError(f"{where} is a {type(turn).__name__}, not role and content")
        try:
            message = read_message(with_ids(with_role(turn), where, unanswered))
        except ValueError as error:
            raise ValueError(f"{where}, {error}") from None
        unanswered += [call.call_id for call in message.tool_calls]
        if message.tool_call_id in unanswered:
            unanswered.remove(message.tool_call_id)
        messages.append(message)
    return tuple(messages)


def with_role(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Return a turn with the API's names of what ShareGPT calls `from` and `value`."""
    if turn.get("role") is not None or "from" not in turn:
        return dict(turn)
    speaker = turn["from"]
    if speaker not in ("system", "human", "gpt", "tool"):
        raise ValueError(f"from: {speaker!r} is not system, human, gpt or tool")
    if not isinstance(turn.get("value"), str):
        raise ValueError("value: must be a string")
    return {"role": api_roles.get(speaker, speaker), "content": turn["value"]}


def with_ids(turn: dict[str, Any], where: str, unanswered: Sequence[str]) -> dict[str, Any]:
    """Return a turn whose calls have ids; a result answers the first call without one."""
    if turn.get("role") == "tool" and turn.get("tool_call_id") is None:
        return {**turn, "tool_call_id": unanswered[0] if unanswered else where}
    calls = turn.get("tool_calls")
    if not isinstance(calls, list):
        return turn
    named = [
        {**call, "id": f"{where}, call {number}"}
        if isinstance(call, Mapping) and call.get("id") is None
        else call
        for number, call in enumerate(calls, start=1)
    ]
    return {**turn, "tool_calls": named}


def read_tools(value: Any) -> tuple[Tool, ...]:
    """Return functions as OpenAI and TRL write them: a list, or its JSON. Raises `ValueError`."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("is text that is not the JSON of a list of tools") from None
    if not isinstance(value, list):
        raise ValueError("is not a list of tools")
    return tuple(read_tool(item, number) for number, item in enumerate(value, 1))


def read_tool(item: Any, number: int) -> Tool:
    """Return one function, with or without OpenAI's envelope. Raises `ValueError`."""
    envelope = item if isinstance(item, dict) else {}
    function = envelope.get("function") or envelope
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise ValueError(f"tool {number} has no function with a name")
    description, parameters = function.get("description") or "", function.get("parameters")
    if not isinstance(description, str) or not isinstance(parameters, dict | None):
        raise ValueError(f"tool {number}: description must be text, and parameters a JSON schema")
    return Tool(
        name=unicode(name),
        description=unicode(description),
        parameters="" if parameters is None else json_text(without_nulls(parameters)),
    )


def without_nulls(value: Any) -> Any:
    """Return JSON without keys whose value is null: Arrow writes those that other rows have."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value
