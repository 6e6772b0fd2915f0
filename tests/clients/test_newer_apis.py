"""Frameworks on `/v1/responses` and `/v1/messages`: whole, streamed, a tool's round trip, an error.

Against the real gateway and generation service with a tiny model, as `test_clients`.
"""

import json
from typing import Any

import pytest
from openai import AsyncOpenAI, NotFoundError
from support.clients_stack import ClientStack
from support.clients_tools import DIVE, MESSAGES, MUST_DIVE, Dive, Place
from support.node_env import npm_ci, run_node


async def test_openai_agents(services: ClientStack) -> None:
    from agents import (
        Agent,
        ModelSettings,
        OpenAIResponsesModel,
        Runner,
        function_tool,
        set_tracing_disabled,
    )

    # Else it sends traces to OpenAI.
    set_tracing_disabled(True)
    dives: list[Place] = []

    @function_tool
    def dive(where: Place) -> str:
        """Dive somewhere."""
        dives.append(where)
        return "it was deep"

    async with AsyncOpenAI(base_url=f"{services.url}/v1", api_key="none", max_retries=0) as client:

        def agent(name: str = "tuneloop", **options: Any) -> Agent[Any]:
            model = OpenAIResponsesModel(model=name, openai_client=client)
            return Agent(name="guide", instructions="Be brief.", model=model, **options)

        # It takes no answer that is cut off; one that follows a schema ends.
        guide = agent(output_type=Place)
        first = await Runner.run(guide, "where?")
        assert isinstance(first.final_output, Place)
        after = await Runner.run(guide, "and now?", previous_response_id=first.last_response_id)
        turns: Any = [*first.to_input_list(), {"role": "user", "content": "and now?"}]
        whole = await Runner.run(guide, turns)
        usages = [run.context_wrapper.usage.input_tokens for run in (first, after, whole)]
        assert usages[0] < usages[1] == usages[2]
        streaming = Runner.run_streamed(guide, "where?")
        kinds = [event.type async for event in streaming.stream_events()]
        assert "raw_response_event" in kinds
        assert isinstance(streaming.final_output, Place)

        must = ModelSettings(tool_choice="required", parallel_tool_calls=False)
        diver = agent(tools=[dive], model_settings=must, tool_use_behavior="stop_on_first_tool")
        assert (await Runner.run(diver, "go")).final_output == "it was deep"
        calling = Runner.run_streamed(diver, "go")
        items = [
            event.item.type
            async for event in calling.stream_events()
            if event.type == "run_item_stream_event"
        ]
        assert items == ["tool_call_item", "tool_call_output_item"]
        assert len(dives) == 2
        told = await Runner.run(guide, calling.to_input_list())
        assert isinstance(told.final_output, Place)

        with pytest.raises(NotFoundError) as unknown:
            await Runner.run(agent("gpt-5"), "hi")
        assert unknown.value.code == "model_not_found"


def ask_langchain(model: Any, error: type[Exception]) -> None:
    """Ask a chat model of LangChain, bind a tool to it and answer its call."""
    from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

    answer = model.invoke("tell me a story")
    assert answer.usage_metadata["output_tokens"] > 0
    chunks = list(model.stream("tell me a story"))
    assert sum(c.usage_metadata["output_tokens"] for c in chunks if c.usage_metadata) > 0
    assert model.invoke([HumanMessage("hi"), answer, HumanMessage("go on")]).type == "ai"
    called = model.bind_tools([Dive], tool_choice="Dive").invoke("go")
    assert isinstance(called, AIMessage)
    (call,) = called.tool_calls
    assert call["name"] == "Dive"
    Dive.model_validate(call["args"])
    streamed = None
    for chunk in model.bind_tools([Dive], tool_choice="Dive").stream("go"):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None
    (call_of_stream,) = streamed.tool_calls
    Dive.model_validate(call_of_stream["args"])
    turns = [HumanMessage("go"), called, ToolMessage("done", tool_call_id=call["id"])]
    assert model.bind_tools([Dive]).invoke(turns).type == "ai"
    with pytest.raises(error):
        model.bind_tools([Dive], tool_choice="nothing").invoke("go")


