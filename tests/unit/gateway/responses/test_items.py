"""Items of a response's input, and the chat that they are for the model."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from tuneloop.gateway.responses.items import InputItem, as_items, chat_messages
from tuneloop.text.messages import conversation

ITEMS = TypeAdapter(list[InputItem])


def chat(given: Any) -> list[tuple[str, str, list[str], str]]:
    """Role, content, calls and the call answered, of each message."""
    items = ITEMS.validate_python(as_items(given))
    return [
        (
            m.role,
            m.content,
            [f"{c.call_id} {c.name} {c.arguments}" for c in m.tool_calls],
            m.tool_call_id,
        )
        for m in conversation(list(chat_messages(items)))
    ]


def message(role: str, *texts: str) -> dict[str, Any]:
    kind = "output_text" if role == "assistant" else "input_text"
    parts = [{"type": kind, "text": text} for text in texts]
    return {"type": "message", "role": role, "content": parts}


def call(number: int, arguments: str = "{}") -> dict[str, Any]:
    return {
        "type": "function_call",
        "id": f"fc_{number}",
        "status": "completed",
        "call_id": f"c{number}",
        "name": "read",
        "arguments": arguments,
    }


def output(number: int, said: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": f"c{number}", "output": said}


THOUGHT = {"type": "reasoning", "id": "rs_1", "content": [{"type": "reasoning_text", "text": "hm"}]}


def test_items_become_messages_in_their_order() -> None:
    assert chat(
        [
            message("developer", "Ask first."),
            message("user", "<reminder>", "Fix it."),
            THOUGHT,
            message("assistant", "Let me ", "look."),
            THOUGHT,
            call(1),
            call(2),
            output(1, "a"),
            output(2, [{"type": "input_text", "text": "b"}, {"type": "input_text", "text": "c"}]),
            {"role": "user", "content": "Go on."},
        ]
    ) == [
        ("system", "Ask first.", [], ""),
        ("user", "<reminder>\n\nFix it.", [], ""),
        ("assistant", "Let me look.", ["c1 read {}", "c2 read {}"], ""),
        ("tool", "a", [], "c1"),
        ("tool", "b\n\nc", [], "c2"),
        ("user", "Go on.", [], ""),
    ]


def test_text_is_a_message_of_the_user() -> None:
    assert chat("hi") == [("user", "hi", [], "")]


def test_messages_of_a_user_stay_apart() -> None:
    assert chat([message("user", "a"), message("user", "b")]) == [
        ("user", "a", [], ""),
        ("user", "b", [], ""),
    ]


def test_thoughts_belong_to_the_turn_they_came_before() -> None:
    summary = {
        "type": "reasoning",
        "id": "rs_2",
        "summary": [{"type": "summary_text", "text": "so"}],
        "content": None,
        "encrypted_content": "gAAA",
    }
    given = [message("user", "a"), THOUGHT, message("assistant", "b"), summary, call(1)]
    items = ITEMS.validate_python([*given, output(1, "c"), THOUGHT])
    _, said, result = conversation(list(chat_messages(items)))
    assert (said.reasoning, said.content, len(said.tool_calls)) == ("hm\n\nso", "b", 1)
    assert (result.role, result.reasoning) == ("tool", "")


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ({"type": "item_reference"}, "an item of type 'item_reference' needs id"),
        ({"type": "item_reference", "id": ""}, "an item of type 'item_reference' needs id"),
        ({"type": "local_shell_call"}, "items of type 'local_shell_call' are not supported"),
        ({"type": {}, "role": "user"}, "items of type '{}' are not supported"),
        ({}, "needs role and content"),
        ({"type": "message", "content": "a"}, "needs role and content"),
        ({"role": "tool", "content": "a"}, "Input should be 'user'"),
        ({"type": "function_call", "call_id": "c"}, "needs call_id, name, arguments"),
        ({"type": "function_call_output", "call_id": "c"}, "needs call_id and output"),
        ({"role": "user", "content": [{"type": "input_image"}]}, "parts of type 'input_image'"),
        ({"role": "user", "content": ["a"]}, "parts of type 'None'"),
        (output(1, 5), "must be a string or a list of text parts"),
        (message("user", "\ud800"), "is not valid Unicode"),
        (call(1, "\ud800"), "is not valid Unicode"),
    ],
)
def test_what_an_item_cannot_be_is_named(item: Any, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        chat([item])


@pytest.mark.parametrize(
    "item",
    [{"type": "item_reference", "id": "msg_1"}, {"id": "msg_1"}, {"type": None, "id": "msg_1"}],
)
def test_an_id_alone_refers_to_an_item(item: Any) -> None:
    (read,) = ITEMS.validate_python([item])
    assert (read.type, read.id) == ("item_reference", "msg_1")
