"""`POST /v1/signals`: what is accepted, counted once, refused and switched off."""

from typing import Any

import httpx
import pytest
from support.gateway_fakes import IDS
from support.gateway_stack import Stack

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.feedback import FollowUpLabel, Signal, SignalKind, signal_id
from tuneloop.gateway.feedback import admission
from tuneloop.gateway.feedback.admission import Bound

ANN = IDS.user_hash("default", "ann")
ONE = IDS.make("chatcmpl", "default", ANN)
TWO = IDS.make("cmpl", "default", ANN)
COPIED = {"kind": "copied", "completion_id": ONE}
EDITED = {"kind": "edited", "completion_id": ONE, "distance": 0.25}


def stored(stack: Stack) -> list[Signal]:
    return [wire.decode_signal(e.data) for e in stack.bus.streams[subjects.SIGNALS].events]


async def post(http: httpx.AsyncClient, *signals: dict[str, Any]) -> httpx.Response:
    return await http.post("/v1/signals", json={"signals": list(signals)})


async def test_every_kind_is_stored_for_the_user_of_the_completion(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    bodies = [
        {"kind": kind, "completion_id": ONE} | ({"distance": 0.5} if kind == "edited" else {})
        for kind in SignalKind
    ]
    response = await post(http, *bodies, COPIED | {"user": "bob", "metadata": {"place": "inbox"}})
    assert response.status_code == 202, response.text
    assert [entry["status"] for entry in response.json()["data"]] == ["accepted"] * 7
    *of_ann, of_bob = stored(stack)
    assert [signal.kind for signal in of_ann] == list(SignalKind)
    assert {(s.user_hash, s.completion_id, s.api_key_id) for s in of_ann} == {(ANN, ONE, "local")}
    assert {s.kind: s.distance for s in of_ann}[SignalKind.EDITED] == 0.5
    assert of_bob.user_hash == IDS.user_hash("default", "bob")
    assert of_bob.metadata == {"place": "inbox"}
    subject = subjects.signal("tuneloop", "copied", ANN)
    assert stack.bus.streams[subjects.SIGNALS].events[0].subject == subject


async def test_a_repeat_counts_once_of_each_user(stack: Stack, http: httpx.AsyncClient) -> None:
    first = await post(http, COPIED)
    assert first.json()["data"][0]["id"] == signal_id(ONE, SignalKind.COPIED)
    await post(http, COPIED, COPIED)
    assert len(stored(stack)) == 1
    await post(http, COPIED | {"completion_id": TWO}, COPIED | {"user": "bob"})
    assert len(stored(stack)) == 3
    named = COPIED | {"id": "mine-1"}
    assert (await post(http, named, named)).json()["data"][1]["id"] == "mine-1"
    await post(http, named | {"user": "bob"})
    assert [s.signal_id for s in stored(stack)[3:]] == ["mine-1", "mine-1"]


@pytest.mark.parametrize(
    ("signal", "status", "param"),
    [
        (COPIED | {"kind": "liked"}, 400, "signals[0].kind"),
        (COPIED | {"kind": "complained"}, 400, "signals[0].kind"),
        (COPIED | {"distance": 0.1}, 400, "distance"),
        (EDITED | {"distance": None}, 400, "distance"),
        (EDITED | {"distance": 1.5}, 400, "signals[0].distance"),
        (EDITED | {"text": "the answer"}, 400, "signals[0].text"),
        (COPIED | {"id": "a b"}, 400, "id"),
        (COPIED | {"completion_id": f"{ONE}.1"}, 404, "completion_id"),
        (COPIED | {"completion_id": "chatcmpl-" + "0" * 60}, 404, "completion_id"),
    ],
)
async def test_one_that_is_wrong_refuses_all(
    stack: Stack, http: httpx.AsyncClient, signal: dict[str, Any], status: int, param: str
) -> None:
    response = await post(http, signal, COPIED)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)
    assert stored(stack) == []


@pytest.mark.parametrize("label", FollowUpLabel)
async def test_labels_of_follow_ups_come_from_no_client(
    stack: Stack, http: httpx.AsyncClient, label: FollowUpLabel
) -> None:
    refused = await post(http, COPIED | {"kind": label})
    message = refused.json()["error"]["message"]
    assert refused.status_code == 400
    assert all(kind in message for kind in SignalKind), message
    assert stored(stack) == []


async def test_a_request_has_1_to_100_signals(stack: Stack, http: httpx.AsyncClient) -> None:
    assert (await post(http)).status_code == 400
    assert (await post(http, *[COPIED] * 101)).status_code == 400
    assert (await post(http, *[COPIED] * 100)).status_code == 202
    assert len(stored(stack)) == 1


async def test_too_many_of_one_user_are_429_and_others_go_on(
    stack: Stack, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(admission.SIGNAL_BOUNDS, "user", Bound(events=2, size=10**6, part=None))
    assert (await post(http, COPIED, EDITED)).status_code == 202
    refused = await post(http, COPIED | {"kind": "continued"})
    assert refused.status_code == 429
    assert "signals of one user: at most 2 in an hour" in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) > 0
    assert (await post(http, COPIED | {"user": "bob"})).status_code == 202
    thumb = {"kind": "thumb", "completion_id": ONE, "value": "up"}
    assert (await http.post("/v1/feedback", json=thumb)).status_code == 202
    assert len(stored(stack)) == 3


async def test_while_the_bus_is_down_nothing_is_acknowledged(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    stack.bus.go_down()
    assert (await post(http, COPIED)).status_code == 503
    stack.bus.come_back()
    assert (await post(http, COPIED)).status_code == 202


@pytest.mark.gateway(signals="off")
async def test_the_switch_refuses_them_and_names_itself(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    refused = await post(http, COPIED)
    assert refused.status_code == 403
    assert "TUNELOOP_GATEWAY_SIGNALS" in refused.json()["error"]["message"]
    assert stored(stack) == []
