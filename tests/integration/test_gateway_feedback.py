"""Feedback over HTTP: stored before it is acknowledged, once for each id, never forged."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY
from support.gateway_fakes import IDS, SECRET
from support.gateway_stack import Stack

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.bus.jetstream import JetStreamBus
from tuneloop.feedback import Comment, Comparison, Demonstration, Metric, Ranking, Rating, Thumb
from tuneloop.gateway.app import create_app
from tuneloop.gateway.completion_ids import CompletionIds
from tuneloop.gateway.feedback import admission
from tuneloop.gateway.feedback.admission import Bound
from tuneloop.gateway.settings import GatewaySettings
from tuneloop.v1 import learner_pb2

ANN = IDS.user_hash("default", "ann")
ONE = IDS.make("chatcmpl", "default", ANN, 3)
TWO = IDS.make("cmpl", "default", ANN)
THUMB = {"kind": "thumb", "completion_id": ONE, "value": "up"}
METRIC = {"kind": "metric", "completion_id": ONE, "name": "task_solved", "value": True}


def stored(stack: Stack) -> list[Any]:
    return [wire.decode_feedback(e.data) for e in stack.bus.streams[subjects.FEEDBACK].events]


def accepted(kind: str) -> float:
    name = "tuneloop_gateway_feedback_accepted_total"
    return REGISTRY.get_sample_value(name, {"kind": kind}) or 0.0


async def test_feedback_trimmed_from_the_stream_is_found_in_the_ledger(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    receipt = (await http.post("/v1/feedback", json=THUMB)).json()
    (feedback,) = stored(stack)
    recorded = learner_pb2.RecordedFeedback(
        feedback=wire.feedback_to_proto(feedback), status="accepted"
    )
    stack.learner.recorded.append(recorded)
    await stack.bus.purge(subjects.FEEDBACK, "tuneloop.v1.*.feedback.>")
    path = f"/v1/feedback/{receipt['id']}"
    found = (await http.get(path)).json()
    assert (found["status"], found["value"]) == ("accepted", "up")
    assert (await http.delete(path)).json()["status"] == "retracted"
    assert subjects.is_retraction(stack.bus.streams[subjects.FEEDBACK].events[0].subject)
    recorded.status = "retracted"
    assert (await http.get(path)).json()["status"] == "retracted"
    assert (await http.delete(path)).status_code == 200
    assert len(stack.bus.streams[subjects.FEEDBACK].events) == 1
    assert (await http.get("/v1/feedback/fb-never")).status_code == 404


async def test_too_much_feedback_on_one_completion_is_429(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = Bound(events=2, size=10**6, part=None)
    monkeypatch.setitem(admission.BOUNDS, "completion", bound)
    statuses = [(await http.post("/v1/feedback", json=THUMB)).status_code for _ in range(3)]
    assert statuses == [202, 202, 429]
    batch = {"feedback": [THUMB, {**THUMB, "completion_id": TWO}]}
    answer = await http.post("/v1/feedback/batch", json=batch)
    assert answer.status_code == 207
    refused, taken = answer.json()["data"]
    assert (refused["status_code"], taken["status"]) == (429, "accepted")


async def test_a_thumb_on_an_answer_is_stored(stack: Stack, http: httpx.AsyncClient) -> None:
    before = accepted("thumb")
    chat = {"model": "tuneloop", "messages": [{"role": "user", "content": "hi"}], "user": "ann"}
    completion_id = (await http.post("/v1/chat/completions", json=chat)).json()["id"]
    body = {
        "kind": "thumb",
        "completion_id": completion_id,
        "value": "down",
        "metadata": {"a": "b"},
    }
    response = await http.post("/v1/feedback", json=body)
    assert response.status_code == 202
    assert response.json()["status"] == "accepted"
    (feedback,) = stored(stack)
    assert feedback.feedback_id == response.json()["id"]
    assert feedback.judgement == Thumb(up=False)
    assert feedback.completion_id == completion_id
    assert (feedback.policy, feedback.tenant, feedback.user_hash) == ("tuneloop", "default", ANN)
    assert feedback.metadata == {"a": "b"}
    (event,) = stack.bus.streams[subjects.FEEDBACK].events
    assert event.subject == f"tuneloop.v1.tuneloop.feedback.{feedback.feedback_id}.thumb.{ANN}"
    assert accepted("thumb") == before + 1


@pytest.mark.parametrize(
    ("body", "judgement", "about"),
    [
        (THUMB, Thumb(up=True), ONE),
        ({"kind": "rating", "completion_id": ONE, "value": 4}, Rating(value=4.0), ONE),
        (
            {"kind": "comparison", "chosen": f"{ONE}.2", "rejected": [ONE, TWO]},
            Comparison(chosen=f"{ONE}.2", rejected=(ONE, TWO)),
            f"{ONE}.2",
        ),
        (
            {"kind": "comparison", "completion_id": TWO, "chosen": ONE, "rejected": [TWO]},
            Comparison(chosen=ONE, rejected=(TWO,)),
            ONE,
        ),
        ({"kind": "ranking", "ranking": [TWO, ONE]}, Ranking(completion_ids=(TWO, ONE)), TWO),
        (
            {"kind": "demonstration", "completion_id": ONE, "text": "better"},
            Demonstration(text="better"),
            ONE,
        ),
        ({"kind": "comment", "completion_id": ONE, "text": "hm"}, Comment(text="hm"), ONE),
        (
            {"kind": "metric", "completion_id": ONE, "name": "task_solved", "value": False},
            Metric(name="task_solved", value=False),
            ONE,
        ),
        (
            {"kind": "metric", "completion_id": TWO, "name": "seconds", "value": 3},
            Metric(name="seconds", value=3.0),
            TWO,
        ),
    ],
    # The ids in it are others in each process.
    ids=[
        *("thumb", "rating", "comparison", "repeated", "ranking", "demonstration", "comment"),
        *("boolean metric", "numeric metric"),
    ],
)
async def test_every_kind_is_stored_and_read_back(
    stack: Stack, http: httpx.AsyncClient, body: dict[str, Any], judgement: Any, about: str
) -> None:
    response = await http.post("/v1/feedback", json=body | {"id": "mine_1", "user": "bob"})
    assert response.status_code == 202, response.text
    receipt = IDS.receipt("default", "mine_1")
    assert response.json() == {"id": "mine_1", "status": "accepted", "receipt": receipt}
    (feedback,) = stored(stack)
    assert feedback.judgement == judgement
    assert feedback.completion_id == about
    assert feedback.user_hash == IDS.user_hash("default", "bob")
    read = (await http.get("/v1/feedback/mine_1")).json()
    assert read["kind"] == body["kind"]
    assert read["completion_id"] == about
    given = {k: v for k, v in body.items() if k not in ("kind", "completion_id")}
    assert given.items() <= read.items()


async def test_a_boolean_is_not_the_number_it_equals(stack: Stack, http: httpx.AsyncClient) -> None:
    first = await http.post("/v1/feedback", json=METRIC | {"id": "once", "value": True})
    assert first.status_code == 202
    again = await http.post("/v1/feedback", json=METRIC | {"id": "once", "value": True})
    assert again.status_code == 202
    other = await http.post("/v1/feedback", json=METRIC | {"id": "once", "value": 1})
    assert (other.status_code, other.json()["error"]["code"]) == (409, "conflict")
    assert (await http.get("/v1/feedback/once")).json()["value"] is True


async def test_the_same_again_is_the_same_answer(stack: Stack, http: httpx.AsyncClient) -> None:
    body = THUMB | {"id": "once", "metadata": {"b": "1", "a": "2"}}
    answers = await asyncio.gather(*(http.post("/v1/feedback", json=body) for _ in range(10)))
    assert {a.status_code for a in answers} == {202}
    assert len({a.text for a in answers}) == 1
    assert len(stored(stack)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"value": "down"},
        {"user": "bob"},
        {"completion_id": TWO},
        {"kind": "rating", "value": 1},
        {"metadata": {"a": "b"}},
    ],
)
async def test_other_feedback_under_the_same_id_is_a_conflict(
    stack: Stack, http: httpx.AsyncClient, change: dict[str, Any]
) -> None:
    assert (await http.post("/v1/feedback", json=THUMB | {"id": "once"})).status_code == 202
    response = await http.post("/v1/feedback", json=THUMB | {"id": "once"} | change)
    assert response.status_code == 409
    assert response.json()["error"]["code"] == "conflict"
    assert response.json()["error"]["param"] == "id"
    assert len(stored(stack)) == 1


async def test_without_an_id_each_call_is_its_own(stack: Stack, http: httpx.AsyncClient) -> None:
    ids = {(await http.post("/v1/feedback", json=THUMB)).json()["id"] for _ in range(3)}
    assert len(ids) == 3
    assert len(stored(stack)) == 3


FOREIGN = CompletionIds(b"another gateway's secret").make("chatcmpl", "default", ANN)
FORGED = f"{ONE[:-1]}{'0' if ONE[-1] != '0' else '1'}"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (THUMB | {"completion_id": FORGED}, "completion_id"),
        (THUMB | {"completion_id": FOREIGN}, "completion_id"),
        (THUMB | {"completion_id": "chatcmpl-123"}, "completion_id"),
        ({"kind": "comparison", "chosen": ONE, "rejected": [FORGED]}, "rejected"),
        ({"kind": "comparison", "chosen": FORGED, "rejected": [ONE]}, "chosen"),
        (
            {"kind": "comparison", "completion_id": ONE, "chosen": FORGED, "rejected": [ONE]},
            "chosen",
        ),
        ({"kind": "ranking", "ranking": [ONE, FOREIGN]}, "ranking"),
    ],
)
async def test_ids_that_were_never_given_are_not_found(
    stack: Stack, http: httpx.AsyncClient, body: dict[str, Any], param: str
) -> None:
    response = await http.post("/v1/feedback", json=body)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "completion_not_found"
    assert response.json()["error"]["param"] == param
    assert stored(stack) == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "kind"),
        ({"kind": "smile"}, "kind"),
        ({"kind": "thumb", "value": "up"}, "completion_id"),
        ({"kind": "thumb", "completion_id": ONE}, "value"),
        (THUMB | {"value": "sideways"}, "value"),
        (THUMB | {"value": 1}, "value"),
        (THUMB | {"value": True}, "value"),
        (THUMB | {"value": ["up"]}, "value"),
        (THUMB | {"completion_id": ""}, "completion_id"),
        (THUMB | {"completion_id": "x" * 300}, "completion_id"),
        (THUMB | {"text": "nice"}, "text"),
        (THUMB | {"chosen": ONE}, "chosen"),
        (THUMB | {"vlaue": "up"}, "vlaue"),
        (THUMB | {"id": ""}, "id"),
        (THUMB | {"id": "a.b"}, "id"),
        (THUMB | {"id": "*"}, "id"),
        (THUMB | {"id": "x" * 129}, "id"),
        (THUMB | {"user": "\ud800"}, "user"),
        (THUMB | {"metadata": {"a": 1}}, "metadata.a"),
        (THUMB | {"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"kind": "rating", "completion_id": ONE, "value": "5"}, "value"),
        ({"kind": "rating", "completion_id": ONE, "value": float("inf")}, "value"),
        ({"kind": "rating", "completion_id": ONE, "value": float("nan")}, "value"),
        ({"kind": "comparison", "chosen": ONE}, "rejected"),
        (
            {"kind": "comparison", "completion_id": f"{ONE}.1", "chosen": ONE, "rejected": [TWO]},
            "completion_id",
        ),
        ({"kind": "comparison", "chosen": ONE, "rejected": []}, "rejected"),
        ({"kind": "comparison", "chosen": ONE, "rejected": [ONE]}, "rejected"),
        ({"kind": "comparison", "chosen": ONE, "rejected": [TWO, TWO]}, "rejected"),
        ({"kind": "ranking", "ranking": [ONE]}, "ranking"),
        ({"kind": "ranking", "ranking": [ONE, ONE]}, "ranking"),
        ({"kind": "comment", "completion_id": ONE, "text": ""}, "text"),
        ({"kind": "demonstration", "completion_id": ONE, "text": "x" * 40_000}, "text"),
        ({"kind": "demonstration", "completion_id": ONE, "text": " \n\t"}, "text"),
        ({"kind": "comment", "completion_id": ONE, "text": "\u3000"}, "text"),
        (THUMB | {"name": "solved"}, "name"),
        (METRIC | {"name": None}, "name"),
        (METRIC | {"name": ""}, "name"),
        (METRIC | {"name": "a" * 65}, "name"),
        (METRIC | {"name": "solved\n"}, "name"),
        (METRIC | {"name": "task solved"}, "name"),
        (METRIC | {"name": "\ud800"}, "name"),
        (METRIC | {"name": 7}, "name"),
        (METRIC | {"value": None}, "value"),
        (METRIC | {"value": "up"}, "value"),
        (METRIC | {"value": [1]}, "value"),
        (METRIC | {"value": float("nan")}, "value"),
        (METRIC | {"value": float("-inf")}, "value"),
        (METRIC | {"value": 1e9}, "value"),
        (METRIC | {"value": 10**400}, "value"),
        (METRIC | {"completion_id": None}, "completion_id"),
        (METRIC | {"text": "hm"}, "text"),
    ],
)
async def test_bad_feedback_names_the_field(
    stack: Stack, http: httpx.AsyncClient, body: dict[str, Any], param: str
) -> None:
    headers = {"content-type": "application/json"}
    response = await http.post("/v1/feedback", content=json.dumps(body), headers=headers)
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert error["param"] == param
    assert stored(stack) == []


async def test_bus_down(stack: Stack, http: httpx.AsyncClient) -> None:
    stack.bus.go_down()
    response = await http.post("/v1/feedback", json=THUMB | {"id": "later"})
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["code"] == "unavailable"
    assert (await http.get("/v1/feedback/later")).status_code == 503
    # Answers still flow, and readiness says what does not.
    chat = {"model": "tuneloop", "messages": [{"role": "user", "content": "hi"}]}
    assert (await http.post("/v1/chat/completions", json=chat)).status_code == 200
    ready = await http.get("/readyz")
    assert (ready.status_code, ready.json()["feedback"]) == (200, "unavailable")
    stack.bus.come_back()
    assert (await http.post("/v1/feedback", json=THUMB | {"id": "later"})).status_code == 202


async def test_unknown_feedback(http: httpx.AsyncClient) -> None:
    response = await http.get("/v1/feedback/never")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "feedback_not_found"
    assert (await http.get("/v1/feedback/a.b")).status_code == 400


async def test_on_jetstream_racing_repeats_store_one(nats_server: Any) -> None:
    """The same over a real nats-server, which is killed and comes back in between."""
    bus = await JetStreamBus.connect(nats_server.url, name="test")
    settings = GatewaySettings(secret=SECRET)
    app = create_app(settings, bus)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http,
    ):
        up = THUMB | {"id": "race"}
        down = up | {"value": "down"}
        bodies = [up, down] * 10
        answers = await asyncio.gather(*(http.post("/v1/feedback", json=b) for b in bodies))
        assert sorted(a.status_code for a in answers) == [202] * 10 + [409] * 10
        winner = (await http.get("/v1/feedback/race")).json()["value"]
        assert {
            a.status_code for a, b in zip(answers, bodies, strict=True) if b["value"] == winner
        } == {202}
        nats_server.kill()
        assert (await http.post("/v1/feedback", json=up)).status_code == 503
        nats_server.start()
        async with asyncio.timeout(30):
            while not bus.connected:
                await asyncio.sleep(0.05)
        assert (await http.get("/v1/feedback/race")).json()["value"] == winner
        again = await http.post("/v1/feedback", json=up | {"value": winner})
        assert again.status_code == 202
        gone = await asyncio.gather(*(http.delete("/v1/feedback/race") for _ in range(5)))
        assert {a.status_code for a in gone} == {200}
        nats_server.kill()
        nats_server.start()
        async with asyncio.timeout(30):
            while (read := await http.get("/v1/feedback/race")).status_code == 503:
                await asyncio.sleep(0.05)
        assert (read.json()["status"], read.json()["value"]) == ("retracted", winner)
        late = await http.post("/v1/feedback", json=up | {"value": winner})
        assert (late.status_code, late.json()["error"]["code"]) == (409, "feedback_retracted")
    await bus.close()
