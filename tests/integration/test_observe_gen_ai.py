"""Spans by OpenTelemetry's conventions for generative AI, read back from a collector."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.observe_flow import Flow, flowing
from support.otlp_collector import (
    SAMPLING,
    SAMPLING_ATTRIBUTES,
    Collected,
    Collector,
    collecting,
)
from support.waiting import until

from tuneloop import tracing
from tuneloop.learner import trace_links

QUESTION = "Quo vadis?"
TURNS = [{"role": "user", "content": QUESTION}]
MADE = {
    "gen_ai.provider.name": "tuneloop",
    "gen_ai.request.model": "tuneloop",
    "gen_ai.response.model": "tuneloop",
    "gen_ai.response.finish_reasons": ["stop"],
    "gen_ai.usage.output_tokens": 3,
    "tuneloop.policy_version": 0,
}
SET = SAMPLING | {"session_id": "s-1"}
TOLD = SAMPLING_ATTRIBUTES | {
    "gen_ai.conversation.id": "s-1",
    "gen_ai.response.finish_reasons": ["stop", "stop"],
    "gen_ai.usage.output_tokens": 6,
}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that the traces of this process are sent to."""
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        trace_links.clear_links()
        tracing.start("test")
        yield collector
        tracing.stop()
        trace_links.clear_links()


async def completion_of(flow: Flow, path: str, body: dict[str, Any]) -> str:
    """Ask, and return the id that feedback would name."""
    response = await flow.http.post(path, json={"model": "tuneloop", **body})
    assert response.status_code == 200, response.text
    return response.headers["x-completion-id"]


def spans_named(collector: Collector, name: str) -> list[Collected]:
    return [found for found in collector.spans() if found.span.name == name]


def by_completion(spans: list[Collected]) -> dict[str, dict[str, Any]]:
    return {span.attributes["gen_ai.response.id"]: span.attributes for span in spans}


async def test_an_answer_of_each_api_has_a_span(
    collector: Collector, tiny_policy: Path, tmp_path: Path
) -> None:
    async with flowing(tiny_policy, tmp_path) as flow:
        chat = await completion_of(flow, "/v1/chat/completions", {"messages": TURNS})
        streamed = await completion_of(
            flow, "/v1/chat/completions", {"messages": TURNS, "stream": True}
        )
        set_up = await completion_of(flow, "/v1/chat/completions", {"messages": TURNS, **SET})
        text = await completion_of(flow, "/v1/completions", {"prompt": QUESTION})
        message = await completion_of(
            flow, "/v1/messages", {"messages": TURNS, "max_tokens": 8, "stream": True}
        )
        response = await completion_of(flow, "/v1/responses", {"input": QUESTION})
        await until(lambda: len(spans_named(collector, "take in rollout")) == 6)
    tracing.stop()

    chats = by_completion(spans_named(collector, "chat tuneloop"))
    assert set(chats) == {chat, streamed, set_up, message, response}
    texts = by_completion(spans_named(collector, "text_completion tuneloop"))
    assert set(texts) == {text}
    for found in (chats[chat], chats[streamed], chats[message], chats[response], texts[text]):
        assert found.items() >= MADE.items()
        assert found["gen_ai.usage.input_tokens"] > 0
    assert chats[set_up].items() >= TOLD.items()
    assert {found["gen_ai.operation.name"] for found in chats.values()} == {"chat"}
    assert texts[text]["gen_ai.operation.name"] == "text_completion"
    assert chats[response]["gen_ai.conversation.id"] == response
    for completion_id, found in chats.items():
        was_streamed = completion_id in (streamed, message)
        assert ("gen_ai.request.stream" in found) is was_streamed
        assert ("gen_ai.response.time_to_first_chunk" in found) is was_streamed
        assert "http.response.status_code" not in found
    answered = [
        span.attributes
        for span in collector.spans()
        if span.span.name.startswith("POST ") and "http.route" in span.attributes
    ]
    assert {found["tuneloop.completion_id"] for found in answered} == {*chats, *texts}
    assert {found["http.response.status_code"] for found in answered} == {200}
    served = by_completion(spans_named(collector, "tuneloop.v1.GenerationService/Generate"))
    assert set(served) == {*chats, *texts}
    assert QUESTION not in str(collector.batches)


async def test_an_answer_that_fails_names_its_error(
    collector: Collector, tiny_policy: Path, tmp_path: Path
) -> None:
    async with flowing(tiny_policy, tmp_path) as flow:
        flow.engine.failure = RuntimeError(f"no answer to {QUESTION}")
        assert (await flow.ask(QUESTION)).status_code == 500
    tracing.stop()
    [found] = spans_named(collector, "chat tuneloop")
    assert found.attributes["error.type"] == "internal"
    assert "gen_ai.response.finish_reasons" not in found.attributes
    [request] = spans_named(collector, "POST /v1/chat/completions")
    assert request.attributes["error.type"] == "500"
    assert QUESTION not in str(collector.batches)


async def test_feedback_is_told_in_the_trace_of_its_answer(
    collector: Collector, tiny_policy: Path, tmp_path: Path
) -> None:
    about: dict[str, dict[str, Any]] = {
        "thumb": {"value": "down"},
        "rating": {"value": 4},
        "metric": {"name": "solved", "value": True},
        "demonstration": {"text": "A better answer."},
        "comment": {"text": "Too long."},
    }
    async with flowing(tiny_policy, tmp_path) as flow:
        one = await completion_of(flow, "/v1/chat/completions", {"messages": TURNS})
        two = await completion_of(flow, "/v1/chat/completions", {"messages": TURNS})
        await until(lambda: len(spans_named(collector, "take in rollout")) == 2)
        bodies = [{"kind": kind, "completion_id": one, **rest} for kind, rest in about.items()]
        bodies.append({"kind": "comparison", "chosen": one, "rejected": [two]})
        bodies.append({"kind": "ranking", "ranking": [two, one]})
        bodies.append({"kind": "rating", "session_id": "s-1", "value": -2})
        for body in bodies:
            assert (await flow.judge(body)).status_code == 202
        await until(lambda: len(spans_named(collector, "take in feedback")) == len(bodies))
    tracing.stop()

    told = spans_named(collector, "gen_ai.evaluation.result")
    verdicts = [
        (
            found.attributes["gen_ai.evaluation.name"],
            found.attributes.get("gen_ai.response.id"),
            found.attributes.get("gen_ai.evaluation.score.value"),
            found.attributes.get("gen_ai.evaluation.score.label"),
        )
        for found in told
    ]
    assert sorted(verdicts, key=str) == sorted(
        [
            ("thumb", one, 0.0, "down"),
            ("rating", one, 4.0, None),
            ("solved", one, 1.0, "true"),
            ("demonstration", one, None, "edited"),
            ("comment", one, None, None),
            ("comparison", one, 1.0, "chosen"),
            ("comparison", two, 0.0, "rejected"),
            ("ranking", two, 1.0, None),
            ("ranking", one, 0.0, None),
            ("rating", None, -2.0, None),
        ],
        key=str,
    )
    answers = {
        f.attributes["gen_ai.response.id"]: f for f in spans_named(collector, "chat tuneloop")
    }
    for found in told:
        completion_id = found.attributes.get("gen_ai.response.id")
        if completion_id is None:
            assert found.attributes["gen_ai.conversation.id"] == "s-1"
        else:
            assert found.trace == answers[completion_id].trace
    batches = str(collector.batches)
    assert "A better answer." not in batches
    assert "Too long." not in batches
