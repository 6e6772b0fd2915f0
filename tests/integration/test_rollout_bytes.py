"""What a request stores on the stream of rollouts is in proportion to what it sends."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from support.observe_flow import flowing
from support.tiny_models import make_obliging_policy
from support.waiting import until

from tuneloop import wire
from tuneloop.bus import StoredEvent, subjects
from tuneloop.gateway.anthropic.requests import MessagesRequest
from tuneloop.gateway.openai.schemas import (
    MAX_BIASES,
    MAX_STOP_CHARACTERS,
    MAX_STOPS,
    ChatRequest,
    CompletionRequest,
)
from tuneloop.gateway.responses.requests import ResponsesRequest
from tuneloop.generation.transformers.hermes import HermesFormat
from tuneloop.rollouts import MAX_TAG_NAME, MAX_TAG_VALUE, MAX_TAGS

FACTOR = 8
"""Text, template, and a token or two of four bytes for each byte of rare letters."""
REQUEST_BYTES = 2000
ROLLOUT_BYTES = 250
"""Ids, times, numbers, and the three tokens that the engine recites."""

PROPERTY = {"description": "x" * 4000, "enum": ["y" * 40 + str(n) for n in range(100)]}
SCHEMA = {"type": "object", "properties": {"a": PROPERTY}, "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "f", "description": "d" * 80, "parameters": {}}}
NARROW = SCHEMA | {"properties": {"a": {"enum": ["y" * 50]}}, "required": ["a"]}
STRICT = {"name": "f", "strict": True, "parameters": NARROW}
TAGS = {f"{n:02}" + "é" * (MAX_TAG_NAME - 2): "é" * MAX_TAG_VALUE for n in range(MAX_TAGS)}
shared: dict[str, Any] = {
    "model": "tuneloop",
    "max_tokens": 8,
    "temperature": 2,
    "top_p": 0.123456789,
    "top_k": 2**31 - 1,
    "stop": [f"{n:02}" + "é" * (MAX_STOP_CHARACTERS - 2) for n in range(MAX_STOPS)],
    "seed": -(2**63),
    "presence_penalty": -1.23456789,
    "frequency_penalty": 1.23456789,
    "logit_bias": {str(n): -99.123 for n in range(MAX_BIASES)},
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
    "stream": False,
    "stream_options": {"include_usage": True},
    "user": "u" * 512,
    "safety_identifier": "s" * 512,
    "session_id": "c" * 128,
    "metadata": TAGS,
    "policy_version": 0,
}
chat: dict[str, Any] = {
    "messages": [{"role": "user", "content": "\U0001f600" * 60}],
    "max_completion_tokens": 8,
    "logprobs": True,
    "top_logprobs": 20,
    "tools": [TOOL],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "reasoning_effort": "high",
    "enable_thinking": False,
    "chat_template_kwargs": {"style": "s" * 4000},
    "thinking_token_budget": 2**31 - 1,
}
text: dict[str, Any] = {"prompt": "\u0f40" * 150, "logprobs": 20}
BLOCK = {"type": "text", "text": "\U0001f600" * 60}
messages: dict[str, Any] = {
    "model": "tuneloop",
    "messages": [{"role": "user", "content": [BLOCK]}],
    "max_tokens": 8,
    "system": [BLOCK],
    "tools": [{"name": "f", "description": "d" * 80, "input_schema": {}}],
    "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "temperature": 2,
    "top_p": 0.123456789,
    "top_k": 2**31 - 1,
    "stop_sequences": shared["stop"],
    "stream": False,
    "metadata": {"user_id": "u" * 512, **TAGS},
    "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    "session_id": "c" * 128,
    "policy_version": 0,
}
PART = {"type": "input_text", "text": "\U0001f600" * 60}
responses: dict[str, Any] = {
    "model": "tuneloop",
    "input": [{"role": "user", "content": [PART]}],
    "instructions": PART["text"],
    "max_output_tokens": 8,
    "temperature": 2,
    "top_p": 0.123456789,
    "top_k": 2**31 - 1,
    "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
    "tools": [{"type": "function", "name": "f", "description": "d" * 80, "parameters": {}}],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    # What it would name was sent before.
    "previous_response_id": None,
    "store": True,
    "stream": False,
    "include": ["reasoning.encrypted_content"],
    "reasoning": {"effort": "high", "summary": "auto"},
    "user": "u" * 512,
    "safety_identifier": "s" * 512,
    "metadata": TAGS,
    "session_id": "c" * 128,
    "policy_version": 0,
}
UNSUPPORTED = {
    *("functions", "function_call", "modalities", "audio", "web_search_options", "moderation"),
    *("verbosity", "suffix", "echo", "best_of"),
    *("container", "mcp_servers", "inference_geo", "compaction", "thread", "output_format"),
}
UNSUPPORTED_OF_RESPONSES = {
    *("background", "conversation", "prompt", "truncation", "top_logprobs", "moderation"),
}
needs: dict[str, dict[str, Any]] = {
    "top_logprobs": {"logprobs": True},
    "tool_choice": {"tools": [{"type": "function", "function": STRICT}]},
    "parallel_tool_calls": {"tools": [TOOL]},
    "stream_options": {"stream": True},
}
strict_tool = {"name": "f", "strict": True, "input_schema": NARROW}
needs_of: dict[type[BaseModel], dict[str, dict[str, Any]]] = {
    ChatRequest: needs,
    CompletionRequest: needs,
    MessagesRequest: {"tool_choice": {"tools": [strict_tool]}},
    ResponsesRequest: {
        "tool_choice": {"tools": [{"type": "function", **STRICT}]},
        "parallel_tool_calls": {"tools": responses["tools"]},
    },
}


def bodies(kind: type[BaseModel], values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a body for each field, as large as the field may be."""
    # A field that is new must be measured too.
    unsupported = UNSUPPORTED_OF_RESPONSES if kind is ResponsesRequest else UNSUPPORTED
    assert set(kind.model_fields) - unsupported - {"n"} == set(values)
    given = ("model", "messages", "prompt", "input")
    least = {name: values[name] for name in given if name in values}
    least |= {"max_tokens": 8} if kind is MessagesRequest else {}
    least |= {"max_output_tokens": 8} if kind is ResponsesRequest else {}
    for name, value in values.items():
        yield least | needs_of[kind].get(name, {}) | {name: value}


