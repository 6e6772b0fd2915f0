"""What callers see when something behind the gateway fails: what failed, and nothing of how."""

import re
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import pytest
from support.gateway_fakes import IDS, FakeLearner
from support.gateway_stack import running_gateway

from tuneloop.bus.memory import MemoryBus
from tuneloop.errors import InvalidRequest, TuneloopError, Unavailable
from tuneloop.gateway.errors import UNKNOWN_FAILURE, shown_message

INTERNALS = re.compile(
    r"\d+\.\d+\.\d+\.\d+|:\d{2,5}|://|/\w+/\w+|ipv[46]|connection refused|traceback|errno|psycopg|"
    r"sqlalchemy|nats:|grpc|backends|channel|\.py",
    re.IGNORECASE,
)
THUMB = {
    "kind": "thumb",
    "value": "up",
    "completion_id": IDS.make("chatcmpl", "default", IDS.user_hash("default", None)),
}
CHAT = {"model": "tuneloop", "messages": [{"role": "user", "content": "hi"}]}
CALLS: list[tuple[str, str, Any]] = [
    ("GET", "/readyz", None),
    ("GET", "/v1/models", None),
    ("GET", "/v1/policies", None),
    ("GET", "/v1/learner", None),
    ("GET", "/v1/feedback", None),
    ("GET", "/v1/export?kind=thumbs", None),
    ("POST", "/v1/policies/1/promote", None),
    ("DELETE", "/v1/users/ann", None),
    ("POST", "/v1/chat/completions", CHAT),
    ("POST", "/v1/chat/completions", CHAT | {"stream": True}),
    ("POST", "/v1/messages", CHAT | {"max_tokens": 9}),
    ("POST", "/v1/messages/count_tokens", CHAT),
    ("POST", "/v1/responses", {"model": "tuneloop", "input": "hi"}),
    ("POST", "/v1/score", {"prompt": "a", "completions": ["b"]}),
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call[0]} {call[1]}")
async def test_a_service_that_is_down_is_not_described(
    call: tuple[str, str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuneloop.rpc.channel.RECONNECT_SECONDS", 0.1)
    method, path, body = call
    async with (
        running_gateway() as stack,
        httpx.AsyncClient(base_url=stack.url, timeout=30) as http,
    ):
        for server in stack.servers.values():
            await server.stop()
        answer = await http.request(method, path, json=body)
    assert answer.status_code in (200, 503), answer.text
    assert answer.status_code == 503 or body == CHAT | {"stream": True}
    assert not INTERNALS.search(answer.text), answer.text


async def test_a_bus_that_is_down_is_not_described() -> None:
    bus = MemoryBus()
    bus.connected = False
    async with running_gateway(bus=bus) as stack, httpx.AsyncClient(base_url=stack.url) as http:
        answer = await http.post("/v1/feedback", json=THUMB)
    assert answer.status_code == 503
    assert not INTERNALS.search(answer.text), answer.text


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.INTERNAL])
async def test_a_service_that_refuses_the_gateway_is_the_services_fault(
    code: grpc.StatusCode,
) -> None:
    class Refusing(FakeLearner):
        async def GetStatus(self, request: Any, context: Any) -> Any:
            await context.abort(code, "no token: see keys/grpc_token on 10.0.0.7:15053")

    async with (
        running_gateway(learner=Refusing) as stack,
        httpx.AsyncClient(base_url=stack.url) as http,
    ):
        answer = await http.get("/v1/learner")
    assert answer.status_code == 500
    assert not INTERNALS.search(answer.text), answer.text


FAILURES: list[tuple[Callable[[str], TuneloopError], str, str]] = [
    (
        Unavailable,
        "the service cannot be reached: ipv4:10.0.0.7:15053: refused",
        "the service cannot be reached",
    ),
    (Unavailable, "the event bus failed: nats: timeout", "the event bus failed"),
    (Unavailable, "ledger postgresql://u:p@db/x: (psycopg.OperationalError) down", UNKNOWN_FAILURE),
    (Unavailable, "weight store: /data/weights: [Errno 28] No space left", "weight store"),
    (
        TuneloopError,
        "internal error; see the log for 0a1b2c",
        "internal error; see the log for 0a1b2c",
    ),
    (TuneloopError, "<_InactiveRpcError of RPC>", UNKNOWN_FAILURE),
    (Unavailable, "failed at 10.0.0.7", UNKNOWN_FAILURE),
    (
        InvalidRequest,
        "prompt: at most 10: has 12 (2 too many)",
        "prompt: at most 10: has 12 (2 too many)",
    ),
]


@pytest.mark.parametrize(("kind", "message", "shown"), FAILURES)
def test_only_what_failed_is_shown(
    kind: Callable[[str], TuneloopError],
    message: str,
    shown: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert shown_message(kind(message)) == shown
    assert (message in caplog.text) == (message != shown)
