"""Sessions over HTTP: where requests name one, and feedback that judges one."""

import asyncio
from typing import Any

import httpx
import pytest
from support.gateway_fakes import IDS
from support.gateway_stack import Stack

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.feedback import Metric, Rating, Thumb
from tuneloop.gateway.feedback import admission
from tuneloop.gateway.feedback.admission import Bound
from tuneloop.v1 import learner_pb2

CHAT: dict[str, Any] = {"model": "tuneloop", "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": "tuneloop", "prompt": ["a", "b"]}
THUMB = {"kind": "thumb", "session_id": "chat-7", "value": "up"}
METRIC = {"kind": "metric", "session_id": "chat-7", "name": "task_solved", "value": True}
ONE = IDS.make("chatcmpl", "default", IDS.user_hash("default", "ann"))
LONG = "x" * 128
UMLAUT = "Gespräch 7"


def stored(stack: Stack) -> list[Any]:
    return [wire.decode_feedback(e.data) for e in stack.bus.streams[subjects.FEEDBACK].events]


@pytest.mark.parametrize(
    ("change", "header", "session"),
    [
        ({}, None, ""),
        ({"session_id": None, "metadata": {"session_id": None}}, None, ""),
        ({"session_id": LONG}, None, LONG),
        ({"metadata": {"session_id": UMLAUT}}, None, UMLAUT),
        ({}, UMLAUT, UMLAUT),
        ({"session_id": "body", "metadata": {"session_id": "metadata"}}, "header", "body"),
        ({"metadata": {"session_id": "metadata"}}, "header", "metadata"),
    ],
)
@pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)]
)
async def test_a_request_names_its_session_in_one_of_three_places(
    stack: Stack,
    http: httpx.AsyncClient,
    path: str,
    body: dict[str, Any],
    change: dict[str, Any],
    header: str | None,
    session: str,
) -> None:
    headers = {} if header is None else {"x-session-id": header.encode()}
    response = await http.post(path, json=body | change, headers=headers)
    assert response.status_code == 200, response.text
    assert {request.session_id for request in stack.generation.requests} == {session}


@pytest.mark.parametrize(
    ("change", "header", "param"),
    [
        ({"session_id": ""}, None, "session_id"),
        ({"session_id": "x" * 129}, None, "session_id"),
        ({"session_id": "a\nb"}, None, "session_id"),
        ({"session_id": "a\x85b"}, None, "session_id"),
        ({"session_id": 7}, None, "session_id"),
        ({"metadata": {"session_id": 7}}, None, "metadata.session_id"),
        ({"metadata": {"session_id": "\x00"}}, "good", "metadata.session_id"),
        ({}, "x" * 129, "x-session-id"),
        ({}, "", "x-session-id"),
    ],
)
async def test_a_bad_session_is_refused_by_the_name_of_its_place(
    stack: Stack, http: httpx.AsyncClient, change: dict[str, Any], header: str | None, param: str
) -> None:
    headers = {} if header is None else {"x-session-id": header}
    response = await http.post("/v1/chat/completions", json=CHAT | change, headers=headers)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert stack.generation.requests == []


async def test_one_idempotency_key_is_of_one_session(stack: Stack, http: httpx.AsyncClient) -> None:
    headers = {"idempotency-key": "k", "x-session-id": "a"}
    first = await http.post("/v1/chat/completions", json=CHAT, headers=headers)
    again = await http.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert again.json() == first.json()
    other = await http.post(
        "/v1/chat/completions", json=CHAT, headers=headers | {"x-session-id": "b"}
    )
    assert (other.status_code, other.json()["error"]["param"]) == (409, "Idempotency-Key")
    assert len(stack.generation.requests) == 1