@pytest.mark.parametrize(
    ("route", "kind", "values", "n"),
    [
        ("chat/completions", ChatRequest, shared | chat, 1),
        ("chat/completions", ChatRequest, shared | chat, 64),
        ("completions", CompletionRequest, shared | text, 1),
        ("completions", CompletionRequest, shared | text, 64),
        ("messages", MessagesRequest, messages, 1),
        ("responses", ResponsesRequest, responses, 1),
    ],
    ids=["1-chat", "64-chat", "1-text", "64-text", "messages", "responses"],
)
async def test_what_is_stored_is_in_proportion(
    route: str,
    kind: type[BaseModel],
    values: dict[str, Any],
    n: int,
    tmp_path: Path,
) -> None:
    model = make_obliging_policy(tmp_path / "model")
    template = model / "chat_template.jinja"
    # As of a model that may think, and takes options.
    template.write_text(f"{{% if enable_thinking or style %}}{{% endif %}}{template.read_text()}")
    async with flowing(model, tmp_path, HermesFormat()) as flow:
        stream = flow.stack.bus.streams[subjects.ROLLOUTS]
        for body in bodies(kind, values):
            sent = json.dumps({**body, "n": n}, ensure_ascii=False).encode()
            headers = {"content-type": "application/json"}
            response = await flow.http.post(f"/v1/{route}", content=sent, headers=headers)
            assert response.status_code == 200, (response.text, body)
            await until(lambda: rollouts_in(stream.events) == n)
            stored = sum(len(event.data) for event in stream.events)
            assert stored <= FACTOR * len(sent) + REQUEST_BYTES + n * ROLLOUT_BYTES, body
            stream.events.clear()


async def test_every_answer_is_stored_with_the_tags_of_its_request(tmp_path: Path) -> None:
    model = make_obliging_policy(tmp_path / "model")
    async with flowing(model, tmp_path) as flow:
        stream = flow.stack.bus.streams[subjects.ROLLOUTS]
        body = {"model": "tuneloop", "prompt": "Why?", "n": 2, "metadata": {"feature": "search"}}
        await flow.http.post("/v1/completions", json=body)
        await until(lambda: rollouts_in(stream.events) == 2)
        stored = [r for e in stream.events for r in wire.decode_rollouts_generated(e.data)]
    assert [dict(rollout.tags) for rollout in stored] == [{"feature": "search"}] * 2


def rollouts_in(events: Sequence[StoredEvent]) -> int:
    """Count the rollouts of events."""
    return sum(len(wire.decode_rollouts_generated(event.data)) for event in events)
