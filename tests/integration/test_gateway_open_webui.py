"""Ratings of Open WebUI 0.12.4 become feedback: rows as it stores them, and its function."""

import asyncio
import sys
import time
import types
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.gateway_fakes import IDS
from support.gateway_stack import Stack, running_gateway

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.feedback import Comment, Comparison, Feedback, FeedbackKind, Rating, Thumb
from tuneloop.gateway.keys.store import KeyFile, Limits, Scope, new_key
from tuneloop.gateway.open_webui.ratings import SOURCE
from tuneloop.gateway.open_webui.requests import answer_name
from tuneloop.v1 import learner_pb2

pytestmark = pytest.mark.gateway(open_webui=("local",))

PATH = "/v1/open_webui/feedback"
NOBODY = "http://127.0.0.1:9"
ANN = "3d3b1c54-6f0e-4f7c-9d0e-1f2a7c9b5e11"
CHAT = "0b9f0a2e-54d0-4a39-9a0c-5f2f1f1f4c77"
MESSAGE = "c5a2e7de-8a51-4a55-a0a5-0d5a1d1f0c11"
OTHER = "e1f7b7aa-2b43-4c1f-8f6f-9f4b2c3d4e55"
ROW = "7a1c9a0e-3a52-4c8e-9a57-2f2b9d8e7c66"


def row(**data: Any) -> dict[str, Any]:
    """A row of the table `feedback`, without its snapshot."""
    return {
        "type": "rating",
        "user_id": ANN,
        "data": {
            "rating": None,
            "model_id": "tuneloop",
            "sibling_model_ids": None,
            "reason": None,
            "comment": None,
            **data,
        },
        "meta": {
            "arena": False,
            "model_id": "tuneloop",
            "message_id": MESSAGE,
            "message_index": 2,
            "chat_id": CHAT,
            "base_models": {"tuneloop": None},
        },
    }


def rated(**data: Any) -> dict[str, Any]:
    return {"id": ROW, "feedback": row(**data), "asked_by": ANN, "results": 0}


def answer_id(message: str = MESSAGE, results: int = 0) -> str:
    name = answer_name(CHAT, message, results)
    return IDS.make("chatcmpl", "default", IDS.user_hash("default", ANN), name=name)


def events(stack: Stack) -> list[Feedback | str]:
    """What is on the stream: feedback, or `-` and the id of what was retracted."""
    found: list[Feedback | str] = []
    for event in stack.bus.streams[subjects.FEEDBACK].events:
        if subjects.is_retraction(event.subject):
            found.append(f"-{wire.decode_retraction(event.data).feedback_id}")
        else:
            found.append(wire.decode_feedback(event.data))
    return found


def told(stack: Stack) -> list[Any]:
    """The same as ids and judgements."""
    return [
        event if isinstance(event, str) else (event.feedback_id, event.judgement)
        for event in events(stack)
    ]


async def ask(
    http: httpx.AsyncClient, *, task: str = "", results: int = 0, message: str = MESSAGE
) -> dict[str, Any]:
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    tools = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "4"},
    ]
    body = {
        "model": "tuneloop",
        "messages": [{"role": "user", "content": "hi"}, *(tools * results)],
    }
    headers = {
        "X-OpenWebUI-User-Id": ANN,
        "X-OpenWebUI-Chat-Id": CHAT,
        "X-OpenWebUI-Message-Id": message,
        "X-OpenWebUI-Task": task,
    }
    response = await http.post("/v1/chat/completions", json=body, headers=headers)
    assert response.status_code == 200, response.text
    return dict(response.json())


