"""Thoughts through the gateway's three APIs, with the packages that people use."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError
from support.gateway_stack import Stack

from tuneloop.client import AsyncClient

QUESTION = [{"role": "user", "content": "What is a river?"}]
THOUGHTS, PIECES = ("Water", " flows."), ("A", " river.")
THOUGHT, TEXT = "".join(THOUGHTS), "".join(PIECES)


@pytest.fixture
def thinking(stack: Stack) -> Stack:
    stack.generation.thoughts, stack.generation.pieces = THOUGHTS, PIECES
    return stack


@pytest.fixture
async def client(thinking: Stack) -> AsyncIterator[AsyncOpenAI]:
    url = f"{thinking.url}/v1"
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def claude(thinking: Stack) -> AsyncIterator[anthropic.AsyncAnthropic]:
    url = thinking.url
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as client:
        yield client


async def test_a_chat_gives_the_thought_by_both_names(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="tuneloop", messages=QUESTION)  # type: ignore[arg-type]
    message = answer.choices[0].message
    assert message.content == TEXT
    assert message.model_extra == {"reasoning_content": THOUGHT, "reasoning": THOUGHT}
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == len(THOUGHTS)


async def test_a_stream_gives_the_thought_before_the_answer(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="tuneloop",
        messages=QUESTION,  # type: ignore[arg-type]
        stream=True,
        stream_options={"include_usage": True},
    )
    said: list[tuple[str, str]] = []
    usage = None
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            extra = choice.delta.model_extra or {}
            if extra.get("reasoning_content"):
                assert extra["reasoning"] == extra["reasoning_content"]
                said.append(("thought", extra["reasoning_content"]))
            elif choice.delta.content:
                said.append(("text", choice.delta.content))
    assert said == [*(("thought", t) for t in THOUGHTS), *(("text", p) for p in PIECES)]
    assert usage is not None
    assert usage.completion_tokens_details.reasoning_tokens == len(THOUGHTS)


async def test_our_client_keeps_the_thought_apart(thinking: Stack) -> None:
    async with AsyncClient(thinking.url) as client:
        answer = await client.chat("What is a river?", reasoning_effort="low")
        assert (answer.reasoning, answer.text) == (THOUGHT, TEXT)
        assert answer.usage is not None
        assert answer.usage.reasoning_tokens == len(THOUGHTS)
        stream = client.stream("What is a river?", enable_thinking=True)
        pieces = [piece async for piece in stream]
        assert "".join(map(str, pieces)) == TEXT
        assert "".join(piece.reasoning for piece in pieces) == THOUGHT
        assert stream.completion.reasoning == THOUGHT
        assert stream.completion.message["reasoning_content"] == THOUGHT
        # As a next turn it is taken.
        await client.chat([stream.completion.message, *QUESTION])
    asked = thinking.generation.requests
    assert dict(asked[0].template_options) == {"reasoning_effort": '"low"'}
    assert dict(asked[1].template_options) == {"enable_thinking": "true"}
    assert asked[2].chat.messages[0].reasoning == THOUGHT


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
async def test_turns_come_back_with_their_thoughts(
    thinking: Stack, http: httpx.AsyncClient, name: str
) -> None:
    turns = [
        *QUESTION,
        {"role": "assistant", "content": None, name: THOUGHT},
        {"role": "user", "content": "Why?", name: None},
    ]
    response = await http.post(
        "/v1/chat/completions", json={"model": "tuneloop", "messages": turns}
    )
    assert response.status_code == 200, response.text
    messages = thinking.generation.requests[0].chat.messages
    assert [m.reasoning for m in messages] == ["", THOUGHT, ""]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"messages": []}, "'messages' is not an option"),
        ({"tools": []}, "'tools' is not an option"),
        ({"add_generation_prompt": False}, "'add_generation_prompt' is not"),
        ({"no good": 1}, "'no good' is not an option"),
        ({"a": "x" * 5000}, "at most 4096 characters"),
        ({f"o{n}": n for n in range(17)}, "at most 16 items"),
        (["a"], "valid dictionary"),
    ],
)
async def test_options_that_no_template_may_have_are_refused(
    stack: Stack, http: httpx.AsyncClient, options: Any, problem: str
) -> None:
    body = {"model": "tuneloop", "messages": QUESTION, "chat_template_kwargs": options}
    response = await http.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("chat_template_kwargs")
    assert problem in response.json()["error"]["message"]
    assert not stack.generation.requests


async def test_an_effort_that_there_is_not_is_refused(client: AsyncOpenAI) -> None:
    with pytest.raises(BadRequestError, match="reasoning_effort"):
        await client.chat.completions.create(
            model="tuneloop",
            messages=QUESTION,  # type: ignore[arg-type]
            reasoning_effort="utmost",  # type: ignore[arg-type]
        )


async def test_anthropics_client_gets_a_block_of_the_thought(
    claude: anthropic.AsyncAnthropic, thinking: Stack
) -> None:
    asked: dict[str, Any] = {
        "model": "tuneloop",
        "max_tokens": 4096,
        "messages": QUESTION,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    message = await claude.messages.create(**asked)
    thought, text = message.content
    assert thought.type == "thinking"
    assert (thought.thinking, thought.signature) == (THOUGHT, message.id)
    assert text.type == "text"
    assert text.text == TEXT
    assert message.usage.output_tokens_details is not None
    assert message.usage.output_tokens_details.thinking_tokens == len(THOUGHTS)
    async with claude.messages.stream(**asked) as stream:
        kinds = [event.type async for event in stream]
        streamed = await stream.get_final_message()
    assert kinds.index("thinking") < kinds.index("signature") < kinds.index("text")
    assert [block.type for block in streamed.content] == ["thinking", "text"]
    # Sent back as they came.
    turns = [*QUESTION, {"role": "assistant", "content": streamed.content}, *QUESTION]
    await claude.messages.create(**asked | {"messages": turns})
    requests = thinking.generation.requests
    assert requests[0].thinking_budget == 1024
    assert requests[-1].chat.messages[1].reasoning == THOUGHT
    plain = await claude.messages.create(model="tuneloop", max_tokens=99, messages=QUESTION)  # type: ignore[arg-type]
    assert [block.type for block in plain.content] == ["text"]
    count = await claude.messages.count_tokens(
        model="tuneloop",
        messages=QUESTION,  # type: ignore[arg-type]
        thinking={"type": "disabled"},
    )
    assert count.input_tokens == 11
    assert dict(thinking.generation.counted[-1].template_options) == {"reasoning_effort": '"none"'}


@pytest.mark.parametrize("summary", [None, "auto"])
async def test_a_response_has_an_item_of_the_thought(
    client: AsyncOpenAI, thinking: Stack, summary: Any
) -> None:
    asked: dict[str, Any] = {
        "model": "tuneloop",
        "input": "What is a river?",
        "reasoning": {"effort": "low", "summary": summary},
        "include": ["reasoning.encrypted_content"],
    }
    whole = await client.responses.create(**asked)
    item = whole.output[0]
    assert item.type == "reasoning"
    parts = item.content if summary is None else item.summary
    assert [part.text for part in parts or []] == [THOUGHT]
    assert whole.output_text == TEXT
    assert whole.usage is not None
    assert whole.usage.output_tokens_details.reasoning_tokens == len(THOUGHTS)
    stream = await client.responses.create(**asked, stream=True)
    events = [event async for event in stream]
    kind = "reasoning_text" if summary is None else "reasoning_summary_text"
    told = [e.delta for e in events if e.type == f"response.{kind}.delta"]
    assert told == list(THOUGHTS)
    assert events[-1].type == "response.completed"
    assert [i.type for i in events[-1].response.output] == ["reasoning", "message"]
    # Sent back, and gone on from.
    given = [i.model_dump() for i in whole.output]
    await client.responses.create(model="tuneloop", input=[*given, *QUESTION])  # type: ignore[arg-type]
    await client.responses.create(model="tuneloop", input="Why?", previous_response_id=whole.id)
    back, gone_on = (r.chat.messages for r in thinking.generation.requests[-2:])
    assert back[0].reasoning == gone_on[1].reasoning == THOUGHT
    options = thinking.generation.requests[0].template_options
    assert json.loads(options["reasoning_effort"]) == "low"
