"""Conversations are kept for a while, for their caller, within bytes."""

from dataclasses import replace

import pytest

from tuneloop.gateway.errors import ItemNotFound, PreviousResponseNotFound
from tuneloop.gateway.responses import conversations
from tuneloop.gateway.responses.conversations import Conversation, Conversations
from tuneloop.gateway.responses.items import InputItem
from tuneloop.text.messages import Message


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def conversation(text: str = "hi", user: str = "ann", session: str = "s") -> Conversation:
    message = Message(role="user", content=text)
    return Conversation(messages=(message,), session_id=session, user_hash=user)


def known(kept: Conversations, caller: str, *ids: str) -> list[str]:
    found = []
    for response_id in ids:
        try:
            kept.find(caller, response_id)
        except PreviousResponseNotFound:
            continue
        found.append(response_id)
    return found


def test_only_its_caller_finds_a_conversation() -> None:
    kept, mine = Conversations(), conversation()
    kept.keep("key-1", "resp_1", mine)
    assert kept.find("key-1", "resp_1") is mine
    for caller, response_id in (("key-2", "resp_1"), ("key-1", "resp_2")):
        with pytest.raises(PreviousResponseNotFound, match=f"'{response_id}' is known here") as it:
            kept.find(caller, response_id)
        assert it.value.param == "previous_response_id"


def test_an_old_conversation_is_dropped() -> None:
    clock = Clock()
    kept = Conversations(clock)
    kept.keep("a", "resp_1", conversation())
    clock.now = conversations.MAX_SECONDS
    kept.keep("b", "resp_2", conversation())
    kept.drop_old()
    assert known(kept, "a", "resp_1") == ["resp_1"]
    clock.now += 1
    kept.drop_old()
    assert known(kept, "a", "resp_1") == []
    assert known(kept, "b", "resp_2") == ["resp_2"]
    assert kept.sizes.keys() == kept.of_caller.keys() == {"b"}


def test_the_caller_with_the_most_loses_its_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = conversation("x" * 10_000), conversation()
    monkeypatch.setattr(conversations, "MAX_BYTES", 2 * large.size + small.size)
    kept = Conversations()
    kept.keep("modest", "resp_0", small)
    for number in (1, 2, 3):
        kept.keep("greedy", f"resp_{number}", large)
    assert known(kept, "modest", "resp_0") == ["resp_0"]
    assert known(kept, "greedy", "resp_1", "resp_2", "resp_3") == ["resp_2", "resp_3"]
    assert kept.sizes == {"modest": small.size, "greedy": 2 * large.size}


def test_one_that_is_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversations, "MAX_BYTES", conversation().size)
    kept = Conversations()
    kept.keep("a", "resp_1", conversation("x" * 10_000))
    assert known(kept, "a", "resp_1") == []
    assert not kept.sizes


def test_a_user_or_a_session_is_forgotten() -> None:
    kept = Conversations()
    kept.keep("a", "resp_1", conversation(user="ann", session="s1"))
    kept.keep("a", "resp_2", conversation(user="bob", session="s2"))
    kept.keep("b", "resp_3", conversation(user="ann", session="s3"))
    kept.forget(lambda one: one.user_hash == "ann")
    assert known(kept, "a", "resp_1", "resp_2") == ["resp_2"]
    assert known(kept, "b", "resp_3") == []
    kept.forget(lambda one: one.session_id == "s2")
    assert not kept.of_caller
    assert not kept.sizes


def test_text_and_calls_count_in_bytes() -> None:
    call = {"id": "c", "function": {"name": "f", "arguments": "y" * 500}}
    message = Message.model_validate(
        {"role": "assistant", "content": "é👋" * 1000, "tool_calls": [call]}
    )
    size = Conversation(messages=(message,), session_id="s", user_hash="u").size
    assert size > 8000 + 500


def test_items_are_known_as_long_as_their_response() -> None:
    clock = Clock()
    kept = Conversations(clock)
    item = InputItem.model_validate({"role": "assistant", "content": "hello"})
    mine = replace(conversation(), items={"msg_1": item})
    assert mine.size == conversation().size + conversations.MESSAGE_BYTES
    kept.keep("key-1", "resp_1", mine)
    assert kept.of_item("key-1", "msg_1").items["msg_1"] is item
    for caller, item_id in (("key-2", "msg_1"), ("key-1", "msg_2")):
        with pytest.raises(ItemNotFound, match=f"no item '{item_id}' is known here") as it:
            kept.of_item(caller, item_id)
        assert it.value.param == "input"
    clock.now = conversations.MAX_SECONDS + 1
    kept.drop_old()
    assert kept.response_of_item == {}
