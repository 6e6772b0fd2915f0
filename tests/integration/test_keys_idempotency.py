"""The same request twice makes one answer: joined while it runs, replayed when it has ended."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from support.gateway_stack import Stack, running_gateway
from support.waiting import until

from tuneloop.errors import Overloaded, Unavailable

CHAT = {"model": "tuneloop", "messages": [{"role": "user", "content": "hi"}]}
STREAM = CHAT | {"stream": True}
URL = "/v1/chat/completions"
KEY = {"idempotency-key": "one"}


def retry(number: int) -> dict[str, str]:
    return {"x-stainless-retry-count": str(number)}


@pytest.mark.parametrize("body", [CHAT, STREAM])
@pytest.mark.parametrize(("first", "again"), [(KEY, KEY), (retry(0), retry(1))])
async def test_a_finished_answer_is_replayed(
    stack: Stack,
    http: httpx.AsyncClient,
    body: dict[str, Any],
    first: dict[str, str],
    again: dict[str, str],
) -> None:
    one = await http.post(URL, json=body, headers=first)
    two = await http.post(URL, json=body, headers=again)
    assert (one.status_code, two.status_code) == (200, 200)
    assert two.content == one.content
    assert two.headers["x-policy-version"] == one.headers["x-policy-version"]
    assert two.headers["content-type"] == one.headers["content-type"]
    assert "idempotent-replayed" not in one.headers
    assert two.headers["idempotent-replayed"] == "true"
    assert len(stack.generation.requests) == 1
    assert (await http.post(URL, json=body)).content != one.content


@pytest.mark.parametrize("body", [CHAT, STREAM])
@pytest.mark.parametrize(("first", "again"), [(KEY, KEY), (retry(0), retry(1))])
async def test_a_running_answer_is_joined_from_its_beginning(
    stack: Stack,
    http: httpx.AsyncClient,
    body: dict[str, Any],
    first: dict[str, str],
    again: dict[str, str],
) -> None:
    stack.generation.delay = 0.05
    running = asyncio.create_task(http.post(URL, json=body, headers=first))
    await until(lambda: stack.generation.produced >= 2)
    two = await http.post(URL, json=body, headers=again)
    assert two.content == (await running).content
    assert two.headers["idempotent-replayed"] == "true"
    assert len(stack.generation.requests) == 1


async def test_another_body_is_refused(stack: Stack, http: httpx.AsyncClient) -> None:
    stack.generation.delay = 0.02
    running = asyncio.create_task(http.post(URL, json=CHAT, headers=KEY))
    await until(lambda: stack.generation.requests)
    for _ in range(2):  # while it runs, and after
        refused = await http.post(URL, json=CHAT | {"seed": 1}, headers=KEY)
        assert refused.status_code == 409
        assert refused.json()["error"]["code"] == "idempotency_key_reused"
        assert refused.headers["x-should-retry"] == "false"
        await running
    elsewhere = await http.post("/v1/completions", json=CHAT, headers=KEY)
    assert elsewhere.status_code == 409
    assert len(stack.generation.requests) == 1


@pytest.mark.parametrize("value", ["", "x" * 257])
async def test_a_key_that_is_none(http: httpx.AsyncClient, value: str) -> None:
    refused = await http.post(URL, json=CHAT, headers={"idempotency-key": value})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "Idempotency-Key"


@pytest.mark.parametrize("headers", [(KEY, KEY, KEY), (retry(0), retry(1), retry(2))])
async def test_a_failed_answer_is_not_kept(
    stack: Stack, http: httpx.AsyncClient, headers: tuple[dict[str, str], ...]
) -> None:
    stack.generation.fail = Overloaded("full", retry_after=1.0)
    assert (await http.post(URL, json=CHAT, headers=headers[0])).status_code == 429
    stack.generation.fail = Unavailable("down")
    assert (await http.post(URL, json=CHAT, headers=headers[1])).status_code == 503
    stack.generation.fail = None
    assert (await http.post(URL, json=CHAT, headers=headers[2])).status_code == 200
    assert len(stack.generation.requests) == 3


async def test_a_stream_that_failed_half_way_is_not_kept(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    stack.generation.fail, stack.generation.fail_after = Unavailable("gone"), 2
    broken = await http.post(URL, json=STREAM, headers=KEY)
    assert '"error"' in broken.text
    stack.generation.fail = None
    whole = await http.post(URL, json=STREAM, headers=KEY)
    assert "idempotent-replayed" not in whole.headers
    assert '"error"' not in whole.text


async def test_a_wrong_request_keeps_its_key_free(http: httpx.AsyncClient) -> None:
    wrong = await http.post(URL, json=CHAT | {"temperature": 9}, headers=KEY)
    assert wrong.status_code == 400
    assert (await http.post(URL, json=CHAT, headers=KEY)).status_code == 200


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_the_last_one_to_leave_stops_the_answer(
    stack: Stack, http: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    stack.generation.delay = 0.05
    tasks = [asyncio.create_task(http.post(URL, json=body, headers=KEY)) for _ in range(3)]
    await until(lambda: stack.generation.produced >= 1)
    for task in tasks[:2]:
        task.cancel()
    assert (await tasks[2]).status_code == 200
    assert not stack.generation.cancelled.is_set()
    assert len(stack.generation.requests) == 1


@pytest.mark.parametrize("body", [CHAT, STREAM])
@pytest.mark.parametrize(("first", "again"), [(KEY, KEY), (retry(0), retry(1))])
async def test_after_a_disconnect_a_retry_runs_again(
    stack: Stack,
    http: httpx.AsyncClient,
    body: dict[str, Any],
    first: dict[str, str],
    again: dict[str, str],
) -> None:
    stack.generation.delay = 0.1
    task = asyncio.create_task(http.post(URL, json=body, headers=first))
    await until(lambda: stack.generation.produced >= 1)
    task.cancel()
    async with asyncio.timeout(10):
        await stack.generation.cancelled.wait()
    stack.generation.delay = 0
    second = await http.post(URL, json=body, headers=again)
    assert second.status_code == 200
    assert "idempotent-replayed" not in second.headers
    assert len(stack.generation.requests) == 2


async def test_the_same_question_twice_is_two_questions(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    """Retries of requests that nobody can tell apart run again: no two samples become one."""
    stack.generation.delay = 0.02
    answers = await asyncio.gather(*(http.post(URL, json=CHAT, headers=retry(0)) for _ in range(4)))
    retries = [await http.post(URL, json=CHAT, headers=retry(1)) for _ in range(2)]
    ids = {answer.json()["id"] for answer in [*answers, *retries]}
    assert len(ids) == len(stack.generation.requests) == 6


async def test_retries_of_samples_that_all_failed_stay_apart(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    stack.generation.fail = Unavailable("restarting")
    await asyncio.gather(*(http.post(URL, json=CHAT, headers=retry(0)) for _ in range(3)))
    stack.generation.fail, stack.generation.delay = None, 0.02
    answers = await asyncio.gather(*(http.post(URL, json=CHAT, headers=retry(1)) for _ in range(3)))
    assert len({answer.json()["id"] for answer in answers}) == 3


async def test_other_bodies_and_headerless_requests_stand_alone(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    await http.post(URL, json=CHAT, headers=retry(0))
    await http.post(URL, json=CHAT | {"seed": 1}, headers=retry(1))
    await http.post(URL, json=CHAT)
    await http.post(URL, json=CHAT)
    assert len(stack.generation.requests) == 4


async def test_what_is_kept_is_bounded_in_bytes_and_time() -> None:
    async with (
        running_gateway(idempotency_max_bytes=6000) as stack,
        httpx.AsyncClient(base_url=stack.url) as http,
    ):
        for number in range(4):  # each takes more than 2 KiB
            await http.post(URL, json=CHAT, headers={"idempotency-key": str(number)})
        newest = await http.post(URL, json=CHAT, headers={"idempotency-key": "3"})
        assert "idempotent-replayed" in newest.headers
        oldest = await http.post(URL, json=CHAT, headers={"idempotency-key": "0"})
        assert "idempotent-replayed" not in oldest.headers
    async with (
        running_gateway(idempotency_seconds=0, retry_seconds=0) as stack,
        httpx.AsyncClient(base_url=stack.url) as http,
    ):
        for headers in (KEY, KEY, retry(0), retry(1)):
            await http.post(URL, json=CHAT, headers=headers)
        assert len(stack.generation.requests) == 4


async def test_a_large_body_is_refused_with_a_key_too() -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    async with (
        running_gateway(max_body_bytes=2048) as stack,
        httpx.AsyncClient(base_url=stack.url) as http,
    ):
        response = await http.post(URL, content=endless(), headers=KEY)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "body_too_large"


async def test_unexpected_errors_reach_everybody_who_waits(
    stack: Stack, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a password, say")

    monkeypatch.setattr("tuneloop.gateway.openai.routes.chat_answer", broken)
    for _ in range(2):
        response = await http.post(URL, json=CHAT, headers=KEY)
        assert response.status_code == 500
        assert "password" not in response.text


async def test_openais_client_gets_the_answer_that_it_lost(stack: Stack) -> None:
    """Its connection breaks after the answer was made, and it tries again by itself."""

    class LosesTheFirst(httpx.AsyncHTTPTransport):
        lost: bytes = b""

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            response = await super().handle_async_request(request)
            if not self.lost:
                self.lost = await response.aread()
                raise httpx.ReadError("the connection broke")
            return response

    transport = LosesTheFirst()
    async with httpx.AsyncClient(transport=transport) as http:
        client = AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none", http_client=http)
        answer = await client.chat.completions.create(**CHAT)  # type: ignore[call-overload]
    assert answer.id == json.loads(transport.lost)["id"]
    assert len(stack.generation.requests) == 1


async def test_callers_do_not_share_keys(tmp_path: Any) -> None:
    from tuneloop.gateway.keys.store import KeyFile, Limits, Scope, new_key

    file = KeyFile(tmp_path / "keys.json")
    tokens = []
    for name in ("a", "b"):
        secret, key = new_key(name, [Scope.INFER], Limits())
        file.add(key)
        tokens.append({"authorization": f"Bearer {secret}"})
    async with (
        running_gateway(keys_file=file.path) as stack,
        httpx.AsyncClient(base_url=stack.url) as http,
    ):
        ids = {
            (await http.post(URL, json=CHAT, headers=KEY | token)).json()["id"] for token in tokens
        }
        assert len(ids) == len(stack.generation.requests) == 2


async def test_a_retry_count_of_any_length_is_no_failure(http: httpx.AsyncClient) -> None:
    refused = await http.post(URL, json=CHAT, headers={"x-stainless-retry-count": "9" * 5000})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "X-Stainless-Retry-Count"
    assert (await http.post(URL, json=CHAT, headers=retry(0))).status_code == 200
