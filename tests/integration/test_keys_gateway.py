"""Keys at the gateway: scopes, revocation, limits, and what a browser may do without one."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from support.browser_page import feedback_of
from support.gateway_fakes import IDS, SECRET
from support.gateway_stack import Stack, running_gateway

from tuneloop.gateway.app import create_app
from tuneloop.gateway.edge.authentication import scope_for
from tuneloop.gateway.keys import ring
from tuneloop.gateway.keys.store import KeyFile, Limits, Scope, new_key
from tuneloop.gateway.settings import GatewaySettings

CHAT = {"model": "tuneloop", "messages": [{"role": "user", "content": "hi"}]}
TOKENS_OF_CHAT = 11 + 5
APP = "https://app.example"


@pytest.fixture(autouse=True)
def time_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing fills up while a test runs, and every look at the file of keys is due."""
    monkeypatch.setattr(ring, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr("tuneloop.gateway.app.KeyRing", partial(ring.KeyRing, clock=lambda: 0.0))
    monkeypatch.delenv("TUNELOOP_API_KEY", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.json")


def make(file: KeyFile, *scopes: Scope, name: str = "app", **limits: int) -> dict[str, str]:
    """A key in the file, as a request's headers."""
    secret, key = new_key(name, scopes or [Scope.INFER], Limits(**limits))
    file.add(key)
    return {"authorization": f"Bearer {secret}"}


@asynccontextmanager
async def gateway(file: KeyFile, **settings: Any) -> AsyncIterator[tuple[Stack, httpx.AsyncClient]]:
    async with (
        running_gateway(keys_file=file.path, **settings) as stack,
        httpx.AsyncClient(base_url=stack.url, timeout=20) as http,
    ):
        yield stack, http


def thumb(of: str | None = None, **more: Any) -> dict[str, Any]:
    completion_id = IDS.make("chatcmpl", "default", IDS.user_hash("default", of))
    return {"kind": "thumb", "completion_id": completion_id, "value": "up", **more}


def routes() -> Iterator[tuple[str, str]]:
    app = create_app(GatewaySettings(secret=SECRET))
    for route in app.routes:
        if isinstance(route, APIRoute):
            for method in route.methods:
                yield method, route.path


def test_every_route_needs_the_scope_that_is_written_down() -> None:
    infer = {
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/messages"),
        ("POST", "/v1/messages/count_tokens"),
        ("POST", "/v1/responses"),
        ("GET", "/v1/responses/{rest:path}"),
        ("POST", "/v1/responses/{rest:path}"),
        ("DELETE", "/v1/responses/{rest:path}"),
        ("POST", "/v1/score"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/{model_id}"),
    }
    feedback = {
        ("POST", "/v1/feedback"),
        ("POST", "/v1/feedback/batch"),
        ("POST", "/v1/signals"),
        ("POST", "/v1/open_webui/feedback"),
        ("DELETE", "/v1/open_webui/feedback"),
        ("GET", "/v1/feedback/{feedback_id}"),
        ("DELETE", "/v1/feedback/{feedback_id}"),
        ("GET", "/v1/receipts/{receipt}"),
        ("DELETE", "/v1/receipts/{receipt}"),
    }
    for method, path in routes():
        expected: Scope | None = Scope.ADMIN
        if not path.startswith("/v1/"):
            expected = None
        elif (method, path) in infer:
            expected = Scope.INFER
        elif (method, path) in feedback:
            expected = Scope.FEEDBACK
        assert scope_for(method, path) is expected, (method, path)
    assert scope_for("GET", "/v1/feedback") is Scope.ADMIN  # the list
    assert scope_for("POST", "/v1/unheard-of") is Scope.ADMIN


async def test_scopes(file: KeyFile) -> None:
    keys = {scope: make(file, scope, name=str(scope)) for scope in Scope}
    calls: dict[Scope, tuple[str, str, Any]] = {
        Scope.INFER: ("POST", "/v1/chat/completions", CHAT),
        Scope.FEEDBACK: ("POST", "/v1/feedback", thumb()),
        Scope.ADMIN: ("POST", "/v1/policies/1/promote", None),
    }
    async with gateway(file) as (stack, http):
        for needed, (method, path, body) in calls.items():
            for scope, headers in keys.items():
                response = await http.request(method, path, json=body, headers=headers)
                allowed = scope in (needed, Scope.ADMIN)
                assert response.is_success is allowed, (scope, path, response.text)
                if not allowed:
                    error = response.json()["error"]
                    assert response.status_code == 403
                    assert (error["type"], error["code"]) == ("permission_error", "missing_scope")
                    assert f"needs the scope {needed}" in error["message"]
                    assert f"has {scope}" in error["message"]
        assert stack.learner.calls[-1].actor == "key:admin"


async def test_feedback_says_which_key_it_came_with(file: KeyFile) -> None:
    async with gateway(file) as (stack, http):
        body = {**thumb(), "id": "fb-1"}
        await http.post("/v1/feedback", json=thumb())
        headers = make(file, Scope.FEEDBACK, name="shop")
        other = make(file, Scope.FEEDBACK, name="app")
        await http.post("/v1/feedback", json=body, headers=headers)
        await http.post("/v1/feedback/batch", json={"feedback": [thumb()]}, headers=other)
        # A retry with another key is the same feedback.
        again = await http.post("/v1/feedback", json=body, headers=other)
        assert again.status_code == 202
        shop, app = file.read()
        assert [(f.api_key_id, f.api_key_name) for f in feedback_of(stack)] == [
            ("local", ""),
            (shop.id, "shop"),
            (app.id, "app"),
        ]
        stored = repr(stack.bus.streams)
        assert headers["authorization"].removeprefix("Bearer ") not in stored


async def test_keys_come_and_go_while_it_runs(file: KeyFile) -> None:
    async with gateway(file) as (_, http):
        assert (await http.get("/v1/models")).status_code == 200  # none was made yet
        headers = make(file)
        missing = await http.get("/v1/models")
        assert missing.status_code == 401
        assert missing.json()["error"]["code"] == "unauthenticated"
        assert "tuneloop keys create" in missing.json()["error"]["message"]
        assert (await http.get("/v1/models", headers=headers)).status_code == 200
        file.revoke("app")
        revoked = await http.get("/v1/models", headers=headers)
        assert (revoked.status_code, revoked.json()["error"]["code"]) == (401, "invalid_api_key")
        assert "revoked" in revoked.json()["error"]["message"]
        # The last one is gone: that must not open the door to all.
        assert (await http.get("/v1/models")).status_code == 401
        file.path.write_text("{")
        assert (await http.get("/v1/models")).status_code == 401
        assert (await http.get("/")).status_code == 200


async def test_the_key_of_the_environment_stays_an_admin(file: KeyFile) -> None:
    headers = make(file)
    async with gateway(file, api_key="the key") as (_, http):
        admin = {"authorization": "Bearer the key"}
        assert (await http.get("/v1/nothing", headers=admin)).status_code == 404  # it may look
        assert (await http.get("/v1/models", headers=headers)).status_code == 200
        assert (await http.get("/v1/nothing", headers=headers)).status_code == 403


async def test_whether_a_key_is_needed_is_a_setting(file: KeyFile) -> None:
    async with gateway(file, require_key=True) as (_, http):
        assert (await http.get("/v1/models")).status_code == 401
        headers = make(file)
        assert (await http.get("/v1/models", headers=headers)).status_code == 200
    async with gateway(file, require_key=False) as (_, http):
        assert (await http.get("/v1/nothing")).status_code == 404
        # Who shows a key is held to it, and a foreign page gets nowhere.
        assert (await http.get("/v1/nothing", headers=headers)).status_code == 403
        foreign = await http.get("/v1/models", headers={"origin": "https://evil.example"})
        assert foreign.status_code == 403


async def test_a_limit_by_the_minute(file: KeyFile) -> None:
    headers = make(file, Scope.INFER, Scope.FEEDBACK, requests_per_minute=2)
    other = make(file, name="other")
    async with gateway(file) as (stack, http):
        first = await http.post("/v1/chat/completions", json=CHAT, headers=headers)
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert first.headers["x-ratelimit-reset-requests"].endswith("s")
        assert "x-ratelimit-limit-tokens" not in first.headers
        await http.post("/v1/feedback", json=thumb(), headers=headers)
        refused = await http.post("/v1/chat/completions", json=CHAT, headers=headers)
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert refused.headers["retry-after"] == "30"
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        # Reading is free, and another key has its own.
        assert (await http.get("/v1/models", headers=headers)).status_code == 200
        free = await http.post("/v1/chat/completions", json=CHAT, headers=other)
        assert free.status_code == 200
        assert "x-ratelimit-limit-requests" not in free.headers
        assert len(stack.generation.requests) == 2


async def test_a_batch_of_feedback_counts_as_what_is_in_it(file: KeyFile) -> None:
    headers = make(file, Scope.FEEDBACK, requests_per_day=10, requests_per_minute=20)
    async with gateway(file) as (_, http):
        batch = {"feedback": [thumb() for _ in range(8)]}
        accepted = await http.post("/v1/feedback/batch", json=batch, headers=headers)
        assert accepted.status_code == 202, accepted.text
        assert accepted.headers["x-ratelimit-remaining-requests"] == "12"
        refused = await http.post("/v1/feedback/batch", json=batch, headers=headers)
        assert refused.status_code == 429
        assert "10 requests a day" in refused.json()["error"]["message"]


async def test_scores_cost_tokens(file: KeyFile) -> None:
    headers = make(file, tokens_per_minute=1000)
    async with gateway(file) as (_, http):
        body = {"prompt": "x" * 400, "completions": ["y" * 40] * 3}
        assert (await http.post("/v1/score", json=body, headers=headers)).status_code == 200
        told = (await http.get("/v1/models", headers=headers)).headers
        # The prompt with each of three completions: a quarter of 3 x 400 + 3 x 40 and some.
        assert 660 <= int(told["x-ratelimit-remaining-tokens"]) <= 670


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_are_counted_as_they_are_used(file: KeyFile, stream: bool) -> None:
    headers = make(file, tokens_per_minute=1000)
    async with gateway(file) as (_, http):
        body = CHAT | {"stream": stream, "n": 2}
        await http.post("/v1/chat/completions", json=body, headers=headers)
        told = (await http.get("/v1/models", headers=headers)).headers
        assert int(told["x-ratelimit-remaining-tokens"]) == 979  # 11 + 2 x 5 used
        prompts = {"model": "tuneloop", "prompt": ["a", "b"]}
        await http.post("/v1/completions", json=prompts, headers=headers | {"idempotency-key": "k"})
        await http.post("/v1/completions", json=prompts, headers=headers | {"idempotency-key": "k"})
        told = (await http.get("/v1/models", headers=headers)).headers
        assert int(told["x-ratelimit-remaining-tokens"]) == 947  # 2 x 16 more


@pytest.mark.parametrize("limits", [{"tokens_per_minute": 1000}, {"tokens_per_day": 1000}])
async def test_limits_hold_while_answers_run(file: KeyFile, limits: dict[str, int]) -> None:
    """What may still come is reserved: answers at the same time cannot use more than there is."""
    headers = make(file, **limits)
    async with gateway(file) as (stack, http):
        stack.generation.delay = 0.05
        large = CHAT | {"stream": True, "n": 2, "max_tokens": 300}

        async def send() -> int:
            answer = await http.post("/v1/chat/completions", json=large, headers=headers)
            return answer.status_code

        assert sorted([*await asyncio.gather(send(), send(), send())]) == [200, 429, 429]
        assert await send() == 200
        refused = await http.post(
            "/v1/chat/completions", json=CHAT | {"max_tokens": 2000}, headers=headers
        )
        told = (await http.get("/v1/models", headers=headers)).headers
        assert int(told["x-ratelimit-remaining-tokens"]) >= 1000 - 2 * (11 + 2 * 5)
        assert refused.status_code == 429
        assert "this may cost 200" in refused.json()["error"]["message"]


async def test_an_answer_left_early_costs_what_was_made(file: KeyFile) -> None:
    headers = make(file, tokens_per_day=1000)
    async with gateway(file) as (stack, http):
        stack.generation.delay = 0.05
        body = CHAT | {"stream": True, "messages": [{"role": "user", "content": "x" * 400}]}
        async with http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as got:
            async for line in got.aiter_lines():
                if "lo, " in line:
                    break
        async with asyncio.timeout(10):
            await stack.generation.cancelled.wait()
        told = (await http.get("/v1/models", headers=headers)).headers
        # Some hundred for the prompt, whose length was not told, and a few that were streamed.
        assert 800 < int(told["x-ratelimit-remaining-tokens"]) < 898


async def test_a_quota_survives_a_restart(file: KeyFile) -> None:
    headers = make(file, tokens_per_day=2 * TOKENS_OF_CHAT)
    async with gateway(file) as (stack, http):
        short = CHAT | {"max_tokens": 5}
        for _ in range(2):
            answer = await http.post("/v1/chat/completions", json=short, headers=headers)
        assert answer.headers["x-ratelimit-limit-tokens"] == "32"
        assert answer.headers["x-ratelimit-remaining-tokens"] == "0"
        bus = stack.bus
    async with gateway(file, bus=bus) as (_, http):
        refused = await http.post("/v1/chat/completions", json=CHAT, headers=headers)
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "insufficient_quota"
        assert refused.headers["x-should-retry"] == "false"
        assert int(refused.headers["retry-after"]) <= 86_400


@pytest.fixture
async def public(file: KeyFile) -> AsyncIterator[tuple[Stack, httpx.AsyncClient]]:
    make(file)
    settings = {
        "public_feedback": True,
        "public_feedback_kinds": ("thumb", "comparison", "ranking"),
        "cors_origins": (APP,),
        "public_feedback_per_minute": 8,
    }
    async with gateway(file, **settings) as pair:
        yield pair


async def test_a_page_may_judge_its_own_completion(
    public: tuple[Stack, httpx.AsyncClient],
) -> None:
    _, http = public
    page = {"origin": APP}
    accepted = await http.post("/v1/feedback", json=thumb("ann"), headers=page)
    assert accepted.status_code == 202
    assert accepted.headers["access-control-allow-origin"] == APP
    same = await http.post("/v1/feedback", json=thumb("ann", user="ann"), headers=page)
    assert same.status_code == 202
    other = await http.post("/v1/feedback", json=thumb("ann", user="bob"), headers=page)
    assert (other.status_code, other.json()["error"]["param"]) == (403, "user")
    forged = thumb() | {"completion_id": "chatcmpl-" + "0" * 60}
    assert (await http.post("/v1/feedback", json=forged, headers=page)).status_code == 404
    own, foreign = thumb("ann")["completion_id"], thumb("bob")["completion_id"]
    pair = {"kind": "comparison", "chosen": own, "rejected": [foreign]}
    assert (await http.post("/v1/feedback", json=pair, headers=page)).status_code == 403
    ranking = {"kind": "ranking", "ranking": [own, foreign]}
    assert (await http.post("/v1/feedback", json=ranking, headers=page)).status_code == 403
    session = {"kind": "thumb", "session_id": "guessed", "value": "down"}
    refused = await http.post("/v1/feedback", json=session, headers=page)
    assert (refused.status_code, refused.json()["error"]["param"]) == (403, "session_id")
    pair["rejected"] = [thumb("ann")["completion_id"]]
    assert (await http.post("/v1/feedback", json=pair, headers=page)).status_code == 202
    for _ in range(2):
        limited = await http.post("/v1/feedback", json=thumb(), headers=page)
    assert limited.status_code == 429
    assert limited.headers["retry-after"]


async def test_a_page_may_send_signals_of_its_own_user(
    public: tuple[Stack, httpx.AsyncClient],
) -> None:
    _, http = public
    page = {"origin": APP}
    copied = {"kind": "copied", "completion_id": thumb("ann")["completion_id"]}

    async def send(*signals: dict[str, Any], headers: dict[str, str] = page) -> httpx.Response:
        return await http.post("/v1/signals", json={"signals": list(signals)}, headers=headers)

    assert (await send(copied)).status_code == 202
    assert (await send(*[copied] * 8)).status_code == 202
    many = await send(*[copied] * 9)
    assert (many.status_code, many.json()["error"]["param"]) == (400, "signals")
    foreign = await send(copied | {"user": "bob"})
    assert (foreign.status_code, foreign.json()["error"]["param"]) == (403, "user")
    assert (await send(copied, headers={"origin": "https://evil.example"})).status_code == 403
    statuses = [(await send(copied)).status_code for _ in range(6)]
    # Eight requests a minute, of feedback and signals together.
    assert statuses[-1] == 429
    assert (await http.post("/v1/feedback", json=thumb("ann"), headers=page)).status_code == 429


async def test_a_page_may_follow_and_retract_what_it_has_a_receipt_of(
    public: tuple[Stack, httpx.AsyncClient],
) -> None:
    _, http = public
    page = {"origin": APP}
    body = thumb() | {"id": "fb-1"}
    receipt = (await http.post("/v1/feedback", json=body, headers=page)).json()["receipt"]
    path = f"/v1/receipts/{receipt}"
    found = (await http.get(path, headers=page)).json()
    assert (found["id"], found["status"], found["kind"]) == ("fb-1", "accepted", "thumb")
    assert (found["policy_versions"], found["effects"]) == ([2], [])
    assert found["is_serving"] == (found["serving_version"] in (2, 3, 4))
    forged = f"{path[:-1]}{'0' if path[-1] != '0' else '1'}"
    for method in ("GET", "DELETE"):
        refused = await http.request(method, forged, headers=page)
        assert (refused.status_code, refused.json()["error"]["param"]) == (404, "receipt")
    assert (await http.delete(path)).status_code == 403
    assert (await http.delete(path, headers=page)).json() == {"id": "fb-1", "status": "retracted"}
    assert (await http.get(path, headers=page)).json()["status"] == "retracted"
    statuses = [(await http.get(path, headers=page)).status_code for _ in range(4)]
    assert statuses[-1] == 429


async def test_a_page_may_do_nothing_else(public: tuple[Stack, httpx.AsyncClient]) -> None:
    _, http = public
    page = {"origin": APP}
    given = (await http.post("/v1/feedback", json=thumb(), headers=page)).json()["id"]
    for method, path, body in (
        ("POST", "/v1/chat/completions", CHAT),
        ("POST", "/v1/feedback/batch", {"feedback": [thumb()]}),
        ("GET", f"/v1/feedback/{given}", None),
        ("DELETE", f"/v1/feedback/{given}", None),
        ("GET", "/v1/feedback", None),
        ("GET", "/v1/policies", None),
    ):
        response = await http.request(method, path, json=body, headers=page)
        assert response.status_code == 401, (method, path)
    for headers in ({}, {"origin": "https://evil.example"}, {"origin": "null"}):
        refused = await http.post("/v1/feedback", json=thumb(), headers=headers)
        assert refused.status_code == 403, headers
    wrong = page | {"authorization": "Bearer tl-wrong"}
    assert (await http.post("/v1/feedback", json=thumb(), headers=wrong)).status_code == 401


async def test_without_a_key_it_is_thumbs_unless_more_is_allowed(file: KeyFile) -> None:
    make(file)
    page = {"origin": APP}
    own = thumb("ann")["completion_id"]
    bodies: dict[str, dict[str, Any]] = {
        "thumb": thumb("ann"),
        "rating": {"completion_id": own, "value": 4},
        "comparison": {"chosen": own, "rejected": [thumb("ann")["completion_id"]]},
        "ranking": {"ranking": [own, thumb("ann")["completion_id"]]},
        "demonstration": {"completion_id": own, "text": "better"},
        "comment": {"completion_id": own, "text": "no"},
        "metric": {"completion_id": own, "name": "solved", "value": True},
    }
    for allowed in (("thumb",), ("thumb", "comment"), ()):
        given = {} if allowed == ("thumb",) else {"public_feedback_kinds": allowed}
        async with gateway(file, public_feedback=True, cors_origins=(APP,), **given) as (_, http):
            passed = []
            for kind, body in bodies.items():
                answer = await http.post("/v1/feedback", json=body | {"kind": kind}, headers=page)
                if answer.status_code == 202:
                    passed.append(kind)
                else:
                    assert (answer.status_code, answer.json()["error"]["param"]) == (403, "kind")
        assert tuple(passed) == allowed


@pytest.mark.parametrize(
    ("proxies", "limited"),
    [
        ((), True),
        (("10.0.0.0/8",), True),
        (("127.0.0.1/32",), False),
    ],
)
async def test_forwarded_for_counts_from_trusted_proxies_only(
    file: KeyFile, proxies: tuple[str, ...], limited: bool
) -> None:
    make(file)
    settings = {"public_feedback": True, "cors_origins": (APP,), "public_feedback_per_minute": 2}
    async with gateway(file, **settings, trusted_proxies=proxies) as (_, http):
        for number in range(4):
            # What the caller itself wrote stands first, what the proxy appended last.
            forwarded = {"origin": APP, "x-forwarded-for": f"203.0.113.9, 198.51.100.{number}"}
            answer = await http.post("/v1/feedback", json=thumb(), headers=forwarded)
        assert (answer.status_code == 429) == limited
        for number in range(4):
            invented = {"origin": APP, "x-forwarded-for": f"203.0.113.{number}, 192.0.2.1"}
            answer = await http.post("/v1/feedback", json=thumb(), headers=invented)
        assert answer.status_code == 429


async def test_it_is_off_by_default(file: KeyFile) -> None:
    make(file)
    async with gateway(file, cors_origins=(APP,)) as (_, http):
        copied = {"kind": "copied", "completion_id": thumb()["completion_id"]}
        for path, body in (("feedback", thumb()), ("signals", {"signals": [copied]})):
            refused = await http.post(f"/v1/{path}", json=body, headers={"origin": APP})
            assert refused.status_code == 401


async def test_browsers_of_named_sites_may_send_what_clients_send(file: KeyFile) -> None:
    headers = make(file, requests_per_minute=5)
    async with gateway(file, cors_origins=(APP,)) as (_, http):
        for method in ("GET", "POST", "DELETE"):
            wanted = "authorization,content-type,idempotency-key,x-stainless-retry-count"
            preflight = await http.options(
                "/v1/feedback/x",
                headers={
                    "origin": APP,
                    "access-control-request-method": method,
                    "access-control-request-headers": wanted,
                },
            )
            assert preflight.status_code == 200
            assert preflight.headers["access-control-allow-origin"] == APP
            assert method in preflight.headers["access-control-allow-methods"]
            assert preflight.headers["access-control-allow-headers"] == wanted
        answer = await http.post(
            "/v1/chat/completions", json=CHAT, headers=headers | {"origin": APP}
        )
        exposed = answer.headers["access-control-expose-headers"]
        for name in ("x-policy-version", "retry-after", "x-ratelimit-remaining-requests"):
            assert name in exposed
        # A refusal can be read by the page as well.
        refused = await http.get("/v1/models", headers={"origin": APP})
        assert refused.headers["access-control-allow-origin"] == APP
        foreign = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        assert (await http.options("/v1/feedback", headers=foreign)).status_code == 400


async def test_malformed_hosts_and_origins_are_refused(file: KeyFile) -> None:
    async with gateway(file) as (_, http):
        for headers in ({"host": "[::1"}, {"origin": "http://[::1"}):
            assert (await http.get("/v1/models", headers=headers)).status_code == 403


@pytest.mark.parametrize(
    "header", ["forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip"]
)
async def test_what_a_proxy_forwards_needs_a_key(file: KeyFile, header: str) -> None:
    forwarded = {header: "203.0.113.9"}
    async with gateway(file) as (_, http):
        assert (await http.get("/v1/models")).status_code == 200
        for method, path in (("POST", "/v1/policies/1/promote"), ("GET", "/v1/feedback")):
            refused = await http.request(method, path, headers=forwarded)
            assert refused.status_code == 403
            assert "`tuneloop keys create`" in refused.json()["error"]["message"]
        # What is no secret stays open, and with a key a proxy is welcome.
        assert (await http.get("/healthz", headers=forwarded)).status_code == 200
        allowed = await http.get("/v1/models", headers=make(file) | forwarded)
        assert allowed.status_code == 200


async def test_a_proxy_that_says_nothing_speaks_http_1_0(file: KeyFile) -> None:
    """As nginx's `proxy_pass` does unless told otherwise."""
    async with gateway(file) as (stack, _):
        host, port = stack.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET /v1/feedback HTTP/1.0\r\nHost: {host}:{port}\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        assert b" 403 " in answer.split(b"\r\n")[0]
        assert b"HTTP/1.1" in answer


async def test_costs_are_told_by_key_and_version(file: KeyFile) -> None:
    shop, boss = make(file, name="shop"), make(file, Scope.ADMIN, name="boss", tokens_per_day=10**6)
    prices = {"tuneloop": {"input": 1.0, "output": 10.0}}
    asked = [
        (shop, CHAT | {"n": 2}),
        (shop, CHAT | {"stream": True}),
        (shop, CHAT | {"policy_version": 2}),
        (boss, CHAT),
    ]
    async with gateway(file, prices=prices) as (_, http):
        for headers, body in asked:
            answer = await http.post("/v1/chat/completions", json=body, headers=headers)
            assert answer.status_code == 200
        told = (await http.get("/v1/usage?days=1", headers=boss)).json()
        assert (await http.get("/v1/usage", headers=shop)).status_code == 403
        assert (await http.get("/v1/usage?days=32", headers=boss)).status_code == 400
        exposed = (await http.get("/metrics")).text
    assert told["prices"] == prices
    used = {
        (row["key"], row["policy_version"]): (row["input_tokens"], row["output_tokens"])
        for row in told["data"]
    }
    # The fake's prompts have 11 tokens, its completions 5.
    assert used == {("shop", 3): (22, 15), ("shop", 2): (11, 5), ("boss", 3): (11, 5)}
    costs = {(row["key"], row["policy_version"]): row["cost"] for row in told["data"]}
    assert costs[("shop", 3)] == pytest.approx((22 * 1 + 15 * 10) / 1e6)
    assert 'tuneloop_gateway_cost_total{key="shop",policy="tuneloop",policy_version="2"}' in exposed


async def test_an_answer_that_is_abandoned_costs_what_was_sampled(file: KeyFile) -> None:
    prices = {"tuneloop": {"input": 1.0, "output": 10.0}}
    boss = make(file, Scope.ADMIN, name="boss")
    async with gateway(file, prices=prices) as (stack, http):
        stack.generation.delay = 0.2
        body = CHAT | {"stream": True}
        async with http.stream("POST", "/v1/chat/completions", json=body, headers=boss) as response:
            async for line in response.aiter_lines():
                if "Hel" in line:
                    break
        await stack.generation.cancelled.wait()
        [row] = (await http.get("/v1/usage", headers=boss)).json()["data"]
    assert 0 < row["output_tokens"] < 5
    assert row["input_tokens"] > 0
