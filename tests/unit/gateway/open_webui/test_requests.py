"""The headers of Open WebUI's connection, as its 0.12.4 fills their placeholders."""

from typing import Any

import pytest

from tuneloop.gateway.edge.caller import LOCAL, PUBLIC, Caller
from tuneloop.gateway.open_webui.requests import (
    answer_name,
    is_open_webui,
    read_headers,
    results_in,
)
from tuneloop.gateway.openai.schemas import ChatRequest
from tuneloop.gateway.settings import GatewaySettings

HEADERS = {
    "x-openwebui-user-id": "8f2c",
    "x-openwebui-chat-id": "c1",
    "x-openwebui-message-id": "m1",
    "x-openwebui-task": "",
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
USER: dict[str, Any] = {"role": "user", "content": "hi"}
SAID: dict[str, Any] = {"role": "assistant", "content": "Hello."}
CALLS: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT: dict[str, Any] = {"role": "tool", "tool_call_id": "call_1", "content": "4"}


def chat(*messages: dict[str, Any], **more: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "tuneloop", "messages": messages, **more})


def test_a_message_names_its_answer_and_its_user() -> None:
    body, name = read_headers(chat(USER, user="x", metadata={"a": 1}), HEADERS)
    assert (body.user, body.metadata) == ("8f2c", {"a": 1, "session_id": "c1"})
    assert name == answer_name("c1", "m1", 0)


def test_a_side_task_has_the_message_id_of_the_answer_and_not_its_name() -> None:
    body, name = read_headers(chat(USER), HEADERS | {"x-openwebui-task": "title_generation"})
    assert body.metadata == {"task": "title_generation"}
    assert name is None


@pytest.mark.parametrize(
    "missing", [{"x-openwebui-chat-id": ""}, {"x-openwebui-message-id": ""}, {}]
)
def test_without_chat_and_message_an_answer_has_no_name(missing: dict[str, str]) -> None:
    headers = HEADERS | missing if missing else {}
    body, name = read_headers(chat(USER, user="ann"), headers)
    assert name is None
    assert body.user == (headers.get("x-openwebui-user-id") or "ann")


def test_several_choices_have_no_name() -> None:
    assert read_headers(chat(USER, n=2), HEADERS)[1] is None


@pytest.mark.parametrize(
    ("messages", "results"),
    [
        ((USER,), 0),
        ((USER, CALLS, RESULT), 1),
        ((USER, CALLS, RESULT, RESULT, CALLS, RESULT), 3),
        ((USER, CALLS, RESULT, SAID, USER), 0),
        ((USER, CALLS, RESULT, SAID, USER, CALLS, RESULT), 1),
        ((USER, CALLS, USER, CALLS, RESULT), 1),
        ((USER, SAID), None),  # "Continue Response"
        ((USER, CALLS, RESULT, SAID), None),
    ],
)
def test_the_results_of_tools_tell_the_completions_of_a_message_apart(
    messages: tuple[dict[str, Any], ...], results: int | None
) -> None:
    assert results_in(chat(*messages).messages) == results


def test_callers_are_believed_by_the_name_of_their_key() -> None:
    def believes(*names: str) -> list[bool]:
        settings = GatewaySettings(secret="a secret for tests only", open_webui=names)
        key = Caller(id="key-1", name="key:webui", key_name="webui")
        return [is_open_webui(settings, caller) for caller in (key, LOCAL, PUBLIC)]

    assert believes() == [False, False, False]
    assert believes("webui") == [True, False, False]
    assert believes("local", "public", "") == [False, True, False]
