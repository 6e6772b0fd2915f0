"""The client's retries and errors, without a network: both twins over one scripted transport."""

import inspect
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from tuneloop import errors
from tuneloop.client import AsyncClient, Client, Receipt
from tuneloop.client.exceptions import error_of_status, error_of_type
from tuneloop.gateway.errors import status_of_error

Handler = Callable[[httpx.Request], httpx.Response]
CLIENTS = [Client, AsyncClient]


async def done(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("tuneloop.client.synchronous.time.sleep", slept.append)
    monkeypatch.setattr("tuneloop.client.asynchronous.asyncio.sleep", sleep)
    return slept


def client_over(kind: type, handler: Handler, **options: Any) -> Any:
    return kind("http://tuneloop.test/v1/", transport=httpx.MockTransport(handler), **options)


def refusal(status: int, headers: dict[str, str] | None = None, **details: Any) -> httpx.Response:
    error = {"message": "no", "type": "x", "param": None, "code": None, **details}
    return httpx.Response(status, json={"error": error}, headers=headers)


def scripted(*replies: httpx.Response | Exception) -> tuple[Handler, list[httpx.Request]]:
    waiting: Iterator[httpx.Response | Exception] = iter(replies)
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        reply = next(waiting)
        if isinstance(reply, Exception):
            raise reply
        return reply

    return handler, seen


STORED = {"id": "fb-1", "status": "accepted"}
REACH = {
    "id": "fb",
    "kind": "thumb",
    "status": "accepted",
    "accepted_time": "2026-01-01T00:00:00Z",
    "policy_versions": [12],
    "serving_version": 13,
    "is_serving": True,
}


@pytest.mark.parametrize("kind", CLIENTS)
async def test_retries_send_the_same_request_again(kind: type, pauses: list[float]) -> None:
    handler, seen = scripted(
        httpx.ConnectError("refused"),
        refusal(429, {"retry-after": "3"}),
        refusal(503),
        httpx.Response(202, json=STORED),
    )
    client = client_over(kind, handler, max_retries=3)
    receipt = await done(client.thumb("chatcmpl-1", "up"))
    assert receipt == Receipt(id="fb-1", status="accepted")
    assert pauses[1] == 3.0
    assert 0.3 < pauses[0] <= 0.5 < 1.5 <= pauses[2] <= 2.0
    assert len({request.content for request in seen}) == 1
    assert len({request.headers["idempotency-key"] for request in seen}) == 1
    assert seen[0].url == "http://tuneloop.test/v1/feedback"
    body = json.loads(seen[0].content)
    assert body.pop("id").startswith("fb-")
    assert body == {"kind": "thumb", "completion_id": "chatcmpl-1", "value": "up"}


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (lambda: refusal(400, param="temperature"), errors.InvalidRequest),
        (lambda: refusal(500), errors.TuneloopError),
        (lambda: refusal(429, {"retry-after": "3600"}), errors.Overloaded),
        (lambda: httpx.ReadTimeout("late"), errors.Unavailable),
        (lambda: httpx.Response(307, headers={"location": "/"}), errors.TuneloopError),
    ],
)
async def test_what_is_not_tried_again(
    kind: type,
    reply: Callable[[], httpx.Response | Exception],
    error: type[Exception],
    pauses: list[float],
) -> None:
    handler, seen = scripted(reply())
    with pytest.raises(error):
        await done(client_over(kind, handler).policies())
    assert (len(seen), pauses) == (1, [])


@pytest.mark.parametrize("kind", CLIENTS)
async def test_retries_end(kind: type, pauses: list[float]) -> None:
    handler, seen = scripted(*[httpx.RemoteProtocolError("cut")] * 3)
    with pytest.raises(errors.Unavailable, match=r"no answer from http://tuneloop\.test: cut"):
        await done(client_over(kind, handler).policies())
    assert len(seen) == 3


def test_errors_are_the_gateways_the_other_way_round() -> None:
    for gateways, (status, error_type) in status_of_error.items():
        # What the gateway tells apart further has the same status, and its own code.
        error = next(kind for kind in gateways.__mro__ if kind.__module__ == "tuneloop.errors")
        assert error_of_status.get(status, error) is error
        if error is gateways and error not in (
            errors.NotFound,
            errors.FailedPrecondition,
            errors.TuneloopError,
        ):
            assert error_of_type[error_type] is error


