"""One trace from the HTTP request to the ledger, and from the step to the version that serves."""

from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.observe_flow import ANSWER, Flow, flowing, recorded, spans
from support.waiting import until

from tuneloop.generation.swap.hot_swap import HotSwap

__all__ = ["spans"]

ASKED = "0af7651916cd43dd8448eb211c80319c"
JUDGED = "1bf7651916cd43dd8448eb211c80319d"
QUESTION = "Quo vadis?"


def of_trace(exporter: InMemorySpanExporter, trace_id: str) -> dict[str, ReadableSpan]:
    found = [s for s in exporter.get_finished_spans() if f"{s.context.trace_id:032x}" == trace_id]
    return {span.name: span for span in found}


def named(exporter: InMemorySpanExporter, name: str) -> ReadableSpan:
    [found] = [span for span in exporter.get_finished_spans() if span.name == name]
    return found


async def loop_once(flow: Flow, exporter: InMemorySpanExporter) -> None:
    """A question, a thumb, a step, a version, and that version served."""
    answer = await flow.ask(QUESTION, f"00-{ASKED}-00f067aa0ba902b7-01")
    thumb = {"kind": "thumb", "completion_id": answer.json()["id"], "value": "up"}
    await until(lambda: "take in rollout" in of_trace(exporter, ASKED))
    assert (await flow.judge(thumb, f"00-{JUDGED}-00f067aa0ba902b8-01")).status_code == 202
    await recorded(flow, ready_samples=1)
    await until(lambda: "take in feedback" in of_trace(exporter, JUDGED))
    await flow.learn()
    async with flow.serving_what_is_released():
        await until(lambda: flow.hot_swap.serving == 1)
        await until(
            lambda: any(s.name == "take in activation" for s in exporter.get_finished_spans())
        )


async def test_a_trace_goes_all_the_way(
    spans: InMemorySpanExporter,
    tiny_policy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What the counting trainer saves fits no model.
    monkeypatch.setattr(HotSwap, "check_files", lambda *_: None)
    async with flowing(tiny_policy, tmp_path) as flow:
        await loop_once(flow, spans)

    asked = of_trace(spans, ASKED)
    request = asked["POST /v1/chat/completions"]
    answer = asked["chat tuneloop"]
    call = asked["tuneloop.v1.GenerationService/Generate"]
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == "00f067aa0ba902b7"
    assert answer.parent is not None
    assert answer.parent.span_id == request.context.span_id
    assert call.parent is not None
    assert call.parent.span_id == answer.context.span_id
    assert request.attributes["http.response.status_code"] == 200
    for name in ("publish rollout", "take in rollout"):
        assert asked[name].parent.span_id == call.context.span_id

    judged = of_trace(spans, JUDGED)
    assert set(judged) == {"POST /v1/feedback", "publish feedback", "take in feedback"}
    given = judged["POST /v1/feedback"].context.span_id
    assert judged["take in feedback"].parent.span_id == given

    step = named(spans, "step")
    evaluation = asked["gen_ai.evaluation.result"]
    assert evaluation.parent.span_id == asked["take in rollout"].context.span_id
    told_by = [link.context.span_id for link in evaluation.links]
    assert told_by == [judged["take in feedback"].context.span_id]

    links = {link.context.span_id for link in step.links}
    assert links == {
        s.context.span_id for s in (judged["take in feedback"], asked["take in rollout"])
    }
    made = of_trace(spans, f"{step.context.trace_id:032x}")
    names = ("make version", "publish version", "activate version", "publish activation")
    assert set(made) == {"step", *names, "take in activation"}
    assert made["make version"].parent.span_id == step.context.span_id
    assert made["activate version"].parent.span_id == made["make version"].context.span_id
    assert made["take in activation"].parent.span_id == made["activate version"].context.span_id


async def test_spans_hold_no_text(
    spans: InMemorySpanExporter, tiny_policy: Path, tmp_path: Path
) -> None:
    async with flowing(tiny_policy, tmp_path) as flow:
        answer = await flow.ask(QUESTION)
        flow.engine.failure = RuntimeError(f"no answer to {QUESTION}")
        assert (await flow.ask(QUESTION)).status_code == 500
        edit = {"kind": "demonstration", "text": QUESTION, "completion_id": answer.json()["id"]}
        assert (await flow.judge(edit)).status_code == 202
    told = "".join(span.to_json() for span in spans.get_finished_spans())
    assert QUESTION not in told
    assert not any(piece.strip() in told for piece in ANSWER)
    failed = [s for s in spans.get_finished_spans() if not s.status.is_ok and s.status.description]
    assert {(s.name, s.status.description) for s in failed} >= {
        ("POST /v1/chat/completions", "500")
    }


async def test_without_traces_events_name_none(tiny_policy: Path, tmp_path: Path) -> None:
    async with flowing(tiny_policy, tmp_path) as flow:
        answer = await flow.ask(QUESTION, f"00-{ASKED}-00f067aa0ba902b7-01")
        thumb = {"kind": "thumb", "completion_id": answer.json()["id"], "value": "up"}
        await flow.judge(thumb)
        await recorded(flow, ready_samples=1)
        events = [e for stream in flow.stack.bus.streams.values() for e in stream.events]
    assert len(events) == 2
    assert not any(ASKED.encode() in event.data for event in events)
