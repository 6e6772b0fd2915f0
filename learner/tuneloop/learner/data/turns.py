"""Turns of a conversation in a file: as the API takes them, and as other data sets spell them.

ShareGPT has `from` and `value` for `role` and `content`, human and gpt for user and assistant.
Tool-calling data as TRL has it lacks the ids of calls, and in results those of what they answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tuneloop.rollouts import ChatMessage
from tuneloop.text.messages import read_message

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
