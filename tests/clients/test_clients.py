"""What applications use, against the real gateway and generation service with a tiny model."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from anthropic import Anthropic
from anthropic import BadRequestError as AnthropicBadRequest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from support.clients_stack import ClientStack
from support.clients_tools import ASKED, DIVE, MESSAGES, MUST_DIVE, Dive, Place
from support.node_env import npm_ci, run_node

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.bus.jetstream import JetStreamBus

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def openai(services: ClientStack) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{services.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openai(openai: OpenAI) -> None:
    raw = openai.chat.completions.with_raw_response.create(**ASKED, n=2, logprobs=True)
    assert raw.headers["x-policy-version"] == "0"
    answer = raw.parse()
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage is not None
    for choice in answer.choices:
        assert choice.finish_reason in ("stop", "length")
        assert choice.logprobs is not None
        assert len(choice.logprobs.content or ()) > 0
    stream = openai.chat.completions.create(
        **ASKED, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert 0 < chunks[-1].usage.completion_tokens <= 16
    text = openai.completions.create(model="tuneloop", prompt=["one", "two"], max_tokens=4)
    assert len(text.choices) == 2
    assert [model.id for model in openai.models.list()] == ["tuneloop"]
    with pytest.raises(NotFoundError) as unknown:
        openai.chat.completions.create(**ASKED | {"model": "gpt-5"})
    assert unknown.value.code == "model_not_found"


def test_openai_structured(openai: OpenAI) -> None:
    options: Any = {"model": "tuneloop", "messages": MESSAGES}
    parsed = openai.chat.completions.parse(**options, response_format=Place)
    assert isinstance(parsed.choices[0].message.parsed, Place)
    with openai.chat.completions.stream(**options, response_format=Place) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Place)
    anything = openai.chat.completions.create(**options, response_format={"type": "json_object"})
    assert isinstance(json.loads(anything.choices[0].message.content or ""), dict)
    schema: Any = {"name": "bad", "schema": {"type": "nothing"}}
    with pytest.raises(BadRequestError) as refused:
        openai.chat.completions.create(
            **options, response_format={"type": "json_schema", "json_schema": schema}
        )
    assert refused.value.param == "response_format"


def test_openai_calls_functions(openai: OpenAI) -> None:
    options: Any = {"model": "tuneloop", "messages": MESSAGES, "tools": [DIVE]}
    for choice in (MUST_DIVE, "required"):
        answer = openai.chat.completions.create(
            **options, tool_choice=choice, parallel_tool_calls=False
        ).choices[0]
        (call,) = answer.message.tool_calls or ()
        assert answer.finish_reason == "tool_calls"
        assert answer.message.content is None
        Dive.model_validate_json(call.function.arguments)
    with openai.chat.completions.stream(**options, tool_choice=MUST_DIVE) as stream:
        final = stream.get_final_completion().choices[0]
    (streamed,) = final.message.tool_calls or ()
    Dive.model_validate_json(streamed.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "it was deep"}
    turns = [*MESSAGES, answer.message.model_dump(exclude_none=True), result]
    after = openai.chat.completions.create(**options | {"messages": turns}, max_tokens=4)
    assert after.choices[0].finish_reason in ("stop", "length")
    with pytest.raises(BadRequestError) as refused:
        openai.chat.completions.create(**options, response_format={"type": "json_object"})
    assert refused.value.param == "response_format"


async def test_openai_async(services: ClientStack) -> None:
    async with AsyncOpenAI(base_url=f"{services.url}/v1", api_key="none", max_retries=0) as client:
        whole = await client.chat.completions.create(**ASKED)
        stream = await client.chat.completions.create(**ASKED, stream=True)
        reasons = [c.finish_reason async for chunk in stream for c in chunk.choices]
        assert [r for r in reasons if r] in (["stop"], ["length"])
        parsed = await client.chat.completions.parse(
            model="tuneloop", messages=MESSAGES, response_format=Place
        )
        assert isinstance(parsed.choices[0].message.parsed, Place)
        kept_out = await client.chat.completions.create(
            **ASKED, extra_headers={"x-tuneloop-train": "false"}, logit_bias={"2": -100}
        )
        published = await client.chat.completions.create(**ASKED, logit_bias={"2": -100})
    assert whole.id.startswith("chatcmpl-")
    bus = await JetStreamBus.connect(services.nats.url)
    checked = published.id.removeprefix("chatcmpl-")[24:40]
    while True:
        event = await bus.last(subjects.rollout_generated("tuneloop", checked))
        assert event is not None
        [last] = wire.decode_rollouts_generated(event.data)
        assert last.completion_id != kept_out.id
        if last.completion_id == published.id:
            break
    await bus.close()


def test_anthropic(services: ClientStack) -> None:
    with Anthropic(base_url=services.url, api_key="none", max_retries=0) as client:
        answer = client.messages.create(**ASKED)
        assert answer.stop_reason in ("end_turn", "max_tokens")
        assert 0 < answer.usage.output_tokens <= 16
        count = client.messages.count_tokens(model="tuneloop", messages=MESSAGES)
        assert count.input_tokens == answer.usage.input_tokens
        with client.messages.stream(**ASKED) as stream:
            pieces = "".join(stream.text_stream)
            assert stream.get_final_text() == pieces
        filled = client.messages.create(**ASKED | {"max_tokens": 20_000})
        assert filled.stop_reason in ("end_turn", "model_context_window_exceeded")
        form: Any = {"type": "json_schema", "schema": Place.model_json_schema()}
        options: Any = ASKED | {"max_tokens": 400}
        placed = client.messages.create(**options, output_config={"format": form})
        (block,) = placed.content
        assert block.type == "text"
        Place.model_validate_json(block.text)
        with pytest.raises(AnthropicBadRequest, match=r"output_config\.format: "):
            client.messages.create(
                **options,
                output_config={"format": {"type": "json_schema", "schema": {"type": "nothing"}}},
            )


def test_anthropic_stops_at_a_sequence(services: ClientStack) -> None:
    # The package knows no `temperature` any more.
    greedy = {"temperature": 0, "max_tokens": 24}
    with Anthropic(base_url=services.url, api_key="none", max_retries=0) as client:
        whole = client.messages.create(**ASKED, extra_body=greedy)
        (block,) = whole.content
        assert block.type == "text"
        sequence = block.text.strip()[2:4]
        cut = client.messages.create(**ASKED, stop_sequences=[sequence], extra_body=greedy)
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", sequence)


def test_anthropic_calls_tools(services: ClientStack) -> None:
    tool: Any = {"name": "Dive", "description": "dive", "input_schema": Dive.model_json_schema()}
    options: Any = ASKED | {"max_tokens": 400, "tools": [tool]}
    must: Any = {"type": "tool", "name": "Dive"}
    with Anthropic(base_url=services.url, api_key="none", max_retries=0) as client:
        answer = client.messages.create(**options, tool_choice=must)
        with client.messages.stream(**options, tool_choice=must) as stream:
            streamed = stream.get_final_message()
        for message in (answer, streamed):
            assert message.stop_reason == "tool_use"
            (call,) = message.content
            assert call.type == "tool_use"
            Dive.model_validate(call.input)
        result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "it was deep"}
        turns: Any = [
            *MESSAGES,
            {"role": "assistant", "content": streamed.content},
            {"role": "user", "content": [result]},
        ]
        after = client.messages.create(**options | {"messages": turns, "max_tokens": 4})
        assert after.stop_reason in ("end_turn", "max_tokens")
        counted = client.messages.count_tokens(model="tuneloop", messages=turns, tools=[tool])
        assert counted.input_tokens == after.usage.input_tokens


def test_responses(services: ClientStack) -> None:
    options: Any = {"model": "tuneloop", "max_output_tokens": 16}
    with OpenAI(base_url=f"{services.url}/v1", api_key="none", max_retries=0) as client:
        first = client.responses.create(**options, input="tell me a story")
        assert first.status in ("completed", "incomplete")
        assert first.usage is not None
        assert 0 < first.usage.output_tokens <= 16
        pieces, ended = "", None
        stream = client.responses.create(
            **options, input="go on", previous_response_id=first.id, stream=True
        )
        for event in stream:
            if event.type == "response.output_text.delta":
                pieces += event.delta
            elif event.type in ("response.completed", "response.incomplete"):
                ended = event.response
        assert ended is not None
        assert ended.output_text == pieces
        assert ended.usage is not None
        assert ended.usage.input_tokens > first.usage.input_tokens
        options["max_output_tokens"] = 400
        placed = client.responses.parse(**options, input="where?", text_format=Place)
        assert isinstance(placed.output_parsed, Place)
        schema: Any = {"type": "json_schema", "name": "x", "schema": {"type": "nothing"}}
        with pytest.raises(BadRequestError, match=r"text\.format: "):
            client.responses.create(**options, input="where?", text={"format": schema})


def test_responses_call_functions(services: ClientStack) -> None:
    options: Any = {
        "model": "tuneloop",
        "max_output_tokens": 400,
        "tools": [{"type": "function", **DIVE["function"], "strict": True}],
    }
    must: Any = {"type": "function", "name": "Dive"}
    with OpenAI(base_url=f"{services.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.responses.create(**options, input="go", tool_choice=must)
        with client.responses.stream(**options, input="go", tool_choice=must) as stream:
            streamed = stream.get_final_response()
        for response in (answer, streamed):
            (call,) = response.output
            assert call.type == "function_call"
            Dive.model_validate_json(call.arguments)
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "deep"}
        after = client.responses.create(
            **options | {"max_output_tokens": 4}, input=[result], previous_response_id=streamed.id
        )
        assert after.usage is not None
        assert answer.usage is not None
        assert after.usage.input_tokens > answer.usage.input_tokens


def test_langchain(services: ClientStack) -> None:
    from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(
        model="tuneloop",
        base_url=f"{services.url}/v1",
        api_key="none",  # type: ignore[arg-type]
        max_retries=0,
        stream_usage=True,
    )
    answer = model.bind(max_tokens=8).invoke("tell me a story")
    assert answer.response_metadata["model_name"] == "tuneloop"
    assert answer.id is not None
    chunks = list(model.bind(max_tokens=8).stream("tell me a story"))
    assert sum(c.usage_metadata["output_tokens"] for c in chunks if c.usage_metadata) > 0
    place = model.with_structured_output(Place, method="json_schema").invoke("where?")
    assert isinstance(place, Place)
    called = model.bind_tools([Dive], tool_choice="Dive").invoke("go")
    assert isinstance(called, AIMessage)
    (call,) = called.tool_calls
    assert call["name"] == "Dive"
    Dive.model_validate(call["args"])
    turns = [HumanMessage("go"), called, ToolMessage("done", tool_call_id=call["id"])]
    assert model.bind_tools([Dive]).bind(max_tokens=8).invoke(turns).type == "ai"


def test_litellm(services: ClientStack, monkeypatch: pytest.MonkeyPatch) -> None:
    # Else its import asks the internet for prices.
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    options: Any = {
        "model": "openai/tuneloop",
        "messages": MESSAGES,
        "api_base": f"{services.url}/v1",
        "api_key": "none",
        "num_retries": 0,
    }
    answer = litellm.completion(**options, max_tokens=8)
    assert answer.usage.completion_tokens > 0
    chunks = list(litellm.completion(**options, max_tokens=8, stream=True))
    assert litellm.stream_chunk_builder(chunks).choices[0].finish_reason in ("stop", "length")
    structured = litellm.completion(**options, response_format=Place)
    Place.model_validate_json(structured.choices[0].message.content)
    called = litellm.completion(**options, tools=[DIVE], tool_choice=MUST_DIVE)
    (call,) = called.choices[0].message.tool_calls
    Dive.model_validate_json(call.function.arguments)
    with pytest.raises(litellm.BadRequestError, match="modalities"):
        litellm.completion(**options, extra_body={"modalities": ["audio"]})


def test_compatcanary(services: ClientStack) -> None:
    npm_ci()
    scan = ["node_modules/compatcanary/src/cli.js", "scan", "--profile", "chat"]
    where = ["--base-url", f"{services.url}/v1", "--model", "tuneloop"]
    ran = run_node([*scan, *where, "--format", "json", "--fail-on", "any"])
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads(ran.stdout)
    statuses = {probe["id"]: probe["status"] for probe in report["results"]}
    assert set(statuses.values()) == {"pass"}, report
    assert {"chat.tool_call", "chat.structured_output", "chat.streaming"} <= set(statuses)


def test_grpc_by_reflection(services: ClientStack) -> None:
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
        ProtoReflectionDescriptorDatabase,
    )

    with grpc.insecure_channel(services.generation_address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "tuneloop.v1.GenerationService" in database.get_services()
        pool = DescriptorPool(database)
        service = pool.FindServiceByName("tuneloop.v1.GenerationService")
        generate = service.methods_by_name["Generate"]
        request = GetMessageClass(generate.input_type)(completion_id="by-reflection")
        request.chat.messages.add(role="user", content="tell me a story")
        request.sampling.temperature, request.sampling.top_p = 1.0, 1.0
        request.sampling.max_tokens, request.sampling.n = 64, 1
        request.sampling.json_schema = json.dumps(Place.model_json_schema())
        call = channel.unary_stream(
            f"/{service.full_name}/{generate.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(generate.output_type).FromString,
        )
        events = list(call(request, timeout=60))
        Place.model_validate_json("".join(e.delta.text for e in events))
        assert events[-1].final.completion_id == "by-reflection"
        request.sampling.json_schema = "no schema"
        with pytest.raises(grpc.RpcError) as refused:
            list(call(request, timeout=60))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "response_format" in refused.value.details()


def test_grpc_by_stubs_of_ones_own(services: ClientStack, tmp_path: Path) -> None:
    protos = sorted((ROOT / "proto" / "tuneloop" / "v1").glob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}"]
    outputs = [f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"]
    subprocess.run([*command, *outputs, *protos], check=True)
    program = """
import sys, grpc
from tuneloop.v1 import generation_pb2 as pb, generation_pb2_grpc as rpc
from tuneloop.v1 import rollout_pb2 as rollouts
stub = rpc.GenerationServiceStub(grpc.insecure_channel(sys.argv[1]))
(policy,) = stub.ListPolicies(pb.ListPoliciesRequest()).policies
sampling = rollouts.SamplingParameters(temperature=1, top_p=1, max_tokens=4, n=1)
request = pb.GenerateRequest(completion_id="mine", text="one", sampling=sampling)
*_, last = stub.Generate(request)
print(policy.name, len(last.final.token_ids) > 0)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program, services.generation_address],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ran.stdout == "tuneloop True\n", ran.stderr
