"""OpenAI's Responses through a real socket, with the `openai` package and by hand."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel
from support import codex
from support.browser_page import feedback_of
from support.gateway_fakes import IDS
from support.gateway_stack import Stack, running_gateway
from support.generated_pieces import call_two_functions

from tuneloop.errors import InvalidRequest, Overloaded, TuneloopError, Unavailable
from tuneloop.feedback import Thumb
from tuneloop.gateway.keys.store import KeyFile, Limits, Scope, new_key
from tuneloop.v1 import rollout_pb2

ASKED: Any = {"model": "tuneloop", "input": "hi"}
TOOL: Any = {
    "type": "function",
    "name": "look_up",
    "description": "d",
    "parameters": {"type": "object"},
    "strict": False,
}
TEXT = "Hello, wörld \u2028👋"
PATH = "/v1/responses"


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0) as openai:
        yield openai


async def events(http: httpx.AsyncClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = await http.post(PATH, json=body | {"stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    told = [part for part in response.text.split("\n\n") if part and not part.startswith(":")]
    return [json.loads(part.split("\ndata: ")[1]) for part in told]


def said(request: Any) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in request.chat.messages]


def make_key(file: KeyFile, name: str, scope: Scope = Scope.INFER, **limits: int) -> str:
    secret, key = new_key(name, [scope], Limits(**limits))
    file.add(key)
    return secret


async def test_a_whole_response(stack: Stack, http: httpx.AsyncClient) -> None:
    response = await http.post(
        PATH,
        json=ASKED
        | {
            "instructions": "Be brief.",
            "user": "ann",
            "max_output_tokens": 20,
            "temperature": 0.5,
            "metadata": {"topic": "geography"},
        },
    )
    document = response.json()
    request = stack.generation.requests[0]
    assert document.pop("created_at") > 1_700_000_000
    (item,) = document.pop("output")
    assert item.pop("id").startswith("msg_")
    assert item == {
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": TEXT, "annotations": []}],
    }
    assert document == {
        "id": request.completion_id,
        "object": "response",
        "status": "completed",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": "Be brief.",
        "max_output_tokens": 20,
        "metadata": {"topic": "geography"},
        "model": "tuneloop",
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": True,
        "temperature": 0.5,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": {
            "input_tokens": 11,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 16,
        },
        "user": "ann",
        "policy_version": 3,
    }
    assert response.headers["x-policy-version"] == "3"
    assert response.headers["x-completion-id"] == request.completion_id
    assert request.completion_id.startswith("resp_")
    assert IDS.check("default", document["id"], "id").user_hash == request.user_hash
    assert said(request) == [("system", "Be brief."), ("user", "hi")]
    assert request.publish_rollout is True
    assert (request.sampling.max_tokens, request.clip_max_tokens) == (20, False)


async def test_a_stream_is_exact(http: httpx.AsyncClient) -> None:
    told = await events(http, ASKED)
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    assert [event["type"].removeprefix("response.") for event in told] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * 4,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [e["delta"] for e in told[4:8]] == ["Hel", "lo,", " wörld", " \u2028👋"]
    assert told[0]["response"]["status"] == told[1]["response"]["status"] == "in_progress"
    assert told[0]["response"]["policy_version"] == 3
    assert told[-1]["response"]["usage"]["total_tokens"] == 16
    assert told[-1]["response"]["output"] == [told[-2]["item"]]


async def test_the_openai_package(stack: Stack, client: AsyncOpenAI) -> None:
    whole = await client.responses.create(**ASKED)
    async with client.responses.stream(**ASKED) as stream:
        pieces = [e.delta async for e in stream if e.type == "response.output_text.delta"]
        streamed = await stream.get_final_response()
    assert "".join(pieces) == TEXT
    for response, request in zip((whole, streamed), stack.generation.requests, strict=True):
        assert response.id == request.completion_id
        assert response.output_text == TEXT
        assert response.status == "completed"
        assert response.usage is not None
        assert (response.usage.input_tokens, response.usage.output_tokens) == (11, 5)
        assert response.model_extra == {"store": True, "policy_version": 3}
        type(response).model_validate(response.to_dict())


async def test_feedback_names_a_response_by_its_id(
    stack: Stack, client: AsyncOpenAI, http: httpx.AsyncClient
) -> None:
    response = await client.responses.create(**ASKED)
    body = {"kind": "thumb", "completion_id": response.id, "value": "up"}
    assert (await http.post("/v1/feedback", json=body)).status_code == 202
    (feedback,) = feedback_of(stack)
    assert feedback.judgement == Thumb(up=True)
    assert feedback.completion_ids == (stack.generation.requests[0].completion_id,)


async def test_calls_of_functions_are_told(stack: Stack, client: AsyncOpenAI) -> None:
    delta = stack.generation.delta
    call_two_functions(stack.generation)
    asked = ASKED | {"tools": [TOOL], "tool_choice": {"type": "function", "name": "look_up"}}
    whole = await client.responses.create(**asked)
    async with client.responses.stream(**asked) as stream:
        streamed = await stream.get_final_response()
    for response in (whole, streamed):
        assert response.output_text == "let me see"
        calls = [item for item in response.output if item.type == "function_call"]
        assert [(c.call_id, c.name, c.arguments, c.status) for c in calls] == [
            ("call_a", "look_up", '{"word": "x"}', "completed"),
            ("call_b", "store", "{}", "completed"),
        ]
    assert stack.generation.requests[0].tool_use.name == "look_up"

    # The output of a call goes on from the response that called.
    stack.generation.delta = delta  # type: ignore[method-assign]
    output: Any = [{"type": "function_call_output", "call_id": "call_b", "output": "done"}]
    await client.responses.create(
        model="tuneloop", input=output, tools=[TOOL], previous_response_id=streamed.id
    )
    messages = stack.generation.requests[-1].chat.messages
    assert [(m.role, m.content, m.tool_call_id) for m in messages] == [
        ("user", "hi", ""),
        ("assistant", "let me see", ""),
        ("tool", "done", "call_b"),
    ]
    assert [(c.call_id, c.arguments) for c in messages[1].tool_calls] == [
        ("call_a", '{"word": "x"}'),
        ("call_b", "{}"),
    ]


class Place(BaseModel):
    """What the model must answer with."""

    kind: Literal["river", "sea"]


async def test_structured_output(stack: Stack, client: AsyncOpenAI) -> None:
    stack.generation.pieces = ('{"kind": ', '"sea"}')
    parsed = await client.responses.parse(**ASKED, text_format=Place)
    assert parsed.output_parsed == Place(kind="sea")
    (request,) = stack.generation.requests
    assert json.loads(request.sampling.json_schema)["required"] == ["kind"]


async def test_an_answer_that_was_cut_off_is_incomplete(
    stack: Stack, client: AsyncOpenAI, http: httpx.AsyncClient
) -> None:
    stack.generation.finish_reason = rollout_pb2.FINISH_REASON_LENGTH
    whole = await client.responses.create(**ASKED)
    ended = (await events(http, ASKED))[-1]
    assert ended["type"] == "response.incomplete"
    for document in (whole.to_dict(), ended["response"]):
        assert document["status"] == "incomplete"
        assert document["incomplete_details"] == {"reason": "max_output_tokens"}
        assert document["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_is_continued(stack: Stack, client: AsyncOpenAI, stream: bool) -> None:
    async def ask(**asked: Any) -> str:
        if not stream:
            return (await client.responses.create(**asked)).id
        async with client.responses.stream(**asked) as told:
            return (await told.get_final_response()).id

    first = await ask(**ASKED, instructions="Be brief.")
    second = await ask(**ASKED | {"input": "and then?"}, previous_response_id=first)
    other = await ask(**ASKED | {"input": "or else?"}, previous_response_id=first)
    await ask(**ASKED | {"input": "why?"}, previous_response_id=second, instructions="In French.")
    requests = stack.generation.requests
    begun = [("user", "hi"), ("assistant", TEXT)]
    assert said(requests[1]) == [*begun, ("user", "and then?")]
    assert said(requests[2]) == [*begun, ("user", "or else?")]
    assert said(requests[3]) == [
        ("system", "In French."),
        *begun,
        ("user", "and then?"),
        ("assistant", TEXT),
        ("user", "why?"),
    ]
    # All are turns of one session, which is called as the first.
    assert {r.session_id for r in requests} == {first}
    assert len({first, second, other}) == 3


async def test_a_response_without_store_is_not_continued(
    stack: Stack, client: AsyncOpenAI, http: httpx.AsyncClient
) -> None:
    kept = await client.responses.create(**ASKED)
    unkept = await client.responses.create(**ASKED, previous_response_id=kept.id, store=False)
    assert (unkept.store, unkept.previous_response_id) == (False, kept.id)
    alone = await client.responses.create(**ASKED, store=False)
    assert [r.session_id for r in stack.generation.requests] == [kept.id, kept.id, ""]
    for unknown in (unkept.id, alone.id, "resp_x"):
        response = await http.post(PATH, json=ASKED | {"previous_response_id": unknown})
        assert response.status_code == 400
        assert response.json()["error"] == {
            "message": f"no previous response {unknown!r} is known here: send the whole "
            "conversation in input",
            "type": "invalid_request_error",
            "param": "previous_response_id",
            "code": "previous_response_not_found",
        }


@pytest.mark.parametrize("stream", [False, True])
async def test_items_are_sent_by_their_ids(stack: Stack, client: AsyncOpenAI, stream: bool) -> None:
    call_two_functions(stack.generation)
    if stream:
        async with client.responses.stream(**ASKED, tools=[TOOL]) as told:
            first = await told.get_final_response()
    else:
        first = await client.responses.create(**ASKED, tools=[TOOL])
    references: Any = [{"type": "item_reference", "id": item.id} for item in first.output]
    turns: Any = [
        {"role": "user", "content": "hi"},
        *references,
        *(
            {"type": "function_call_output", "call_id": item.call_id, "output": "done"}
            for item in first.output
            if item.type == "function_call"
        ),
    ]
    second = await client.responses.create(**ASKED | {"input": turns}, tools=[TOOL])
    await client.responses.create(
        **ASKED | {"input": "more"}, previous_response_id=second.id, store=False
    )
    asked, after, last = stack.generation.requests
    roles = [m.role for m in after.chat.messages]
    assert roles == ["user", "assistant", "tool", "tool"]
    calls = [c.call_id for c in after.chat.messages[1].tool_calls]
    assert calls == [item.call_id for item in first.output if item.type == "function_call"]
    assert [m.content for m in last.chat.messages][:4] == [m.content for m in after.chat.messages]
    # Who names items of an answer goes on from it.
    assert {request.session_id for request in (asked, after, last)} == {first.id}


async def test_items_that_are_not_known_are_named(
    client: AsyncOpenAI, http: httpx.AsyncClient
) -> None:
    unkept = await client.responses.create(**ASKED, store=False)
    for item_id in (unkept.output[0].id, "msg_x"):
        response = await http.post(PATH, json=ASKED | {"input": [{"id": item_id}]})
        assert response.status_code == 404
        assert response.json()["error"] == {
            "message": f"no item {item_id!r} is known here: send the item itself in input",
            "type": "invalid_request_error",
            "param": "input",
            "code": "item_not_found",
        }


async def test_the_session_is_the_callers_where_it_names_one(
    stack: Stack, client: AsyncOpenAI
) -> None:
    first = await client.responses.create(**ASKED, extra_headers={"x-session-id": "chat-1"})
    await client.responses.create(**ASKED, previous_response_id=first.id)
    await client.responses.create(
        **ASKED, previous_response_id=first.id, metadata={"session_id": "chat-2"}
    )
    sessions = [request.session_id for request in stack.generation.requests]
    assert sessions == ["chat-1", "chat-1", "chat-2"]


async def test_what_is_forgotten_is_not_continued(
    client: AsyncOpenAI, http: httpx.AsyncClient
) -> None:
    for forget in ("/v1/users/ann", "/v1/sessions/chat-1"):
        of_ann = await client.responses.create(
            **ASKED, user="ann", extra_headers={"x-session-id": "chat-1"}
        )
        of_bob = await client.responses.create(**ASKED, user="bob")
        assert (await http.delete(forget)).is_success
        with pytest.raises(openai.BadRequestError, match="is known here"):
            await client.responses.create(**ASKED, previous_response_id=of_ann.id)
        await client.responses.create(**ASKED, previous_response_id=of_bob.id)


async def test_what_codex_sends_is_answered(stack: Stack, http: httpx.AsyncClient) -> None:
    response = await http.post(PATH, json=codex.BODY, headers=codex.HEADERS)
    assert response.status_code == 200, response.text
    assert "event: response.completed\n" in response.text
    (request,) = stack.generation.requests
    assert [(m.role, m.content, m.tool_call_id) for m in request.chat.messages] == [
        ("system", "You are a coding agent.\n\n# Tone\nBe brief.", ""),
        ("system", "<permissions>\nAsk before you write.\n</permissions>", ""),
        ("user", "# AGENTS.md\nUse pytest.\n\n<environment>\n/src\n</environment>", ""),
        ("user", "fix the test", ""),
        ("assistant", "I'll read it first.", ""),
        ("tool", "assert False", "call_01"),
    ]
    (call,) = request.chat.messages[4].tool_calls
    assert (call.call_id, call.name) == ("call_01", "exec_command")
    assert [t.name for t in request.tool_use.tools] == [t["name"] for t in codex.TOOLS]
    assert request.tool_use.single is True

    for tool in (codex.WEB_SEARCH, codex.PATCH):
        refused = await http.post(PATH, json=codex.BODY | {"tools": [*codex.TOOLS, tool]})
        assert refused.status_code == 400
        assert refused.json()["error"]["message"] == (
            f"tools[6]: tools of type {tool['type']!r} are not supported, functions are"
        )


async def test_side_tasks(stack: Stack, http: httpx.AsyncClient) -> None:
    await http.post(PATH, json=ASKED, headers={"x-tuneloop-train": "false"})
    await http.post(PATH, json=ASKED | {"metadata": {"task": "title"}})
    assert [r.publish_rollout for r in stack.generation.requests] == [False, False]


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
    other = await http.post(PATH, json=ASKED | {"input": "ho"}, headers=headers)
    assert other.status_code == 409


async def test_keys_and_their_limits(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    key, second = make_key(file, "first", requests_per_day=2), make_key(file, "second")
    feedback = make_key(file, "third", Scope.FEEDBACK)
    async with running_gateway(keys_file=file.path) as stack:
        url = f"{stack.url}/v1"
        async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
            mine = await client.responses.create(**ASKED)
            with pytest.raises(openai.NotFoundError, match="POST /v1/responses is all"):
                await client.responses.retrieve(mine.id)
            await client.responses.create(**ASKED, previous_response_id=mine.id)
            with pytest.raises(openai.RateLimitError, match="may use 2 requests a day"):
                await client.responses.create(**ASKED)
        assert len(stack.generation.requests) == 2
        async with AsyncOpenAI(base_url=url, api_key=second, max_retries=0) as client:
            # Another caller's response is none that it may name.
            with pytest.raises(openai.BadRequestError, match="is known here"):
                await client.responses.create(**ASKED, previous_response_id=mine.id)
        async with AsyncOpenAI(base_url=url, api_key=feedback, max_retries=0) as client:
            with pytest.raises(openai.PermissionDeniedError, match="needs the scope infer"):
                await client.responses.create(**ASKED)


@pytest.mark.parametrize(
    ("error", "status", "param", "message"),
    [
        (InvalidRequest("tools: off", param="tools"), 400, "tools", "tools: off"),
        (
            InvalidRequest("response_format: too deep", param="response_format"),
            400,
            "text.format",
            "text.format: too deep",
        ),
        (
            InvalidRequest("max_tokens is 9, but only 3 fit", param="max_tokens"),
            400,
            "max_output_tokens",
            "max_output_tokens is 9, but only 3 fit",
        ),
        (
            InvalidRequest("the prompt has 9 tokens", param="messages"),
            400,
            "input",
            "the prompt has 9 tokens",
        ),
        (Overloaded("too many", retry_after=2.0), 429, None, "too many"),
        (Unavailable("starting", retry_after=3.0), 503, None, "starting"),
        (TuneloopError("lost 10.0.0.1:5432"), 500, None, "a part of the service failed"),
    ],
)
async def test_errors_of_generation(
    stack: Stack,
    client: AsyncOpenAI,
    error: TuneloopError,
    status: int,
    param: str | None,
    message: str,
) -> None:
    stack.generation.fail = error
    for stream in (False, True):
        with pytest.raises(openai.APIStatusError) as raised:
            await client.responses.create(**ASKED, stream=stream)
        body: Any = raised.value.body
        assert (raised.value.status_code, body["param"]) == (status, param)
        assert body["message"].startswith(message)


async def test_a_failure_half_way_is_an_event(stack: Stack, client: AsyncOpenAI) -> None:
    stack.generation.fail, stack.generation.fail_after = Overloaded("too many"), 2
    told = [event async for event in await client.responses.create(**ASKED, stream=True)]
    pieces = [event.delta for event in told if event.type == "response.output_text.delta"]
    assert "".join(pieces) == "Hello,"
    failed = told[-1]
    assert failed.type == "response.failed"
    assert failed.response.error is not None
    assert failed.response.error.code == "rate_limit_exceeded"
    with pytest.raises(openai.BadRequestError, match="is known here"):
        await client.responses.create(**ASKED, previous_response_id=failed.response.id)


async def test_an_answer_that_generation_gave_up_is_an_error(
    stack: Stack, client: AsyncOpenAI, http: httpx.AsyncClient
) -> None:
    stack.generation.finish_reason = rollout_pb2.FINISH_REASON_ABORT
    with pytest.raises(openai.InternalServerError) as raised:
        await client.responses.create(**ASKED)
    assert raised.value.status_code == 503
    *_, failed = await events(http, ASKED)
    assert failed["response"]["error"]["code"] == "server_error"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input": None}, "input: "),
        ({"input": []}, "input: "),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input: "),
        ({"input": [{"role": "user", "content": "a"}] * 2049}, "input: "),
        ({"input": [{"type": "item_reference"}]}, "input[0]: an item of type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content: "),
        ({"tools": [{"type": "mcp"}]}, "tools[0]: tools of type 'mcp' are not supported"),
        ({"tools": [{"type": "namespace", "name": "x", "tools": []}]}, "tools[0]: tools of type"),
        ({"tools": [TOOL | {"parameters": 3}]}, "tools[0].parameters: "),
        ({"tool_choice": "required"}, "tool_choice: needs tools"),
        ({"tool_choice": {"type": "allowed_tools"}, "tools": [TOOL]}, "tool_choice: must be"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format: the type 'json_schema'"),
        ({"text": {"verbosity": "low"}}, "text.verbosity: "),
        ({"include": ["message.output_text.logprobs"]}, "include: 'message.output_text.logprobs'"),
        ({"max_output_tokens": 0}, "max_output_tokens: "),
        ({"temperature": 3}, "temperature: "),
        ({"user": "x" * 513}, "user: "),
        ({"metadata": {"train": 3}}, "metadata: train must be"),
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


async def test_responses_are_not_read_back(http: httpx.AsyncClient) -> None:
    response_id = (await http.post(PATH, json=ASKED)).json()["id"]
    for method, rest in (
        ("GET", response_id),
        ("GET", f"{response_id}/input_items"),
        ("DELETE", response_id),
        ("POST", f"{response_id}/cancel"),
        ("POST", "compact"),
    ):
        response = await http.request(method, f"{PATH}/{rest}")
        assert response.status_code == 404
        assert response.json()["error"]["message"].startswith("responses cannot be read")
    assert (await http.get(PATH)).status_code == 405


async def test_a_silent_stream_carries_comments() -> None:
    async with running_gateway(heartbeat_seconds=0.05) as stack:
        stack.generation.first_delay, stack.generation.delay = 0.3, 0.12
        stack.generation.pieces = ("a", "b")
        client = AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0)
        async with client, httpx.AsyncClient(base_url=stack.url) as http:
            raw = await http.post(PATH, json=ASKED | {"stream": True})
            assert raw.text.startswith(": still at work\n\n")
            async with client.responses.stream(**ASKED) as told:
                assert (await told.get_final_response()).output_text == "ab"