async def tell(http: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    response = await http.post(PATH, json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


async def test_a_thumb_finds_the_answer_that_it_is_about(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    completion_id = (await ask(http))["id"]
    answer = await tell(http, rated(rating=1))
    receipt = IDS.receipt("default", f"owui-{ROW}-thumb-0")
    assert answer == {
        "id": ROW,
        "status": "accepted",
        "feedback": [f"owui-{ROW}-thumb-0"],
        "receipt": receipt,
    }
    (feedback,) = events(stack)
    assert isinstance(feedback, Feedback)
    assert feedback.completion_id == completion_id == answer_id()
    assert feedback.judgement == Thumb(up=True)
    assert feedback.user_hash == IDS.user_hash("default", ANN)
    assert feedback.metadata == {"open_webui": ROW}
    request = stack.generation.requests[0]
    assert (request.publish_rollout, request.session_id) == (True, CHAT)


async def test_side_tasks_are_neither_trained_on_nor_rated(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    titled = await ask(http, task="title_generation")
    assert titled["id"] != answer_id()
    request = stack.generation.requests[0]
    assert (request.publish_rollout, request.session_id) == (False, "")


async def test_a_thumb_after_tools_is_about_the_last_completion(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    ids = [(await ask(http, results=results))["id"] for results in (0, 1, 2)]
    assert ids == [answer_id(results=results) for results in (0, 1, 2)]
    assert len(set(ids)) == 3
    await tell(http, rated(rating=1) | {"results": 2})
    (feedback,) = events(stack)
    assert isinstance(feedback, Feedback)
    assert feedback.completion_id == ids[2]


async def test_a_rating_that_changes(stack: Stack, http: httpx.AsyncClient) -> None:
    thumb = f"owui-{ROW}-thumb"
    for data in ({"rating": 1}, {"rating": 1, "tags": ["greeting"]}, {"rating": "1"}):
        await tell(http, rated(**data))
    assert told(stack) == [(f"{thumb}-0", Thumb(up=True))]
    await tell(http, rated(rating=-1))
    assert told(stack)[1:] == [(f"{thumb}-1", Thumb(up=False))]
    for _ in range(2):
        answer = await tell(http, {"id": ROW})  # it was deleted
        assert answer["status"] == "none"
    assert told(stack)[2:] == [f"-{thumb}-0", f"-{thumb}-1"]
    await tell(http, rated(rating=-1))
    assert told(stack)[4:] == [(f"{thumb}-2", Thumb(up=False))]


async def test_a_rating_says_up_to_four_things(stack: Stack, http: httpx.AsyncClient) -> None:
    said = {
        "rating": 1,
        "reason": "thorough_explanation",
        "comment": " More like this. ",
        "details": {"rating": 9},
        "sibling_model_ids": ["tuneloop"],
    }
    body = rated(**said)
    body["siblings"] = [
        {"message_id": OTHER, "model_id": "tuneloop", "results": 1},
        {"message_id": "x", "model_id": "gpt-9", "results": 0},
    ]
    await tell(http, body)
    assert {e.kind: e.judgement for e in events(stack) if isinstance(e, Feedback)} == {
        FeedbackKind.THUMB: Thumb(up=True),
        FeedbackKind.RATING: Rating(value=9.0),
        FeedbackKind.COMMENT: Comment(text="thorough explanation: More like this."),
        FeedbackKind.COMPARISON: Comparison(chosen=answer_id(), rejected=(answer_id(OTHER, 1),)),
    }
    await tell(http, rated(rating=-1, reason="other"))
    assert told(stack)[4:] == [
        (f"owui-{ROW}-thumb-1", Thumb(up=False)),
        f"-owui-{ROW}-rating-0",
        f"-owui-{ROW}-comment-0",
        f"-owui-{ROW}-comparison-0",
    ]


async def test_without_the_learner_new_ratings_are_taken_and_old_ones_wait(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    await stack.servers["learner"].stop()
    old, new = rated(rating=1), rated(rating=1)
    assert (await http.post(PATH, json=old)).status_code == 503
    new["feedback"]["created_at"] = int(time.time()) - 600
    for _ in range(2):
        assert (await tell(http, new))["feedback"] == [f"owui-{ROW}-thumb-0"]
    new["feedback"]["data"]["rating"] = None
    assert (await tell(http, new))["status"] == "none"
    assert told(stack) == [(f"owui-{ROW}-thumb-0", Thumb(up=True)), f"-owui-{ROW}-thumb-0"]


@pytest.mark.parametrize(
    ("model", "bases", "taken"),
    [
        ("tuneloop", {"tuneloop": None}, True),
        ("loop.tuneloop", {}, True),
        ("my-tutor", {"my-tutor": "tuneloop"}, True),
        ("gpt-9", {"gpt-9": None}, False),
        ("tuneloop-tutor", {"tuneloop-tutor": "gpt-9"}, False),
    ],
)
async def test_ratings_of_other_models_are_not_taken(
    stack: Stack, http: httpx.AsyncClient, model: str, bases: dict[str, Any], taken: bool
) -> None:
    body = rated(rating=1, model_id=model)
    body["feedback"]["meta"]["base_models"] = bases
    assert (await tell(http, body))["status"] == ("accepted" if taken else "none")
    assert len(events(stack)) == taken


async def test_the_rater_may_be_another_than_who_asked(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    body = rated(rating=1)
    body["feedback"]["user_id"] = "bob"
    await tell(http, body)
    (feedback,) = events(stack)
    assert isinstance(feedback, Feedback)
    assert feedback.completion_id == answer_id()
    assert feedback.user_hash == IDS.user_hash("default", "bob")


async def test_the_ratings_of_a_user_are_retracted_at_once(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    await tell(http, rated(rating=1, comment="yes"))
    thumb = {"kind": "thumb", "completion_id": answer_id(), "value": "up", "id": "mine"}
    await http.post("/v1/feedback", json=thumb)
    for event in events(stack):
        assert isinstance(event, Feedback)
        recorded = learner_pb2.RecordedFeedback(
            feedback=wire.feedback_to_proto(event), status="accepted"
        )
        stack.learner.recorded.append(recorded)
    answer = await http.delete(PATH, params={"user_id": ANN})
    assert answer.json() == {"retracted": 2}
    assert stack.learner.calls[-1].user_hash == IDS.user_hash("default", ANN)
    assert told(stack)[3:] == [f"-owui-{ROW}-thumb-0", f"-owui-{ROW}-comment-0"]


async def test_only_a_key_that_the_setting_names_is_believed(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    secrets = {}
    for name in ("webui", "app"):
        secret, key = new_key(name, [Scope.INFER, Scope.FEEDBACK], Limits())
        file.add(key)
        secrets[name] = {"authorization": f"Bearer {secret}"}
    async with running_gateway(keys_file=file.path, open_webui=("webui",)) as stack:
        for name, believed in (("webui", True), ("app", False)):
            async with httpx.AsyncClient(base_url=stack.url, headers=secrets[name]) as http:
                assert ((await ask(http))["id"] == answer_id()) is believed
                response = await http.post(PATH, json=rated(rating=1))
                assert response.status_code == (200 if believed else 403)
                refused = await http.delete(PATH)
                assert refused.status_code == (200 if believed else 403)
        assert "TUNELOOP_GATEWAY_OPEN_WEBUI" in response.json()["error"]["message"]
        ann, anonymous = (request.user_hash for request in stack.generation.requests)
        assert ann == IDS.user_hash("default", ANN)
        assert anonymous == IDS.user_hash("default", None)
        async with httpx.AsyncClient(base_url=stack.url) as http:
            source = await http.get("/open-webui/tuneloop.py")
            assert source.text == SOURCE


class Chats:
    """Open WebUI's chats, of which there is one."""

    def __init__(self) -> None:
        message = {"role": "assistant", "parentId": "u", "model": "tuneloop", "output": []}
        self.messages: dict[str, Any] = {
            "u": {"role": "user", "user_id": ANN, "childrenIds": [MESSAGE, OTHER, "liked"]},
            MESSAGE: message | {"output": [{"type": "function_call_output"}, {"type": "message"}]},
            OTHER: message,
            "liked": message | {"annotation": {"rating": 1}},
        }

    async def get_chat_by_id(self, chat_id: str) -> Any:
        if chat_id != CHAT:
            return None
        chat = {"history": {"messages": self.messages}}
        return types.SimpleNamespace(user_id="somebody who shared it", chat=chat)


class Row(types.SimpleNamespace):
    def model_dump(self, include: set[str]) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name in include}


class OpenWebUI:
    """What the function finds of Open WebUI where it runs: its ratings, chats and connections."""

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.url = url
        self.rows: dict[str, Row] = {}
        self.unreachable = 0
        """How often the gateway cannot be reached."""
        modules = {"feedbacks": {"Feedbacks": self}, "chats": {"Chats": Chats()}}
        for name, members in modules.items():
            self.install(monkeypatch, f"open_webui.models.{name}", members)
        self.said: list[tuple[dict[str, Any], str]] = []
        """What its users were shown, under which answers."""
        self.install(
            monkeypatch, "open_webui.socket.main", {"get_event_emitter": self.get_event_emitter}
        )
        members = {"get_openai_runtime_config": self.connections}
        self.install(monkeypatch, "open_webui.routers.openai", members)

    def install(self, monkeypatch: pytest.MonkeyPatch, name: str, members: dict[str, Any]) -> None:
        parts = name.split(".")
        for end in range(1, len(parts)):
            package = ".".join(parts[:end])
            monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)

    async def connections(self) -> tuple[bool, list[str], list[str], dict[str, Any]]:
        address = self.url
        if self.unreachable:
            self.unreachable, address = self.unreachable - 1, NOBODY
        marked = {"headers": {"X-OpenWebUI-Message-Id": "{{MESSAGE_ID}}"}}
        configs = {"0": {}, "1": marked, "2": marked | {"enable": False}}
        return True, [f"{url}/v1" for url in (NOBODY, address, NOBODY)], [], configs

    async def get_event_emitter(self, answer: dict[str, Any]) -> Any:
        async def emit(event: dict[str, Any]) -> None:
            assert (event["type"], event["data"]["done"]) == ("status", True)
            self.said.append((answer, event["data"]["description"]))

        return emit

    async def get_feedback_by_id(self, rating: str) -> Any:
        return self.rows.get(rating)

    async def get_all_feedback_ids(self) -> list[Any]:
        return [types.SimpleNamespace(id=k, updated_at=r.updated_at) for k, r in self.rows.items()]

    def rate(self, **data: Any) -> None:
        self.rows[ROW] = Row(
            **row(**data), snapshot={"chat": {}}, created_at=int(time.time()), updated_at=2**33
        )


@pytest.fixture
def webui(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> OpenWebUI:
    return OpenWebUI(stack.url, monkeypatch)


def load_function() -> Any:
    """The function as Open WebUI loads it: the text, executed."""
    module = types.ModuleType("function_tuneloop")
    exec(SOURCE, vars(module))
    return vars(module)["Event"]()


def event(name: str, subject: str | None = ROW, kind: str = "feedback") -> dict[str, Any]:
    """An event as Open WebUI gives it to functions."""
    return {
        "schema": "0.12.4",
        "id": "6d3f",
        "event": name,
        "resource": name.rpartition(".")[0],
        "operation": name.rpartition(".")[2],
        "created_at": 1_796_000_000,
        "instance_id": "i",
        "version": "0.12.4",
        "source": "api",
        "actor": {"id": ANN, "role": "user", "type": "user"},
        "subject": None if subject is None else {"type": kind, "id": subject},
        "data": {"rating": 1},
        "message": None,
    }


async def settled(function: Any) -> None:
    if function.sending is not None:
        await asyncio.wait_for(function.sending, 20)


async def test_the_function_sends_a_rating_and_its_deletion(stack: Stack, webui: OpenWebUI) -> None:
    assert SOURCE.splitlines()[:2] == ['"""', "title: tuneloop"]
    function = load_function()
    webui.rate(rating=1)
    await function.event(event=event("feedback.created"))
    await settled(function)
    assert told(stack) == [
        (f"owui-{ROW}-thumb-0", Thumb(up=True)),
        (
            f"owui-{ROW}-comparison-0",
            Comparison(chosen=answer_id(results=1), rejected=(answer_id(OTHER),)),
        ),
    ]
    del webui.rows[ROW]
    await function.event(event=event("feedback.deleted"))
    await settled(function)
    assert told(stack)[2:] == [f"-owui-{ROW}-thumb-0", f"-owui-{ROW}-comparison-0"]
    await function.event(event=event("chat.created", "c", "chat"))
    assert function.waiting == {}


async def test_the_function_tells_when_a_version_that_learned_is_live(
    stack: Stack, webui: OpenWebUI
) -> None:
    function = load_function()
    function.look_seconds = 0.05
    stack.generation.policy_version = 2
    webui.rate(rating=1)
    await function.event(event=event("feedback.created"))
    await settled(function)
    # No version has learned from it, then one that does not serve.
    await asyncio.sleep(0.2)
    stack.learner.effects = [learner_pb2.Effect(policy_version=9, text="answer")]
    await asyncio.sleep(0.2)
    stack.generation.policy_version = 9
    await asyncio.wait_for(function.following, 20)
    answer = {"user_id": ANN, "chat_id": CHAT, "message_id": MESSAGE}
    words = "Version 9 is live. It learned from the rating of this answer."
    assert webui.said == [(answer, words)]

    # Once, also if a comment is added; another thumb is told anew, unless it is deleted before.
    webui.rate(rating=1, comment="no tables")
    await function.event(event=event("feedback.updated"))
    await settled(function)
    assert function.followed == {}
    stack.generation.policy_version = 2
    webui.rate(rating=-1)
    await function.event(event=event("feedback.updated"))
    await settled(function)
    assert list(function.followed) == [ROW]
    del webui.rows[ROW]
    await function.event(event=event("feedback.deleted"))
    await settled(function)
    await asyncio.wait_for(function.following, 20)
    assert len(webui.said) == 1


async def test_the_function_sends_recent_ratings_when_it_starts(
    stack: Stack, webui: OpenWebUI
) -> None:
    webui.rate(rating=-1)
    webui.rows["old"] = Row(**row(rating=1), updated_at=0)
    for started in (
        event("system.startup.completed", None),
        event("function.enabled", "tuneloop", "function"),
    ):
        function = load_function()
        await function.event(event=started, __id__="tuneloop")
        await settled(function)
    assert told(stack) == [(f"owui-{ROW}-thumb-0", Thumb(up=False))]
    assert function.followed == {}, "who rated was told, before the start"
    await function.event(event=event("function.enabled", "other", "function"), __id__="tuneloop")
    assert function.waiting == {}


async def test_the_function_tells_that_all_ratings_of_a_user_are_gone(
    stack: Stack, webui: OpenWebUI
) -> None:
    function = load_function()
    await function.event(event=event("feedback.deleted_all", ANN, "user"))
    await settled(function)
    await function.event(event=event("feedback.deleted_all", "all"))
    await settled(function)
    asked = [c for c in stack.learner.calls if isinstance(c, learner_pb2.ListFeedbackRequest)]
    assert [question.user_hash for question in asked] == [IDS.user_hash("default", ANN), ""]


async def test_the_function_tries_until_a_rating_arrives(
    stack: Stack, webui: OpenWebUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = load_function()
    monkeypatch.setitem(type(function).send_waiting.__globals__, "SHORTEST_WAIT", 0.001)
    webui.unreachable = 3
    webui.rate(rating=1)
    await function.event(event=event("feedback.created"))
    await settled(function)
    assert webui.unreachable == 0
    assert told(stack)[0] == (f"owui-{ROW}-thumb-0", Thumb(up=True))
