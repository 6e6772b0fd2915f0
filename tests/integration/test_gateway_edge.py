"""What every request passes (keys, hosts, limits, headers), health, metrics, the other routes."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator

import httpx
import pytest
from support.gateway_fakes import SECRET
from support.gateway_stack import Stack, running_gateway
from support.ports import free_port

CHAT = {"model": "tuneloop", "messages": [{"role": "user", "content": "hi"}]}


async def test_a_key_is_asked_for_where_one_is_set() -> None:
    async with (
        running_gateway(api_key="the key") as stack,
        httpx.AsyncClient(base_url=stack.url) as http,
    ):
        for path in ("/", "/healthz", "/readyz", "/metrics", "/web/chat.js"):
            assert (await http.get(path)).status_code == 200, path
        for headers in ({}, {"authorization": "Bearer no"}, {"authorization": "Basic the key"}):
            response = await http.get("/v1/models", headers=headers)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["type"] == "authentication_error"
        right = {"authorization": "Bearer the key"}
        assert (await http.get("/v1/models", headers=right)).status_code == 200
        elsewhere = right | {"host": "llm.example", "origin": "https://other.example"}
        assert (await http.get("/v1/models", headers=elsewhere)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:8000"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": ""}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, 200),
        ({"host": "localhost:8000", "origin": "http://localhost:3000"}, 403),
    ],
)
async def test_without_a_key_other_sites_are_kept_out(
    http: httpx.AsyncClient, headers: dict[str, str], status: int
) -> None:
    response = await http.get("/v1/models", headers=headers)
    assert response.status_code == status


async def test_named_hosts_and_origins_may_call() -> None:
    async with (
        running_gateway(cors_origins=("https://app.example",), trusted_hosts=("Box",)) as stack,
        httpx.AsyncClient(base_url=stack.url) as http,
    ):
        headers = {"host": "box:8000", "origin": "https://app.example"}
        response = await http.get("/v1/models", headers=headers)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "https://app.example"
        asked = {**headers, "access-control-request-method": "POST"}
        preflight = await http.options("/v1/chat/completions", headers=asked)
        assert preflight.status_code == 200


async def test_security_headers_everywhere(http: httpx.AsyncClient) -> None:
    for path in ("/", "/v1/models", "/nowhere", "/web/base.css"):
        headers = (await http.get(path)).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


async def test_large_bodies_are_refused() -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    async with (
        running_gateway(max_body_bytes=2048) as stack,
        httpx.AsyncClient(base_url=stack.url) as http,
    ):
        large = CHAT | {"user": "x" * 3000}
        announced = await http.post("/v1/chat/completions", json=large)
        headers = {"content-type": "application/json"}
        chunked = await http.post("/v1/chat/completions", content=endless(), headers=headers)
        for response in (announced, chunked):
            assert response.status_code == 413
            assert response.json()["error"]["code"] == "body_too_large"
        assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_unknown_routes_and_methods(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v2")).json()["error"]["code"] == "not_found"
    response = await http.get("/v1/chat/completions")
    assert response.status_code == 405
    assert response.json()["error"]["code"] == "method_not_allowed"
    assert (await http.get("/web/../app.py")).status_code == 404


async def test_ready_only_when_a_chat_would_be_answered(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    ready = await http.get("/readyz")
    assert (ready.status_code, ready.json()["policy_version"]) == (200, 3)
    await stack.servers["generation"].set_serving(False)
    assert (await http.get("/readyz")).status_code == 503
    assert (await http.get("/healthz")).status_code == 200
    await stack.servers["generation"].set_serving(True)
    # The gateway hears of it by itself, a moment later.
    while (await http.get("/readyz")).status_code == 503:
        await asyncio.sleep(0.01)
    assert (await http.get("/readyz")).status_code == 200
    await stack.servers["generation"].stop()
    away = await http.get("/readyz")
    assert away.status_code == 503
    assert away.headers["retry-after"]
    assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 503


async def test_not_ready_for_a_policy_that_generation_does_not_have() -> None:
    async with (
        running_gateway(policy="other") as stack,
        httpx.AsyncClient(base_url=stack.url) as http,
    ):
        response = await http.get("/readyz")
        assert response.status_code == 503
        assert "no policy 'other'" in response.json()["reason"]


async def test_metrics_count_by_route(http: httpx.AsyncClient) -> None:
    await http.post("/v1/chat/completions", json=CHAT)
    await http.post("/v1/chat/completions", json=CHAT | {"stream": True})
    await http.get("/made/up/by/the/caller")
    text = (await http.get("/metrics")).text
    assert (
        'tuneloop_gateway_http_requests_total{method="POST",'
        'route="/v1/chat/completions",status="200"}' in text
    )
    assert 'tuneloop_gateway_completion_tokens_total{stream="true"}' in text
    assert "tuneloop_gateway_time_to_first_token_seconds_bucket" in text
    assert "made/up" not in text


async def test_policies(stack: Stack, http: httpx.AsyncClient) -> None:
    listed = (await http.get("/v1/policies?limit=2")).json()
    assert listed["policy_version"] == 3
    assert listed["serving"]["engine"] == "fake"
    assert [v["policy_version"] for v in listed["data"]] == [3, 2]
    assert listed["data"][0]["samples"] == {"kto": 16}
    assert listed["data"][0]["evaluation"]["mean_reward"] == 0.5
    assert listed["data"][0]["evaluation"]["reward_margin"] is None
    assert listed["data"][1]["evaluation"] is None
    older = (await http.get("/v1/policies?before=2")).json()
    assert [v["policy_version"] for v in older["data"]] == [1]
    one = (await http.get("/v1/policies/2")).json()
    assert one["manifest"]["algorithms"] == ["kto"]
    assert one["ancestors"] == [1, 0]
    assert one["uses"][0]["sample_id"] == "fb-1"
    assert (await http.get("/v1/policies/9")).status_code == 404
    assert (await http.get("/v1/policies/x")).json()["error"]["param"] == "version"
    assert (await http.get("/v1/policies?limit=0")).json()["error"]["param"] == "limit"


async def test_a_version_comes_with_its_decisions(stack: Stack, http: httpx.AsyncClient) -> None:
    (decision,) = (await http.get("/v1/policies/3")).json()["decisions"]
    assert decision == {
        "kind": "gate",
        "outcome": "pass",
        "reason": "within all bounds",
        "actor": "gate",
        "decided_time": "2023-11-14T22:15:03Z",
        "numbers": json.loads(stack.learner.version(3).decisions[0].numbers_json),
    }
    listed = (await http.get("/v1/policies")).json()["data"]
    assert [len(version["decisions"]) for version in listed] == [1, 0, 0]
    assert "numbers" not in listed[0]["decisions"][0]


async def test_pause_and_resume(stack: Stack, http: httpx.AsyncClient) -> None:
    assert (await http.post("/v1/learner/pause")).json() == {"state": "paused"}
    assert (await http.post("/v1/learner/resume")).json() == {"state": "waiting"}
    assert [call.actor for call in stack.learner.calls] == ["http:127.0.0.1"] * 2


async def test_promote_and_roll_back(stack: Stack, http: httpx.AsyncClient) -> None:
    assert (await http.post("/v1/policies/1/promote")).json()["policy_version"] == 1
    assert stack.learner.calls[-1].actor == "http:127.0.0.1"
    back = await http.post("/v1/policies/rollback", json={"policy_version": 0})
    assert back.json() == {"policy": "tuneloop", "policy_version": 0}
    assert stack.learner.calls[-1].HasField("policy_version")
    stack.learner.stable = 3
    assert (await http.post("/v1/policies/rollback")).json()["policy_version"] == 2
    assert not stack.learner.calls[-1].HasField("policy_version")
    wrong = await http.post("/v1/policies/rollback", json={"version": 1})
    assert wrong.json()["error"]["param"] == "version"


async def test_policies_with_one_half_away(stack: Stack, http: httpx.AsyncClient) -> None:
    await stack.servers["learner"].stop()
    listed = (await http.get("/v1/policies")).json()
    assert (listed["policy_version"], listed["data"]) == (3, None)
    assert (await http.get("/v1/learner")).status_code == 503
    await stack.servers["generation"].stop()
    assert (await http.get("/v1/policies")).status_code == 503


async def test_learner_and_users(stack: Stack, http: httpx.AsyncClient) -> None:
    status = (await http.get("/v1/learner")).json()
    assert status["state"] == "waiting"
    assert status["samples"] == [{"objective": "kto", "ready": 4, "used": 9, "waiting": 1}]
    assert status["last_step_time"] is None
    forgotten = (await http.delete("/v1/users/ann%2Fb")).json()
    assert (forgotten["deleted"], forgotten["id"]) == (True, "ann/b")
    assert len(stack.learner.calls[-1].user_hash) == 16


async def test_scores(stack: Stack, http: httpx.AsyncClient) -> None:
    body = {"messages": CHAT["messages"], "completions": ["four", ""]}
    document = (await http.post("/v1/score", json=body)).json()
    assert document["scores"] == [4.0, None]
    assert document["reward_model_version"] == 2
    assert document["results"][0][0]["scorer"] == "length"
    plain = await http.post("/v1/score", json={"prompt": "p", "completions": ["a"]})
    assert plain.json()["scores"] == [1.0]
    assert stack.reward.requests[-1].text == "p"
    for wrong in ({"completions": ["a"]}, body | {"prompt": "p"}, body | {"completions": []}):
        assert (await http.post("/v1/score", json=wrong)).status_code == 400
    await stack.servers["reward"].stop()
    assert (await http.post("/v1/score", json=body)).status_code == 503


async def test_unexpected_errors_say_nothing_of_the_inside(
    stack: Stack, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a password, say")

    monkeypatch.setattr("tuneloop.gateway.openai.routes.chat_answer", broken)
    response = await http.post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "password" not in response.text


async def test_the_schema_names_every_route(http: httpx.AsyncClient) -> None:
    schema = (await http.get("/openapi.json")).json()
    assert {"/v1/chat/completions", "/v1/feedback", "/v1/policies/{version}"} <= set(
        schema["paths"]
    )


async def test_the_process_starts_alone_and_ends_on_sigterm() -> None:
    """Nothing behind it is up: it runs, is not ready, and stops at once when told."""
    port = free_port()
    environment = {
        **os.environ,
        "TUNELOOP_GATEWAY_PORT": str(port),
        "TUNELOOP_GATEWAY_SECRET": SECRET,
        "TUNELOOP_GATEWAY_NATS_URL": f"nats://127.0.0.1:{free_port()}",
        "TUNELOOP_GATEWAY_GENERATION_ADDRESS": f"127.0.0.1:{free_port()}",
        "TUNELOOP_GATEWAY_DRAIN_SECONDS": "3600",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tuneloop.gateway.main", env=environment
    )
    try:
        async with asyncio.timeout(60), httpx.AsyncClient() as http:
            url = f"http://127.0.0.1:{port}"
            while True:
                try:
                    assert (await http.get(f"{url}/healthz")).status_code == 200
                    break
                except httpx.TransportError:
                    assert process.returncode is None
                    await asyncio.sleep(0.1)
            assert (await http.get(f"{url}/readyz")).status_code == 503
            assert (await http.post(f"{url}/v1/chat/completions", json=CHAT)).status_code == 503
            async with http.stream("GET", f"{url}/v1/events") as listening:
                chunks = listening.aiter_text()
                await anext(chunks)
                # A listener's stream has no end: it is ended, and not waited for.
                process.send_signal(signal.SIGTERM)
                assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_wrong_setting_stops_the_process() -> None:
    environment = {**os.environ, "TUNELOOP_GATEWAY_SECRET": SECRET, "TUNELOOP_GATEWAY_PROT": "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tuneloop.gateway.main",
        env=environment,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert b"TUNELOOP_GATEWAY_PORT" in errors


async def test_metrics_with_a_port_of_their_own_are_not_where_the_api_is() -> None:
    async with (
        running_gateway(metrics_port=0) as stack,
        httpx.AsyncClient(base_url=stack.url) as http,
    ):
        hidden = await http.get("/metrics")
    assert hidden.status_code == 404
    assert "tuneloop_gateway" not in hidden.text
