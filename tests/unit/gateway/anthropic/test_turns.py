"""Turns in Anthropic's form, and the chat that they are for the model."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from tuneloop.gateway.anthropic.turns import MessageTurn, chat_messages
from tuneloop.text.messages import conversation

TURNS = TypeAdapter(list[MessageTurn])


def chat(*turns: tuple[str, Any], system: str = "") -> list[tuple[str, str, list[str], str]]:
    """Role, content, calls and the call answered, of each message."""
    given = TURNS.validate_python([{"role": role, "content": content} for role, content in turns])
    return [
        (
            m.role,
            m.content,
            [f"{c.call_id} {c.name} {c.arguments}" for c in m.tool_calls],
            m.tool_call_id,
        )
        for m in conversation(list(chat_messages(system, given)))
    ]


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words, "cache_control": {"type": "ephemeral"}}


def call(number: int) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"t{number}", "name": "read", "input": {"n": number}}


def result(number: int, content: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": f"t{number}", "content": content}


def test_blocks_become_messages_in_their_order() -> None:
    assert chat(
        ("user", [text("<reminder>"), text("Fix it.")]),
        ("assistant", [text("Let me "), text("look."), call(1), call(2)]),
        ("user", [result(1, [text("a"), text("b")]), result(2, None), text("Go on.")]),
        system="Be brief.",
    ) == [
        ("system", "Be brief.", [], ""),
        ("user", "<reminder>\n\nFix it.", [], ""),
        ("assistant", "Let me look.", ['t1 read {"n": 1}', 't2 read {"n": 2}'], ""),
        ("tool", "a\n\nb", [], "t1"),
        ("tool", "", [], "t2"),
        ("user", "Go on.", [], ""),
    ]


def test_turns_of_one_role_that_follow_each_other_are_one() -> None:
    assert chat(("user", "a"), ("user", "b"), ("assistant", "c"), ("assistant", [call(1)])) == [
        ("user", "a\n\nb", [], ""),
        ("assistant", "c", ['t1 read {"n": 1}'], ""),
    ]


def test_a_system_turn_stays_where_it_is() -> None:
    assert chat(("user", "a"), ("system", [text("now in French")]), ("user", "b")) == [
        ("user", "a", [], ""),
        ("system", "now in French", [], ""),
        ("user", "b", [], ""),
    ]


def test_thoughts_of_earlier_turns_are_taken() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "x"}
    hidden = {"type": "redacted_thinking", "data": "x"}
    given = [("assistant", [thought, hidden, text("b")])]
    assert chat(*given) == [("assistant", "b", [], "")]
    turns = [MessageTurn.model_validate({"role": role, "content": c}) for role, c in given]
    [message] = conversation(list(chat_messages("", turns)))
    assert message.reasoning == "hm"


@pytest.mark.parametrize(
    ("role", "block", "problem"),
    [
        ("user", {"type": "image", "source": {}}, "blocks of type 'image' are not supported"),
        ("user", {"type": "document"}, "blocks of type 'document' are not supported"),
        ("user", {}, "Field required"),
        ("user", {"type": {}}, "blocks of type '{}' are not supported"),
        ("user", {"type": "text"}, "needs text"),
        ("assistant", {"type": "tool_use", "id": "t"}, "needs id, name and input"),
        ("user", {"type": "tool_result"}, "needs tool_use_id"),
        ("user", result(1, [{"type": "image"}]), "only text parts are supported, not 'image'"),
        ("user", result(1, 5), "must be a string or a list of text blocks"),
        ("user", call(1), "a turn of the role 'user' has no 'tool_use'"),
        ("assistant", result(1, ""), "a turn of the role 'assistant' has no 'tool_result'"),
        ("system", call(1), "a turn of the role 'system' has no 'tool_use'"),
        ("user", text("\ud800"), "is not valid Unicode"),
        ("user", result(1, "\ud800"), "is not valid Unicode"),
        ("assistant", call(1) | {"input": {"a": float("nan")}}, "not JSON compliant"),
    ],
)
def test_what_a_turn_cannot_be_is_named(role: str, block: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        chat((role, [block]))