@pytest.mark.parametrize(
    ("body", "judgement"),
    [
        (THUMB, Thumb(up=True)),
        ({"kind": "rating", "session_id": "chat-7", "value": 4}, Rating(value=4.0)),
        (METRIC, Metric(name="task_solved", value=True)),
    ],
)
async def test_a_session_is_judged_read_back_and_the_judgement_retracted(
    stack: Stack, http: httpx.AsyncClient, body: dict[str, Any], judgement: Any
) -> None:
    full = body | {"id": "mine", "user": "ann", "metadata": {"a": "b"}}
    answers = await asyncio.gather(*(http.post("/v1/feedback", json=full) for _ in range(5)))
    assert {answer.status_code for answer in answers} == {202}
    (feedback,) = stored(stack)
    assert (feedback.session_id, feedback.completion_id) == ("chat-7", "")
    assert feedback.judgement == judgement
    assert feedback.user_hash == IDS.user_hash("default", "ann")
    assert (feedback.api_key_id, feedback.metadata) == ("local", {"a": "b"})
    read = (await http.get("/v1/feedback/mine")).json()
    assert (read["session_id"], read["completion_id"]) == ("chat-7", None)
    other = await http.post("/v1/feedback", json=full | {"session_id": "chat-8"})
    assert other.status_code == 409
    assert (await http.delete("/v1/feedback/mine")).json()["status"] == "retracted"
    assert (await http.get("/v1/feedback/mine")).json()["status"] == "retracted"


async def test_without_a_name_nobody_in_particular_judges_a_session(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    assert (await http.post("/v1/feedback", json=THUMB)).status_code == 202
    assert stored(stack)[0].user_hash == IDS.user_hash("default", None)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (THUMB | {"completion_id": ONE}, "session_id"),
        (THUMB | {"session_id": ""}, "session_id"),
        (THUMB | {"session_id": "a\tb"}, "session_id"),
        (THUMB | {"session_id": "x" * 129}, "session_id"),
        (THUMB | {"session_id": None}, "completion_id"),
        (THUMB | {"value": None}, "value"),
        ({"kind": "comment", "session_id": "a", "text": "hm"}, "session_id"),
        ({"kind": "demonstration", "session_id": "a", "text": "hm"}, "session_id"),
        ({"kind": "ranking", "session_id": "a", "ranking": [ONE, f"{ONE}.1"]}, "session_id"),
        ({"kind": "comparison", "session_id": "a", "chosen": ONE, "rejected": []}, "session_id"),
        (METRIC | {"name": None}, "name"),
    ],
)
async def test_bad_feedback_on_a_session_names_the_field(
    stack: Stack, http: httpx.AsyncClient, body: dict[str, Any], param: str
) -> None:
    response = await http.post("/v1/feedback", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert stored(stack) == []


async def test_too_much_feedback_on_one_session_is_429(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(admission.BOUNDS, "session", Bound(events=2, size=10**6, part=None))
    statuses = [(await http.post("/v1/feedback", json=THUMB)).status_code for _ in range(3)]
    assert statuses == [202, 202, 429]
    other = await http.post("/v1/feedback", json=THUMB | {"session_id": "chat-8"})
    assert other.status_code == 202


async def test_a_session_is_looked_up_and_forgotten_by_its_id(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    await http.post("/v1/feedback", json=THUMB)
    (feedback,) = stored(stack)
    recorded = learner_pb2.RecordedFeedback(
        feedback=wire.feedback_to_proto(feedback), status="accepted", used_by_versions=[2]
    )
    for turn in ("c1", "c2"):
        recorded.completions.add(completion_id=turn, text=f"text of {turn}", policy_version=1)
    stack.learner.recorded.append(recorded)
    found = (await http.get("/v1/sessions/chat%2F7")).json()
    assert found["id"] == stack.learner.calls[-1].session_id == "chat/7"
    assert stack.learner.calls[-1].tenant == "default"
    [turn] = found["turns"]
    assert (turn["completion_id"], turn["used_by_versions"]) == ("c1", [2])
    [item] = found["feedback"]
    assert (item["session_id"], item["completion_id"], item["policy_version"]) == (
        "chat-7",
        None,
        1,
    )
    assert item["completion"] == "text of c2"
    assert [completion["completion_id"] for completion in item["completions"]] == ["c1", "c2"]
    assert (found["policy"], found["rebuild_from"]) == ({"direct": [2], "descended": [3]}, 1)
    gone = (await http.delete("/v1/sessions/chat%2F7")).json()
    assert (gone["id"], gone["rollouts_removed"], gone["policy_versions"]) == ("chat/7", 3, [2])
    assert "stay in the stream of rollouts" in gone["note"]
    for method in ("GET", "DELETE"):
        for bad in ("", "x" * 129, "a%09b"):
            refused = await http.request(method, f"/v1/sessions/{bad}")
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "session_id")