def test_langchain_on_responses(services: ClientStack) -> None:
    from langchain_openai import ChatOpenAI
    from openai import BadRequestError

    model = ChatOpenAI(
        model="tuneloop",
        base_url=f"{services.url}/v1",
        api_key="none",  # type: ignore[arg-type]
        max_retries=0,
        use_responses_api=True,
        max_tokens=400,  # type: ignore[call-arg]
    )
    ask_langchain(model, BadRequestError)
    first = model.invoke("tell me a story")
    options = {"previous_response_id": first.response_metadata["id"]}
    after = model.invoke("go on", **options)
    assert after.usage_metadata is not None
    assert first.usage_metadata is not None
    assert after.usage_metadata["input_tokens"] > first.usage_metadata["input_tokens"]
    place = model.with_structured_output(Place, method="json_schema").invoke("where?")
    assert isinstance(place, Place)


def test_langchain_on_messages(services: ClientStack) -> None:
    from anthropic import BadRequestError
    from langchain_anthropic import ChatAnthropic

    model = ChatAnthropic(  # type: ignore[call-arg]
        model="tuneloop", base_url=services.url, api_key="none", max_retries=0, max_tokens=400
    )
    ask_langchain(model, BadRequestError)
    place = model.with_structured_output(Place).invoke("where?")
    assert isinstance(place, Place)


def test_litellm_on_messages(services: ClientStack, monkeypatch: pytest.MonkeyPatch) -> None:
    # Else its import asks the internet for prices.
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    options: Any = {
        "model": "anthropic/tuneloop",
        "messages": MESSAGES,
        "api_base": services.url,
        "api_key": "none",
        "num_retries": 0,
    }
    answer = litellm.completion(**options, max_tokens=8)
    assert 0 < answer.usage.completion_tokens <= 8
    chunks = list(litellm.completion(**options, max_tokens=8, stream=True))
    assert litellm.stream_chunk_builder(chunks).choices[0].finish_reason in ("stop", "length")
    called = litellm.completion(**options, max_tokens=400, tools=[DIVE], tool_choice=MUST_DIVE)
    message = called.choices[0].message
    (call,) = message.tool_calls
    Dive.model_validate_json(call.function.arguments)
    turns = [*MESSAGES, message, {"role": "tool", "tool_call_id": call.id, "content": "deep"}]
    after = litellm.completion(**options | {"messages": turns}, max_tokens=8, tools=[DIVE])
    assert after.usage.prompt_tokens > called.usage.prompt_tokens
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(**options, max_tokens=8, temperature=3)


def test_litellm_on_responses(services: ClientStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    options: Any = {
        "model": "openai/tuneloop",
        "api_base": f"{services.url}/v1",
        "api_key": "none",
        "max_output_tokens": 400,
    }
    first = litellm.responses(**options, input="tell me a story")
    assert first.usage.output_tokens > 0
    kinds = [event.type for event in litellm.responses(**options, input="a story", stream=True)]
    assert kinds[-1] in ("response.completed", "response.incomplete")
    tool = {"type": "function", **DIVE["function"], "strict": True}
    must = {"type": "function", "name": "Dive"}
    called = litellm.responses(**options, input="go", tools=[tool], tool_choice=must)
    (call,) = called.output
    Dive.model_validate_json(call.arguments)
    turns = [
        {"role": "user", "content": "go"},
        {
            "type": "function_call",
            "call_id": call.call_id,
            "name": "Dive",
            "arguments": call.arguments,
        },
        {"type": "function_call_output", "call_id": call.call_id, "output": "deep"},
    ]
    after = litellm.responses(**options, input=turns, tools=[tool])
    assert after.usage.input_tokens > called.usage.input_tokens
    with pytest.raises(litellm.BadRequestError, match="background"):
        litellm.responses(**options, input="hi", background=True)


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
def test_the_ai_sdk(services: ClientStack, api: str) -> None:
    npm_ci()
    ran = run_node(["ask.mjs", services.url, api])
    assert ran.returncode == 0, ran.stderr
    got = json.loads(ran.stdout)
    assert got["version"] == "0"
    assert got["usage"]["outputTokens"] > 0
    assert got["streamedUsage"]["outputTokens"] > 0
    assert got["streamedReason"] in ("stop", "length")
    # The second turn names the first one's answer, or has it again.
    assert got["secondUsage"]["inputTokens"] > got["usage"]["inputTokens"]
    Place.model_validate(got["object"])
    for calls in (got["calls"], got["streamedCalls"]):
        (call,) = calls
        assert call["toolName"] == "dive"
        Place.model_validate(call["input"])
    assert got["callReason"] == "tool-calls"
    assert got["afterCall"]["inputTokens"] > got["usage"]["inputTokens"]
    assert got["error"]["status"] == 404
    assert "no model 'gpt-5'" in got["error"]["message"]