def test_error_details() -> None:
    details = {"message": "bad", "param": "messages[0].role", "code": "invalid_request"}
    handler, _ = scripted(refusal(400, **details))
    with pytest.raises(errors.InvalidRequest, match="bad") as caught:
        client_over(Client, handler).chat("hello")
    assert (caught.value.param, caught.value.reason) == ("messages[0].role", "INVALID_REQUEST")


def test_a_date_to_come_back_at(pauses: list[float]) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    handler, _ = scripted(refusal(503, {"retry-after": later}), httpx.Response(202, json=STORED))
    client_over(Client, handler).give({"kind": "thumb"})
    assert 25 < pauses[0] <= 30


@pytest.mark.parametrize("body", ["<html>", "[]", '{"data": 3}'])
def test_another_service_at_the_address(body: str) -> None:
    handler, _ = scripted(httpx.Response(200, text=body))
    with pytest.raises(errors.CorruptData, match="not as tuneloop does"):
        client_over(Client, handler).policies()
    handler, _ = scripted(httpx.Response(502, text=body))
    with pytest.raises(errors.Unavailable, match="answered with status 502"):
        client_over(Client, handler, max_retries=0).policies()


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    handler, seen = scripted(*[httpx.Response(200, json={})] * 2)
    monkeypatch.setenv("TUNELOOP_URL", "http://elsewhere.test:9000")
    monkeypatch.setenv("TUNELOOP_API_KEY", "tl-secret")
    Client(transport=httpx.MockTransport(handler)).request("GET", "/v1/learner")
    Client("http://here.test", api_key="mine", transport=httpx.MockTransport(handler)).request(
        "GET", "/v1/learner"
    )
    assert [(r.url.host, r.headers["authorization"]) for r in seen] == [
        ("elsewhere.test", "Bearer tl-secret"),
        ("here.test", "Bearer mine"),
    ]
    assert "idempotency-key" not in seen[0].headers


def test_a_large_batch_goes_in_parts() -> None:
    sizes: list[int] = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies = json.loads(request.content)["feedback"]
        sizes.append(len(bodies))
        data = [{"id": body["id"], "status": "accepted"} for body in bodies]
        data[0] = {"error": {"message": "no", "type": "conflict_error"}, "status_code": 409}
        return httpx.Response(207, json={"object": "list", "data": data})

    client = client_over(Client, handler, user="ann")
    outcomes = client.feedback([{"kind": "thumb", "id": f"f{i}"} for i in range(1001)])
    assert sizes == [1000, 1]
    assert [type(o).__name__ for o in outcomes].count("Conflict") == 2
    assert outcomes[1] == Receipt(id="f1", status="accepted")


def test_filters_and_paths() -> None:
    item = {"id": "a/b", "kind": "thumb", "status": "accepted", "completion_id": "c"}
    item |= {"accepted_time": "2026-01-01T00:00:00Z", "value": "up", "something_new": 1}
    page = {"object": "list", "data": [item], "next": "cursor"}
    handler, seen = scripted(
        httpx.Response(200, json=page),
        httpx.Response(200, json=item),
        httpx.Response(200, json={"id": "a/b", "status": "retracted"}),
        httpx.Response(200, json={"id": "fb", "status": "retracted"}),
        httpx.Response(200, json=REACH),
    )
    client = client_over(Client, handler)
    listed = client.list_feedback(kind="thumb", limit=5)
    assert (listed.next, listed.items[0].value) == ("cursor", "up")
    assert client.get_feedback(listed.items[0]).id == "a/b"
    assert client.retract("a/b").status == "retracted"
    assert client.retract("fb.00ff").status == "retracted"
    reach = client.get_receipt(Receipt(id="fb", status="accepted", receipt="fb.00ff"))
    assert (reach.policy_versions, reach.is_serving) == ([12], True)
    assert [f"{r.method} {r.url.raw_path.decode()}" for r in seen] == [
        "GET /v1/feedback?kind=thumb&limit=5",
        "GET /v1/feedback/a%2Fb",
        "DELETE /v1/feedback/a%2Fb",
        "DELETE /v1/receipts/fb.00ff",
        "GET /v1/receipts/fb.00ff",
    ]
