"""The Anthropic surface through a real socket, with the `anthropic` package and by hand."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest
from anthropic import Anthropic, AsyncAnthropic
from support import claude_code
from support.browser_page import feedback_of
from support.gateway_fakes import IDS
from support.gateway_stack import Stack, running_gateway
from support.generated_pieces import call_two_functions

from tuneloop.errors import (
    InvalidRequest,
    NotFound,
    Overloaded,
    TuneloopError,
    Unavailable,
)
from tuneloop.feedback import Thumb
from tuneloop.gateway.keys.store import KeyFile, Limits, Scope, new_key
from tuneloop.v1 import rollout_pb2

MESSAGES: Any = [{"role": "user", "content": "hi"}]
ASKED: Any = {"model": "tuneloop", "max_tokens": 20, "messages": MESSAGES}
TOOL: Any = {"name": "look_up", "input_schema": {"type": "object"}}
TEXT = "Hello, wörld \u2028👋"
PATH = "/v1/messages"


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=stack.url, api_key="none", max_retries=0) as anthropic:
        yield anthropic


async def events(http: httpx.AsyncClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = await http.post(PATH, json=body | {"stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for event in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def make_key(file: KeyFile, scope: Scope = Scope.INFER, **limits: int) -> str:
    secret, key = new_key(str(scope), [scope], Limits(**limits))
    file.add(key)
    return secret


async def test_a_whole_message(stack: Stack, http: httpx.AsyncClient) -> None:
    response = await http.post(PATH, json=ASKED | {"metadata": {"user_id": "ann"}})
    document = response.json()
    request = stack.generation.requests[0]
    assert document == {
        "id": request.completion_id,
        "type": "message",
        "role": "assistant",
        "model": "tuneloop",
        "content": [{"type": "text", "text": TEXT}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 11, "output_tokens": 5},
        "policy_version": 3,
    }
    assert response.headers["x-policy-version"] == "3"
    assert response.headers["x-completion-id"] == request.completion_id
    assert IDS.check("default", document["id"], "id").user_hash == request.user_hash
    assert request.publish_rollout is True
    # Clients name the most that any model takes: it is shortened to what fits.
    assert request.clip_max_tokens is True
    assert request.sampling.max_tokens == 20


async def test_a_stream_is_exact(http: httpx.AsyncClient) -> None:
    start, opened, *deltas, closed, ending, stop = await events(http, ASKED)
    message = start["message"]
    assert message["content"] == []
    assert (message["policy_version"], message["stop_reason"]) == (3, None)
    assert opened == {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "text", "text": ""},
    }
    assert [d["delta"]["text"] for d in deltas] == ["Hel", "lo,", " wörld", " \u2028👋"]
    assert closed == {"type": "content_block_stop", "index": 0}
    assert ending["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert ending["usage"] == {"input_tokens": 11, "output_tokens": 5}
    assert stop == {"type": "message_stop"}


async def test_the_anthropic_package(stack: Stack, client: AsyncAnthropic) -> None:
    whole = await client.messages.create(**ASKED)
    async with client.messages.stream(**ASKED) as stream:
        pieces = [text async for text in stream.text_stream]
        streamed = await stream.get_final_message()
    assert "".join(pieces) == TEXT
    for message, request in zip((whole, streamed), stack.generation.requests, strict=True):
        assert message.id == request.completion_id
        assert [block.text for block in message.content if block.type == "text"] == [TEXT]
        assert message.stop_reason == "end_turn"
        assert (message.usage.input_tokens, message.usage.output_tokens) == (11, 5)
        assert message.model_extra == {"policy_version": 3}


async def test_the_anthropic_package_without_async(stack: Stack) -> None:
    def talk() -> list[str]:
        with Anthropic(base_url=stack.url, api_key="none", max_retries=0) as client:
            raw = client.messages.create(**ASKED, stream=True)
            return [event.type for event in raw]

    types = await asyncio.to_thread(talk)
    assert types[0] == "message_start"
    assert types[-2:] == ["message_delta", "message_stop"]


async def test_feedback_names_a_message_by_its_id(
    stack: Stack, client: AsyncAnthropic, http: httpx.AsyncClient
) -> None:
    message = await client.messages.create(**ASKED)
    body = {"kind": "thumb", "completion_id": message.id, "value": "up"}
    assert (await http.post("/v1/feedback", json=body)).status_code == 202
    (feedback,) = feedback_of(stack)
    assert feedback.judgement == Thumb(up=True)
    assert feedback.completion_ids == (stack.generation.requests[0].completion_id,)


async def test_calls_of_tools_are_told(stack: Stack, client: AsyncAnthropic) -> None:
    call_two_functions(stack.generation)
    whole = await client.messages.create(**ASKED, tools=[TOOL])
    async with client.messages.stream(**ASKED, tools=[TOOL]) as stream:
        streamed = await stream.get_final_message()
    for message in (whole, streamed):
        assert message.stop_reason == "tool_use"
        assert [block.to_dict() for block in message.content] == [
            {"type": "text", "text": "let me see"},
            {"type": "tool_use", "id": "call_a", "name": "look_up", "input": {"word": "x"}},
            {"type": "tool_use", "id": "call_b", "name": "store", "input": {}},
        ]


async def test_a_stop_sequence_is_named(stack: Stack, client: AsyncAnthropic) -> None:
    stack.generation.stop_sequence = "END"
    whole = await client.messages.create(**ASKED, stop_sequences=["END"])
    async with client.messages.stream(**ASKED, stop_sequences=["END"]) as stream:
        streamed = await stream.get_final_message()
    for message in (whole, streamed):
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "END")


async def test_tokens_are_counted(stack: Stack, client: AsyncAnthropic) -> None:
    count = await client.messages.count_tokens(
        model="tuneloop", system="Be brief.", messages=MESSAGES, tools=[TOOL]
    )
    assert count.input_tokens == 11
    (asked,) = stack.generation.counted
    assert [m.content for m in asked.chat.messages] == ["Be brief.", "hi"]
    assert [t.name for t in asked.tool_use.tools] == ["look_up"]
    assert (asked.policy, asked.api_key_id) == ("tuneloop", "local")
    assert stack.generation.requests == []
    with pytest.raises(anthropic.NotFoundError, match="no model 'other'"):
        await client.messages.count_tokens(model="other", messages=MESSAGES)


async def test_what_claude_code_sends_is_answered(stack: Stack) -> None:
    async with httpx.AsyncClient(base_url=stack.url, headers=claude_code.HEADERS) as http:
        response = await http.post(
            f"{PATH}?beta=true", json=claude_code.BODY, headers={"authorization": "Bearer any"}
        )
        assert response.status_code == 200, response.text
        assert response.text.endswith('event: message_stop\ndata: {"type":"message_stop"}\n\n')
        (request,) = stack.generation.requests
        assert [(m.role, m.content, m.tool_call_id) for m in request.chat.messages] == [
            ("system", "You are Claude Code.\n\nYou help with code.\n\n# Tone\nBe brief.", ""),
            ("user", "<system-reminder>\nBe careful.\n</system-reminder>\n\nfix the test", ""),
            ("assistant", "I'll read it first.", ""),
            ("tool", "1\tassert False", "toolu_01"),
            ("tool", "Exit code 1", "toolu_02"),
            ("user", "<system-reminder>\nGo on.\n</system-reminder>", ""),
        ]
        calls = request.chat.messages[2].tool_calls
        assert [(c.call_id, c.name) for c in calls] == [("toolu_01", "Read"), ("toolu_02", "Bash")]
        assert json.loads(calls[0].arguments) == {"file_path": "/src/test_a.py"}
        assert [t.name for t in request.tool_use.tools] == [t["name"] for t in claude_code.TOOLS]
        assert request.user_hash == IDS.user_hash("default", claude_code.USER)
        assert (request.sampling.max_tokens, request.clip_max_tokens) == (32000, True)

        counting = {name: claude_code.BODY[name] for name in ("model", "messages", "tools")}
        count = await http.post(f"{PATH}/count_tokens?beta=true", json=counting)
        assert count.json() == {"input_tokens": 11}


async def test_a_session_and_side_tasks(stack: Stack, http: httpx.AsyncClient) -> None:
    await http.post(PATH, json=ASKED, headers={"x-session-id": "chat-1"})
    await http.post(PATH, json=ASKED | {"metadata": {"session_id": "chat-2"}})
    await http.post(PATH, json=ASKED, headers={"x-tuneloop-train": "false"})
    await http.post(PATH, json=ASKED | {"metadata": {"task": "title"}})
    requests = stack.generation.requests
    assert [r.session_id for r in requests] == ["chat-1", "chat-2", "", ""]
    assert [r.publish_rollout for r in requests] == [True, True, False, False]


async def test_a_retry_gets_the_first_answer(stack: Stack, http: httpx.AsyncClient) -> None:
    for stream in (False, True):
        stack.generation.requests.clear()
        body = ASKED | {"stream": stream}
        headers = {"idempotency-key": f"k{stream}"}
        first = await http.post(PATH, json=body, headers=headers)
        again = await http.post(PATH, json=body, headers=headers)
        assert again.content == first.content
        assert again.headers["idempotent-replayed"] == "true"
        assert len(stack.generation.requests) == 1
    other = await http.post(PATH, json=ASKED | {"max_tokens": 3}, headers=headers)
    assert other.status_code == 409
    assert other.json()["error"]["type"] == "invalid_request_error"


async def test_the_key_in_its_own_header(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    key, other = make_key(file), make_key(file, Scope.FEEDBACK)
    async with running_gateway(keys_file=file.path) as stack:
        async with AsyncAnthropic(base_url=stack.url, api_key=key) as client:
            await client.messages.create(**ASKED)
            assert await client.messages.count_tokens(model="tuneloop", messages=MESSAGES)
        async with AsyncAnthropic(base_url=stack.url, auth_token=key) as client:
            await client.messages.create(**ASKED)
        (holder, _) = file.read()
        assert {r.api_key_id for r in stack.generation.requests} == {holder.id}
        async with AsyncAnthropic(base_url=stack.url, api_key=other, max_retries=0) as client:
            with pytest.raises(anthropic.PermissionDeniedError, match="needs the scope infer"):
                await client.messages.create(**ASKED)
        async with AsyncAnthropic(base_url=stack.url, api_key="wrong", max_retries=0) as client:
            with pytest.raises(anthropic.AuthenticationError, match="a wrong key"):
                await client.messages.create(**ASKED)
        async with httpx.AsyncClient(base_url=stack.url) as http:
            # Every route reads it; where both headers are sent, the bearer token counts.
            assert (await http.get("/v1/models", headers={"x-api-key": key})).is_success
            both = {"x-api-key": key, "authorization": "Bearer wrong"}
            assert (await http.get("/v1/models", headers=both)).status_code == 401
            assert (await http.post(PATH, json=ASKED)).json()["error"]["type"] == (
                "authentication_error"
            )


async def test_limits_of_a_key(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    key = make_key(file, requests_per_day=2)
    async with (
        running_gateway(keys_file=file.path) as stack,
        AsyncAnthropic(base_url=stack.url, api_key=key) as client,
    ):
        await client.messages.create(**ASKED)
        await client.messages.count_tokens(model="tuneloop", messages=MESSAGES)
        with pytest.raises(anthropic.RateLimitError, match="may use 2 requests a day") as raised:
            await client.messages.create(**ASKED)
        assert raised.value.response.headers["x-should-retry"] == "false"
        assert "retry-after" in raised.value.response.headers
        assert len(stack.generation.requests) == 1


@pytest.mark.parametrize(
    ("error", "status", "kind", "message"),
    [
        (InvalidRequest("tools: off", param="tools"), 400, "invalid_request_error", "tools: off"),
        (
            InvalidRequest("response_format: too deep", param="response_format"),
            400,
            "invalid_request_error",
            "output_config.format: too deep",
        ),
        (NotFound("no version 9", param="policy_version"), 404, "not_found_error", "no version 9"),
        (Overloaded("too many", retry_after=2.0), 529, "overloaded_error", "too many"),
        (Unavailable("starting", retry_after=3.0), 503, "api_error", "starting"),
        (TuneloopError("lost 10.0.0.1:5432"), 500, "api_error", "a part of the service failed"),
    ],
)
async def test_errors_of_generation(
    stack: Stack, client: AsyncAnthropic, error: TuneloopError, status: int, kind: str, message: str
) -> None:
    stack.generation.fail = error
    for asking in (
        client.messages.create(**ASKED),
        client.messages.create(**ASKED, stream=True),
        client.messages.count_tokens(model="tuneloop", messages=MESSAGES),
    ):
        with pytest.raises(anthropic.APIStatusError) as raised:
            await asking
        body: Any = raised.value.body
        assert raised.value.status_code == status
        assert (body["type"], body["error"]["type"]) == ("error", kind)
        assert body["error"]["message"].startswith(message)
        assert body["error"].keys() == {"type", "message"}
        assert body["request_id"] == raised.value.request_id
        assert ("retry-after" in raised.value.response.headers) == (status in (503, 529))


async def test_a_failure_half_way_is_an_event(stack: Stack, client: AsyncAnthropic) -> None:
    stack.generation.fail, stack.generation.fail_after = Overloaded("too many"), 2
    pieces = []

    async def read() -> None:
        async with client.messages.stream(**ASKED) as stream:
            async for text in stream.text_stream:
                pieces.append(text)

    with pytest.raises(anthropic.APIStatusError, match="overloaded_error"):
        await read()
    assert "".join(pieces) == "Hello,"


async def test_an_answer_that_generation_gave_up_is_an_error(
    stack: Stack, client: AsyncAnthropic, http: httpx.AsyncClient
) -> None:
    stack.generation.finish_reason = rollout_pb2.FINISH_REASON_ABORT
    with pytest.raises(anthropic.InternalServerError) as raised:
        await client.messages.create(**ASKED)
    assert raised.value.status_code == 503
    *_, error = await events(http, ASKED)
    assert error["error"]["type"] == "api_error"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_tokens": None}, "max_tokens: "),
        ({"messages": []}, "messages: "),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": "So"}]}, "messages: the last"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "messages[0].content[0].type: blocks of type 'image' are not supported",
        ),
        ({"messages": [{"role": "user", "content": []}]}, "messages: "),
        ({"system": [{"type": "image"}]}, "system: only text parts"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]: tools of"),
        ({"tools": [TOOL | {"input_schema": 3}]}, "tools[0].input_schema: "),
        ({"tool_choice": {"type": "any"}}, "tool_choice: needs tools"),
        ({"tool_choice": {"type": "tool"}, "tools": [TOOL]}, "tool_choice: the type 'tool'"),
        ({"thinking": {"type": "enabled"}}, "thinking: the type 'enabled' needs budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens: "),
        ({"stop_sequences": ["x" * 65]}, "stop_sequences: "),
        ({"temperature": 3}, "temperature: "),
        ({"output_config": {"format": {"type": "text"}}}, "output_config.format.type: "),
        ({"metadata": {"user_id": "x" * 513}}, "metadata.user_id: "),
        ({"metadata": {"train": 3}}, "metadata: train must be"),
        ({"metadata": {"session_id": ""}}, "metadata.session_id: "),
        ({"session_id": ""}, "session_id: "),
    ],
)
async def test_a_wrong_request_names_the_field(
    http: httpx.AsyncClient, changed: dict[str, Any], message: str
) -> None:
    response = await http.post(PATH, json=ASKED | changed)
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["message"].startswith(message), error["message"]


async def test_results_of_tools_count_as_messages(http: httpx.AsyncClient) -> None:
    result = {"type": "tool_result", "tool_use_id": "t"}
    body = ASKED | {"messages": [{"role": "user", "content": [result] * 2049}]}
    response = await http.post(PATH, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("messages: ")


async def test_every_error_under_the_path_has_anthropics_form() -> None:
    async with (
        running_gateway(max_body_bytes=1024) as stack,
        httpx.AsyncClient(base_url=stack.url) as http,
    ):
        large = b"x" * 1025

        async def pieces() -> AsyncIterator[bytes]:
            yield large

        for status, kind, response in (
            (400, "invalid_request_error", await http.post(PATH, content=b"{")),
            (403, "permission_error", await http.post(PATH, headers={"via": "proxy"})),
            (404, "not_found_error", await http.post(f"{PATH}/batches")),
            (405, "invalid_request_error", await http.get(PATH)),
            (413, "request_too_large", await http.post(PATH, content=large)),
            (413, "request_too_large", await http.post(PATH, content=pieces())),
            (
                413,
                "request_too_large",
                await http.post(PATH, content=pieces(), headers={"idempotency-key": "k"}),
            ),
        ):
            body = response.json()
            assert (response.status_code, body["type"], body["error"]["type"]) == (
                status,
                "error",
                kind,
            )
            assert body["request_id"] == response.headers["request-id"]
        assert "code" in (await http.get("/v1/messagesx")).json()["error"]


async def test_a_silent_stream_carries_pings() -> None:
    async with running_gateway(heartbeat_seconds=0.05) as stack:
        stack.generation.first_delay, stack.generation.delay = 0.3, 0.12
        stack.generation.pieces = ("a", "b")
        client = AsyncAnthropic(base_url=stack.url, api_key="none", max_retries=0)
        async with client, httpx.AsyncClient(base_url=stack.url) as http:
            types = [event["type"] for event in await events(http, ASKED)]
            assert types[0] == "ping"
            assert "ping" in types[types.index("content_block_start") :]
            async with client.messages.stream(**ASKED) as stream:
                assert await stream.get_final_text() == "ab"
