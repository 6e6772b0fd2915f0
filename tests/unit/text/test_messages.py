"""What the API takes as a conversation training takes, and the other way round."""

from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from tuneloop.gateway.openai.schemas import ChatRequest
from tuneloop.learner.data.turns import read_turns
from tuneloop.rollouts import ChatMessage, ToolCall
from tuneloop.text.messages import conversation

USER = {"role": "user", "content": "hi"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "2"}


def with_call(**changes: Any) -> list[Any]:
    return [USER, CALLS | {"tool_calls": [CALL | changes]}, RESULT]


accepted: Sequence[list[Any]] = [
    [USER],
    [{"role": "system", "content": "be brief"}, USER, {"role": "assistant", "content": "yes"}],
    [{"role": "developer", "content": "be brief"}, USER],
    [{"role": "assistant", "content": "first"}],
    [USER, USER],
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": " \n"}],
    [{"role": "user", "content": []}],
    [{"role": "user", "content": [{"type": "text", "text": t} for t in ("h", "\u2028", "漢😀")]}],
    [USER | {"name": "ann", "refusal": None, "weight": 1}],
    [USER, CALLS, RESULT],
    [USER, CALLS | {"content": "let me see"}, RESULT],
    [USER, {**CALLS, "content": ""}, RESULT],
    # As Arrow fills in the columns that other turns have.
    [USER | {"tool_calls": None, "tool_call_id": None}],
    with_call(function={"name": "add", "arguments": {"a": 1}}),
    with_call(function={"name": "add"}),
    with_call(function={"name": "add", "arguments": "not JSON"}),
]
refused: Sequence[list[Any]] = [
    ["hi"],
    [None],
    [["user", "hi"]],
    [{}],
    [{"role": "user"}],
    [{"content": "hi"}],
    [{"role": None, "content": "hi"}],
    [{"role": "bot", "content": "hi"}],
    [{"role": "user", "content": None}],
    [{"role": "user", "content": 3}],
    [{"role": "user", "content": {"type": "text", "text": "hi"}}],
    [{"role": "user", "content": ["hi"]}],
    [{"role": "user", "content": [{"type": "text"}]}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
    [{"role": "user", "content": "\ud800"}],
    [{"role": "user", "content": [{"type": "text", "text": "\udfff"}]}],
    [USER | {"tool_calls": [CALL]}],
    [{"role": "assistant", "content": None}],
    [{"role": "assistant", "content": None, "tool_calls": []}],
    with_call(type="custom"),
    with_call(function={"arguments": "{}"}),
    with_call(function={"name": "add", "arguments": 3}),
    with_call(function={"name": "add", "arguments": {"a": float("nan")}}),
    with_call(function={"name": "\ud800"}),
]


@pytest.mark.parametrize("turns", accepted, ids=str)
def test_what_the_api_takes_is_learned_from(turns: list[Any]) -> None:
    body = ChatRequest.model_validate({"model": "tuneloop", "messages": turns})
    assert read_turns(turns) == conversation(body.messages)


@pytest.mark.parametrize("turns", refused, ids=ascii)
def test_what_the_api_refuses_is_refused(turns: list[Any]) -> None:
    with pytest.raises(ValidationError):
        ChatRequest.model_validate({"model": "tuneloop", "messages": turns})
    with pytest.raises(ValueError, match=r"^message [12]"):
        read_turns(turns)


def test_the_newer_name_of_the_system_is_the_one_of_templates() -> None:
    [message] = read_turns([{"role": "developer", "content": [{"type": "text", "text": "a"}]}])
    assert message == ChatMessage(role="system", content="a")


def test_calls_without_ids_get_some() -> None:
    """As in data sets with calls of functions, where results follow their calls in order."""

    def call(name: str) -> dict[str, Any]:
        return {"type": "function", "function": {"name": name, "arguments": {"x": 1}}}

    calls = {"role": "assistant", "content": None, "tool_calls": [call("a"), call("b")]}
    results = [{"role": "tool", "name": name, "content": "1"} for name in "ab"]
    _, asked, first, second = read_turns([USER, calls, *results])
    assert asked.tool_calls == tuple(
        ToolCall(call_id=call_id, name=name, arguments='{"x": 1}')
        for call_id, name in ((first.tool_call_id, "a"), (second.tool_call_id, "b"))
    )
    assert first.tool_call_id != second.tool_call_id
    [alone] = read_turns([{"from": "tool", "value": "1"}])
    assert (alone.role, alone.content) == ("tool", "1")
