"""Feedback in batches, taken back, listed, exported: what the gateway answers."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from support.gateway_fakes import IDS
from support.gateway_stack import Stack

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.feedback import Comparison, Feedback, Thumb
from tuneloop.v1 import learner_pb2, rollout_pb2

ANN = IDS.user_hash("default", "ann")
ONE = IDS.make("chatcmpl", "default", ANN, 2)
THUMB = {"kind": "thumb", "completion_id": ONE, "value": "up"}


def events(stack: Stack) -> list[Any]:
    return stack.bus.streams[subjects.FEEDBACK].events


async def test_a_batch_is_acknowledged_in_order(stack: Stack, http: httpx.AsyncClient) -> None:
    bodies = [THUMB | {"id": f"b{n}", "value": "up" if n % 2 else "down"} for n in range(100)]
    response = await http.post("/v1/feedback/batch", json={"feedback": bodies})
    assert response.status_code == 202
    assert response.json() == {
        "object": "list",
        "data": [
            {"id": f"b{n}", "status": "accepted", "receipt": IDS.receipt("default", f"b{n}")}
            for n in range(100)
        ],
    }
    stored = {f.feedback_id: f for f in (wire.decode_feedback(e.data) for e in events(stack))}
    times = [stored[f"b{n}"].accepted_time for n in range(100)]
    assert times == sorted(set(times)), "the later verdict of a batch is the later one"


async def test_what_is_wrong_in_a_batch_leaves_the_rest(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    batch = [
        THUMB | {"id": "same"},
        "no object",
        THUMB | {"value": "sideways"},
        THUMB | {"id": "same", "value": "down"},
        THUMB | {"completion_id": "chatcmpl-1"},
        THUMB | {"id": "same"},
        {"kind": "comment", "completion_id": f"{ONE}.2", "text": "of no choice"},
    ]
    response = await http.post("/v1/feedback/batch", json={"feedback": batch})
    assert response.status_code == 207
    data = response.json()["data"]
    assert [entry.get("status_code", 202) for entry in data] == [202, 400, 400, 409, 404, 202, 404]
    assert data[2]["error"]["param"] == "value"
    assert data[4]["error"]["code"] == "completion_not_found"
    assert [wire.decode_feedback(e.data).judgement for e in events(stack)] == [Thumb(up=True)]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "feedback"),
        ({"feedback": []}, "feedback"),
        ({"feedback": [THUMB] * 1001}, "feedback"),
        ({"feedback": THUMB}, "feedback"),
        ({"feedback": [THUMB], "id": "x"}, "id"),
    ],
)
async def test_no_batch(http: httpx.AsyncClient, body: Any, param: str) -> None:
    response = await http.post("/v1/feedback/batch", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_a_batch_while_the_bus_is_down(stack: Stack, http: httpx.AsyncClient) -> None:
    stack.bus.go_down()
    response = await http.post("/v1/feedback/batch", json={"feedback": [THUMB, {}]})
    assert response.status_code == 207
    assert [entry["status_code"] for entry in response.json()["data"]] == [503, 400]


async def test_retracted(stack: Stack, http: httpx.AsyncClient) -> None:
    assert (await http.delete("/v1/feedback/gone")).status_code == 404
    assert (await http.delete("/v1/feedback/a.b")).status_code == 400
    assert (await http.post("/v1/feedback", json=THUMB | {"id": "gone"})).status_code == 202
    answers = await asyncio.gather(*(http.delete("/v1/feedback/gone") for _ in range(5)))
    assert {a.status_code for a in answers} == {200}
    assert answers[0].json() == {"id": "gone", "status": "retracted"}
    _, taken = events(stack)
    assert wire.decode_retraction(taken.data).feedback_id == "gone"
    # What forgets the user finds it too.
    of_user = dict(subjects.of_user(ANN))
    assert await stack.bus.purge(subjects.FEEDBACK, of_user[subjects.FEEDBACK]) == 2


async def test_a_retracted_id_is_spent(http: httpx.AsyncClient) -> None:
    body = THUMB | {"id": "once"}
    await http.post("/v1/feedback", json=body)
    await http.delete("/v1/feedback/once")
    for again in (body, body | {"value": "down"}):
        response = await http.post("/v1/feedback", json=again)
        assert response.status_code == 409
        assert response.json()["error"]["code"] == "feedback_retracted"
    read = (await http.get("/v1/feedback/once")).json()
    assert (read["status"], read["kind"], read["value"]) == ("retracted", "thumb", "up")
    assert (await http.post("/v1/feedback", json=body | {"id": "twice"})).status_code == 202


async def test_an_id_that_looks_like_a_retraction(http: httpx.AsyncClient) -> None:
    for feedback_id in ("retracted", "x_retracted", "x"):
        answer = await http.post("/v1/feedback", json=THUMB | {"id": feedback_id})
        assert answer.status_code == 202
    assert (await http.delete("/v1/feedback/x")).status_code == 200
    assert (await http.get("/v1/feedback/retracted")).json()["status"] == "accepted"


async def test_a_retraction_waits_for_the_bus(stack: Stack, http: httpx.AsyncClient) -> None:
    await http.post("/v1/feedback", json=THUMB | {"id": "gone"})
    stack.bus.go_down()
    assert (await http.delete("/v1/feedback/gone")).status_code == 503
    stack.bus.come_back()
    assert (await http.get("/v1/feedback/gone")).json()["status"] == "accepted"
    assert (await http.delete("/v1/feedback/gone")).status_code == 200


def recorded(feedback_id: str, judgement: Any, *known: str) -> learner_pb2.RecordedFeedback:
    feedback = Feedback(
        feedback_id=feedback_id,
        policy="tuneloop",
        tenant="default",
        user_hash=ANN,
        completion_id="one",
        judgement=judgement,
        accepted_time=datetime(2026, 1, 1, tzinfo=UTC),
    )
    chat = rollout_pb2.ChatPrompt(messages=[rollout_pb2.ChatMessage(role="user", content="Hi")])
    return learner_pb2.RecordedFeedback(
        feedback=wire.feedback_to_proto(feedback),
        status="accepted",
        chat=chat if known else None,
        completions=[
            learner_pb2.JudgedCompletion(completion_id=i, text=f"text of {i}", policy_version=2)
            for i in known
        ],
        used_by_versions=[3, 4] if known else [],
    )


async def test_the_list(stack: Stack, http: httpx.AsyncClient) -> None:
    stack.learner.recorded = [
        recorded("b", Comparison(chosen="one", rejected=("two",)), "one"),
        recorded("a", Thumb(up=False)),
    ]
    await http.get("/v1/feedback?kind=thumb&value=down&status=expired&user_hash=abc")
    asked = stack.learner.calls[-1]
    assert (asked.kind, asked.value, asked.status) == ("thumb", "down", "expired")
    assert (asked.user_hash, asked.HasField("policy_version")) == ("abc", False)
    page = (await http.get("/v1/feedback?limit=1&user=ann&policy_version=0")).json()
    asked = stack.learner.calls[-1]
    assert (asked.user_hash, asked.page_size) == (ANN, 1)
    assert (asked.HasField("policy_version"), asked.policy_version) == (True, 0)
    [item] = page["data"]
    assert item["chosen"] == "one"
    assert item["prompt"] == [{"role": "user", "content": "Hi"}]
    assert (item["completion"], item["policy_version"]) == ("text of one", 2)
    assert [c["text"] for c in item["completions"]] == ["text of one", None]
    assert item["used_by_versions"] == [3, 4]
    rest = (await http.get("/v1/feedback", params={"before": page["next"]})).json()
    [item] = rest["data"]
    assert (item["id"], item["value"]) == ("a", "down")
    assert (item["prompt"], item["completion"], item["policy_version"]) == (None, None, None)
    assert rest["next"] is None


async def test_the_list_of_a_tag(stack: Stack, http: httpx.AsyncClient) -> None:
    tagged = recorded("a", Thumb(up=False), "one")
    tagged.tags["feature"] = "search"
    stack.learner.recorded = [tagged]
    tags = {"feature": "search", "equation": "a=b"}
    params = {"tag": [f"{name}={value}" for name, value in tags.items()]}
    [item] = (await http.get("/v1/feedback", params=params)).json()["data"]
    assert item["tags"] == {"feature": "search"}
    assert dict(stack.learner.calls[-1].tags) == tags
    await http.get("/v1/export", params=params | {"kind": "thumbs"})
    assert dict(stack.learner.calls[-1].tags) == tags


@pytest.mark.parametrize(
    "query",
    [
        *("kind=smile", "value=1", "status=new", "limit=0", "limit=1001", "policy_version=-1"),
        *("tag=feature", "tag==search", f"tag=a={'b' * 513}"),
    ],
)
async def test_bad_filters_are_named(http: httpx.AsyncClient, query: str) -> None:
    response = await http.get(f"/v1/feedback?{query}")
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith(query.partition("=")[0])


async def test_export_and_import(stack: Stack, http: httpx.AsyncClient) -> None:
    since = "2026-01-01T00:00:00Z"
    response = await http.get("/v1/export", params={"kind": "demonstrations", "since": since})
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.text.splitlines() == stack.learner.rows
    assert stack.learner.calls[-1].since.seconds == 1767225600
    stack.learner.rows = []
    assert (await http.get("/v1/export?kind=pairs")).text == ""
    early = "?kind=pairs&since=0001-01-01T00:00:00%2B14:00"
    for query in ("", "?kind=comments", "?kind=pairs&format=csv", early):
        assert (await http.get(f"/v1/export{query}")).status_code == 400
    rows = [{"place": "line 1", "row": {"prompt": "a"}}]
    body = {"kind": "thumbs", "rows": rows}
    imported = (await http.post("/v1/import", json=body)).json()
    assert imported == {"kind": "thumbs", "added": 1, "known": 0}
    await stack.servers["learner"].stop()
    assert (await http.get("/v1/export?kind=pairs")).status_code == 503
    assert (await http.get("/v1/feedback")).status_code == 503
    assert (await http.post("/v1/import", json=body)).status_code == 503
