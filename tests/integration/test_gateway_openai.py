"""The OpenAI surface through a real socket, with the `openai` package and by hand."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from openai import APIError, AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from support.gateway_fakes import IDS
from support.gateway_stack import Stack, running_gateway
from support.generated_pieces import call_two_functions

from tuneloop.errors import InvalidRequest, Overloaded, TuneloopError, Unavailable

MESSAGES: Any = [{"role": "user", "content": "hi"}]
BODY = {"model": "tuneloop", "messages": MESSAGES}
SCHEMA = "response_format.json_schema"
IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}


def function(name: str, parameters: Any) -> Any:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOL = function("look_up", {"type": "object"})
CALL: Any = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
TITLE = "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history."
TEXT = "Hello, wörld \u2028👋"


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0) as openai:
        yield openai


def json_schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


async def sse(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[str]:
    response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events.pop() == ""
    return events


async def test_chat_whole(stack: Stack, http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/chat/completions", json=BODY | {"user": "ann"})
    document = response.json()
    assert response.headers["x-policy-version"] == "3"
    assert response.headers["x-completion-id"] == stack.generation.requests[-1].completion_id
    assert document["policy_version"] == 3
    assert document["object"] == "chat.completion"
    choice = document["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": TEXT, "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert choice["completion_id"] == document["id"]
    assert document["usage"] == {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
    checked = IDS.check("default", document["id"], "id")
    request = stack.generation.requests[0]
    assert checked.user_hash == IDS.user_hash("default", "ann") == request.user_hash
    assert request.completion_id == document["id"]


async def test_chat_stream_is_exact(http: httpx.AsyncClient) -> None:
    body = BODY | {"stream": True, "stream_options": {"include_usage": True}}
    *events, usage, done = await sse(http, "/v1/chat/completions", body)
    assert done == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [c["choices"][0]["delta"].get("content") for c in chunks[1:-1]] == [
        "Hel",
        "lo, ",
        "wörld ",
        "\u2028",
        "👋",
    ]
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * 6 + ["stop"]
    assert {c["policy_version"] for c in chunks} == {3}
    assert all(c["usage"] is None for c in chunks)
    assert len({(c["id"], c["created"], c["object"]) for c in chunks}) == 1
    last = json.loads(usage.removeprefix("data: "))
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 16


async def test_stream_without_usage_has_no_usage(http: httpx.AsyncClient) -> None:
    events = await sse(http, "/v1/chat/completions", BODY | {"stream": True})
    assert not any("usage" in event for event in events)


async def test_the_openai_package_streams(stack: Stack, client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="tuneloop", messages=MESSAGES, stream=True, n=2, logprobs=True, top_logprobs=2
    )
    texts = ["", ""]
    ids = set()
    async for chunk in stream:
        assert chunk.policy_version == 3  # type: ignore[attr-defined]
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ids.add(choice.completion_id)  # type: ignore[attr-defined]
            if choice.delta.content:
                assert choice.logprobs is not None
                position = choice.logprobs.content[0]  # type: ignore[index]
                assert position.token == choice.delta.content
                assert position.logprob == -0.5
                assert [t.logprob for t in position.top_logprobs] == [-0.5, -9999.0]
    assert texts == [TEXT, TEXT]
    base = stack.generation.requests[0].completion_id
    assert ids == {base, f"{base}.1"}


async def test_the_openai_package_without_async(stack: Stack) -> None:
    def talk() -> tuple[str, str, str]:
        with OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0) as openai:
            whole = openai.chat.completions.create(model="tuneloop", messages=MESSAGES)
            stream = openai.chat.completions.create(
                model="tuneloop", messages=MESSAGES, stream=True
            )
            pieces = [c.choices[0].delta.content or "" for c in stream]
            legacy = openai.completions.create(model="tuneloop", prompt="once")
            return whole.choices[0].message.content or "", "".join(pieces), legacy.choices[0].text

    assert await asyncio.to_thread(talk) == (TEXT, TEXT, TEXT)


async def test_parameters_reach_generation(stack: Stack, http: httpx.AsyncClient) -> None:
    body = BODY | {
        "messages": [
            {"role": "developer", "content": "be brief", "name": "x"},
            {"role": "user", "content": [text_part("a"), text_part("b")]},
        ],
        "max_tokens": 9,
        "max_completion_tokens": 7,
        "temperature": 0,
        "top_p": 0.5,
        "n": 2,
        "stop": "END",
        "seed": -5,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "logit_bias": {"5": -100},
        "policy_version": 2,
        "metadata": {"train": False, "task": "", "feature": "search", "try": 2, "beta": True,
                     "none": None},
        "something_new": {"a": 1},
        "tools": None,
        "response_format": {"type": "text"},
    }  # fmt: skip
    assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
    request = stack.generation.requests[0]
    assert [(m.role, m.content) for m in request.chat.messages] == [
        ("system", "be brief"),
        ("user", "ab"),
    ]
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (7, 0, 0.5)
    assert (sampling.n, list(sampling.stop), sampling.seed) == (2, ["END"], -5)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1)
    assert dict(sampling.logit_bias) == {5: -100}
    assert not sampling.HasField("top_logprobs")
    assert request.policy_version == 2
    assert request.publish_rollout is False
    assert dict(request.tags) == {"feature": "search", "try": "2", "beta": "true"}
    assert request.clip_max_tokens is False


async def test_defaults(stack: Stack, http: httpx.AsyncClient) -> None:
    await http.post("/v1/chat/completions", json=BODY)
    request = stack.generation.requests[0]
    assert (request.sampling.max_tokens, request.sampling.temperature) == (256, 0.5)
    assert (request.sampling.n, request.sampling.top_p) == (1, 1.0)
    assert request.publish_rollout is True
    assert request.clip_max_tokens is True
    assert not request.HasField("policy_version")
    assert request.user_hash == IDS.user_hash("default", None)


async def test_a_top_p_of_0_leaves_the_likeliest_token(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    body = BODY | {"top_p": 0, "temperature": 1}
    assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
    sampling = stack.generation.requests[0].sampling
    assert (sampling.temperature, sampling.top_p) == (0.0, 1.0)


async def test_plain_completions_with_several_prompts(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    body = {"model": "tuneloop", "prompt": ["one", "two"], "n": 2, "logprobs": 1, "max_tokens": 3}
    document = (await http.post("/v1/completions", json=body)).json()
    assert [c["index"] for c in document["choices"]] == [0, 1, 2, 3]
    assert {c["text"] for c in document["choices"]} == {TEXT}
    assert document["usage"] == {"prompt_tokens": 22, "completion_tokens": 20, "total_tokens": 42}
    logprobs = document["choices"][0]["logprobs"]
    assert logprobs["tokens"] == list(stack.generation.pieces)
    assert logprobs["text_offset"] == [0, 3, 7, 13, 14]
    assert logprobs["token_logprobs"] == [-0.5] * 5
    prompts = {request.text: request.completion_id for request in stack.generation.requests}
    ids = [prompts["one"], f"{prompts['one']}.1", prompts["two"], f"{prompts['two']}.1"]
    assert [c["completion_id"] for c in document["choices"]] == ids
    events = await sse(http, "/v1/completions", body | {"stream": True})
    texts = dict.fromkeys(range(4), "")
    for event in events[:-1]:
        for choice in json.loads(event.removeprefix("data: "))["choices"]:
            texts[choice["index"]] += choice["text"]
    assert set(texts.values()) == {TEXT}


async def test_token_prompts(stack: Stack, http: httpx.AsyncClient) -> None:
    body = {"model": "tuneloop", "prompt": [1, 2, 3]}
    assert (await http.post("/v1/completions", json=body)).status_code == 200
    assert list(stack.generation.requests[0].tokens.token_ids) == [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"n": 65}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["end", "x" * 65]}, "stop"),
        ({"logit_bias": {str(token): 1 for token in range(301)}}, "logit_bias"),
        ({"messages": [{"role": "user", "content": ""}] * 2049}, "messages"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages[0]"),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type"),
        ({"tools": [function("f", 1)]}, "tools[0].function.parameters"),
        ({"tools": [function("f", {"x": "\ud800"})]}, "tools[0].function.parameters"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "maybe", "tools": [TOOL]}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools"}, "tools": [TOOL]}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": json_schema("no object")}, f"{SCHEMA}.schema"),
        ({"response_format": json_schema({"title": "\ud800"})}, f"{SCHEMA}.schema"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {}}, "audio"),
        ({"metadata": {"train": "maybe"}}, "metadata"),
        ({"metadata": {"a": [1]}}, "metadata"),
        ({"metadata": {"": "a"}}, "metadata"),
        ({"metadata": {"a": "b" * 513}}, "metadata"),
        ({"metadata": {"a" * 65: "b"}}, "metadata"),
        ({"metadata": {"a": "\ud800"}}, "metadata"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"stream": "perhaps"}, "stream"),
        ({"policy_version": -1}, "policy_version"),
    ],
)  # fmt: skip
async def test_bad_parameters_are_named(
    stack: Stack, http: httpx.AsyncClient, change: dict[str, Any], param: str
) -> None:
    content = json.dumps(BODY | change)
    headers = {"content-type": "application/json"}
    response = await http.post("/v1/chat/completions", content=content, headers=headers)
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert param.split("[", maxsplit=1)[0] in error["message"]
    assert stack.generation.requests == []


@pytest.mark.parametrize("prompt", [[], [[]], [[-1]], ["a", 1], 5, None, ["a"] * 65, [True]])
async def test_bad_prompts_are_named(http: httpx.AsyncClient, prompt: Any) -> None:
    response = await http.post("/v1/completions", json={"model": "tuneloop", "prompt": prompt})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize("content", [b"{", b"", b"[]", b"\xff\xfe", b"null", b"[" * 100_000])
async def test_malformed_bodies(http: httpx.AsyncClient, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    response = await http.post("/v1/chat/completions", content=content, headers=headers)
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


async def test_unknown_models(http: httpx.AsyncClient, client: AsyncOpenAI) -> None:
    with pytest.raises(NotFoundError) as refused:
        await client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    assert refused.value.code == "model_not_found"
    assert (await http.get("/v1/models/gpt-4")).json()["error"]["code"] == "model_not_found"
    models = [model async for model in client.models.list()]
    assert [model.id for model in models] == ["tuneloop"]
    assert (await client.models.retrieve("tuneloop")).id == "tuneloop"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Overloaded("the queue is full", retry_after=3), 429, "overloaded"),
        (Unavailable("draining", retry_after=2), 503, "unavailable"),
        (InvalidRequest("too long", param="messages"), 400, "invalid_request"),
        (TuneloopError("a bug"), 500, "internal"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_of_generation_before_the_first_token(
    stack: Stack,
    http: httpx.AsyncClient,
    error: TuneloopError,
    status: int,
    code: str,
    stream: bool,
) -> None:
    stack.generation.fail = error
    response = await http.post("/v1/chat/completions", json=BODY | {"stream": stream})
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert response.json()["error"]["param"] == error.param
    expected = None if error.retry_after is None else str(int(error.retry_after))
    assert response.headers.get("retry-after") == expected


async def test_an_error_inside_a_stream_is_told(
    stack: Stack, http: httpx.AsyncClient, client: AsyncOpenAI
) -> None:
    stack.generation.fail = Unavailable("the engine died")
    stack.generation.fail_after = 2
    *_, error, done = await sse(http, "/v1/chat/completions", BODY | {"stream": True})
    assert json.loads(error.removeprefix("data: "))["error"]["message"] == "the engine died"
    assert done == "data: [DONE]"
    stream = await client.chat.completions.create(model="tuneloop", messages=MESSAGES, stream=True)
    with pytest.raises(APIError, match="the engine died"):
        [chunk async for chunk in stream]
    with pytest.raises(APIError):
        await client.chat.completions.create(model="tuneloop", messages=MESSAGES)


async def test_an_answer_without_an_end_is_no_answer(stack: Stack, http: httpx.AsyncClient) -> None:
    stack.generation.without_final = True
    assert (await http.post("/v1/chat/completions", json=BODY)).status_code == 503
    *_, error, _ = await sse(http, "/v1/chat/completions", BODY | {"stream": True})
    assert "before the answer was complete" in error


async def test_one_failing_prompt_fails_the_answer(stack: Stack, http: httpx.AsyncClient) -> None:
    stack.generation.fail = Overloaded("full")
    stack.generation.fail_after = 1
    body = {"model": "tuneloop", "prompt": ["one", "two"]}
    assert (await http.post("/v1/completions", json=body)).status_code == 429


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_client_that_leaves_cancels_generation(
    stack: Stack, http: httpx.AsyncClient, path: str, stream: bool
) -> None:
    stack.generation.pieces = ("x",) * 10_000
    stack.generation.delay = 0.01
    body = {"model": "tuneloop", "messages": MESSAGES, "prompt": ["a", "b"], "stream": stream}
    if path.endswith("chat/completions"):
        body.pop("prompt")

    async def ask() -> None:
        async with http.stream("POST", path, json=body) as response:
            async for _ in response.aiter_bytes():
                pass

    asking = asyncio.create_task(ask())
    async with asyncio.timeout(10):
        while stack.generation.produced < 3:
            await asyncio.sleep(0.01)
        asking.cancel()
        await stack.generation.cancelled.wait()


async def test_a_client_that_leaves_before_the_first_token(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    stack.generation.first_delay = 60
    asking = asyncio.create_task(http.post("/v1/chat/completions", json=BODY | {"stream": True}))
    async with asyncio.timeout(10):
        while not stack.generation.requests:
            await asyncio.sleep(0.01)
        asking.cancel()
        await stack.generation.cancelled.wait()


async def test_a_silent_stream_carries_comments() -> None:
    async with running_gateway(heartbeat_seconds=0.05) as stack:
        stack.generation.first_delay = 0.3
        stack.generation.delay = 0.12
        stack.generation.pieces = ("a", "b")
        openai = AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0)
        async with openai, httpx.AsyncClient(base_url=stack.url) as http:
            events = await sse(http, "/v1/chat/completions", BODY | {"stream": True})
            assert events[0] == ": still at work"
            first_data = next(i for i, event in enumerate(events) if event.startswith("data"))
            assert ": still at work" in events[first_data:]
            stream = await openai.chat.completions.create(
                model="tuneloop", messages=MESSAGES, stream=True
            )
            pieces = [c.choices[0].delta.content or "" async for c in stream]
            assert "".join(pieces) == "ab"


async def test_a_swap_inside_an_answer_is_told(stack: Stack, http: httpx.AsyncClient) -> None:
    from tuneloop.v1 import rollout_pb2

    final = stack.generation.final

    def swapped(request: Any, index: int) -> Any:
        message = final(request, index)
        message.policy_version = 4
        message.policy_version_spans[0].end = 2
        message.policy_version_spans.append(
            rollout_pb2.PolicyVersionSpan(policy_version=4, start=2, end=5)
        )
        return message

    stack.generation.final = swapped  # type: ignore[method-assign]
    spans = [
        {"policy_version": 3, "start": 0, "end": 2},
        {"policy_version": 4, "start": 2, "end": 5},
    ]
    document = (await http.post("/v1/chat/completions", json=BODY)).json()
    assert document["policy_version"] == 4
    assert document["choices"][0]["policy_version_spans"] == spans
    response = await http.post("/v1/chat/completions", json=BODY | {"stream": True})
    assert response.headers["x-policy-version"] == "3"
    assert response.headers["x-completion-id"] == stack.generation.requests[-1].completion_id
    last = json.loads(response.text.split("\n\n")[-3].removeprefix("data: "))
    assert last["policy_version"] == 4
    assert last["choices"][0]["policy_version_spans"] == spans


async def test_the_openai_package_names_the_parameter(client: AsyncOpenAI) -> None:
    with pytest.raises(BadRequestError) as refused:
        await client.chat.completions.create(
            model="tuneloop", messages=MESSAGES, modalities=["text", "audio"]
        )
    assert refused.value.param == "modalities"


async def test_schemas_and_functions_reach_generation(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    schema = {"type": "object", "properties": {"größe": {"type": "integer"}}}
    strict = {"name": "store", "description": "keep it", "strict": True}
    body = BODY | {
        "messages": [
            *MESSAGES,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": [text_part("42")]},
        ],
        "tools": [TOOL, {"type": "function", "function": strict}],
        "parallel_tool_calls": False,
        "response_format": json_schema(schema),
        "safety_identifier": "ann",
    }
    for choice in ("auto", "required", "none", {"type": "function", "function": {"name": "store"}}):
        answer = await http.post("/v1/chat/completions", json=body | {"tool_choice": choice})
        assert answer.status_code == 200, answer.text
    auto, required, none, named = stack.generation.requests
    assert json.loads(auto.sampling.json_schema) == schema
    assert "größe" in auto.sampling.json_schema
    assert auto.user_hash == IDS.user_hash("default", "ann")
    (call,) = auto.chat.messages[1].tool_calls
    assert (call.call_id, call.name, call.arguments) == ("call_1", "look_up", "{}")
    assert auto.chat.messages[1].content == ""
    result = auto.chat.messages[2]
    assert (result.role, result.tool_call_id, result.content) == ("tool", "call_1", "42")
    first, second = auto.tool_use.tools
    assert (first.name, json.loads(first.parameters), first.strict) == (
        "look_up",
        {"type": "object"},
        False,
    )
    assert (second.description, second.parameters, second.strict) == ("keep it", "", True)
    assert auto.tool_use.single
    assert [(r.tool_use.required, r.tool_use.name) for r in (auto, required, named)] == [
        (False, ""),
        (True, ""),
        (False, "store"),
    ]
    assert not none.HasField("tool_use")
    await http.post(
        "/v1/chat/completions", json=BODY | {"response_format": {"type": "json_object"}}
    )
    assert json.loads(stack.generation.requests[-1].sampling.json_schema) == {"type": "object"}


async def test_calls_of_functions_are_told(stack: Stack, client: AsyncOpenAI) -> None:
    call_two_functions(stack.generation, between="")
    options: Any = {"model": "tuneloop", "messages": MESSAGES, "tools": [TOOL]}
    whole = (await client.chat.completions.create(**options)).choices[0]
    async with client.chat.completions.stream(**options) as stream:
        streamed = (await stream.get_final_completion()).choices[0]
    for choice in (whole, streamed):
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "let me see"
        assert [
            (c.id, c.type, c.function.name, c.function.arguments)
            for c in choice.message.tool_calls or ()
        ] == [
            ("call_a", "function", "look_up", '{"word": "x"}'),
            ("call_b", "function", "store", "{}"),
        ]


@pytest.mark.parametrize(
    ("change", "header", "trains"),
    [
        ({}, None, True),
        ({}, "false", False),
        ({}, "TRUE", True),
        ({"metadata": {"train": True}}, "false", False),
        ({"metadata": {"train": "false"}}, "true", False),
        ({"metadata": {"task": "title_generation"}}, None, False),
        ({"metadata": {"task": "title_generation", "train": True}}, None, True),
        ({"messages": [*MESSAGES, {"role": "user", "content": TITLE}]}, None, False),
        ({"messages": [*MESSAGES, {"role": "user", "content": TITLE}]}, "true", True),
        ({"messages": [{"role": "user", "content": TITLE}, *MESSAGES]}, None, True),
        ({"messages": [{"role": "user", "content": f"What is this: {TITLE}"}]}, None, True),
    ],
)
async def test_who_keeps_an_answer_out_of_training(
    stack: Stack, http: httpx.AsyncClient, change: Any, header: str | None, trains: bool
) -> None:
    headers = {} if header is None else {"x-tuneloop-train": header}
    await http.post("/v1/chat/completions", json=BODY | change, headers=headers)
    assert stack.generation.requests[0].publish_rollout is trains


@pytest.mark.parametrize(
    ("beginning", "trains"),
    [
        ("Generate a concise title summarizing the chat history.", False),
        ("Generate 1-3 broad tags categorizing the main themes", False),
        ("Predict 3-5 useful messages this user might naturally send next", False),
        ("Generate a detailed prompt for am image generation task", False),
        ("Analyze the chat history to determine the necessity of generating", False),
        ("You are an autocompletion system. Continue the text", False),
        # What a user asks about documents is no side task.
        ("Respond to the user query using the provided context", True),
    ],
)
async def test_the_side_tasks_of_open_webui_0_12_are_known_by_their_words(
    stack: Stack, http: httpx.AsyncClient, beginning: str, trains: bool
) -> None:
    turn = {"role": "user", "content": f"### Task:\n{beginning}"}
    await http.post("/v1/chat/completions", json=BODY | {"messages": [turn]})
    assert stack.generation.requests[0].publish_rollout is trains


async def test_the_header_says_yes_or_no(stack: Stack, http: httpx.AsyncClient) -> None:
    headers = {"x-tuneloop-train": "maybe"}
    for path, body in (
        ("/v1/chat/completions", BODY),
        ("/v1/completions", {"model": "tuneloop", "prompt": "x"}),
    ):
        response = await http.post(path, json=body, headers=headers)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "x-tuneloop-train"
    headers["x-tuneloop-train"] = "false"
    await http.post("/v1/completions", json={"model": "tuneloop", "prompt": "x"}, headers=headers)
    assert stack.generation.requests[0].publish_rollout is False


async def test_side_tasks_are_learned_from_by_setting() -> None:
    turn = {"messages": [{"role": "user", "content": TITLE}]}
    for settings in ({"learn_from_side_tasks": True}, {"side_task_prompts": ()}):
        async with running_gateway(**settings) as stack:
            async with httpx.AsyncClient(base_url=stack.url) as http:
                await http.post("/v1/chat/completions", json=BODY | turn)
            assert stack.generation.requests[0].publish_rollout is True
