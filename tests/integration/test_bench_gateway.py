"""The benchmark of the gateway with tiny numbers: real processes, every figure in its place."""

import json

import pytest

from benchmarks.gateway import machine, run
from benchmarks.gateway_edge import edge
from benchmarks.gateway_feedback import BATCH, measure_feedback
from benchmarks.gateway_model import QUICK, model_row
from benchmarks.gateway_pace import measure_pace
from benchmarks.gateway_table import SIDES, table
from benchmarks.load import ChatResult, LoadResult


@pytest.mark.slow
def test_it_measures_the_gateway_and_feedback() -> None:
    with edge() as running:
        rows = run(measure_pace(running, streams=(2,), rounds=1))
        feedback = run(measure_feedback(running, events=BATCH, rounds=1))
    assert [row["streams"] for row in rows] == [2]
    assert rows[0]["failed"] == 0
    assert rows[0]["chats"] == 8
    # Nothing that was acknowledged is missing, and nothing else is there.
    assert feedback["stored"] == feedback["acknowledged"] > 0
    assert set(feedback["sides"]) == set(SIDES)
    chat = [model_row(QUICK[1], [(steady(0.1), steady(0.05))] * 2)]
    result = {"machine": machine(), "measured_time": "now", "own": rows, "feedback": feedback}
    result |= {"model": "tiny", "chat": chat, "feedback_beside_all": feedback}
    text = table(json.loads(json.dumps(result)))
    assert "| 8 | 16 | no | 20.0 | 40.0 | 0.500 [0.500, 0.500] | 50.0 [50.0, 50.0] |" in text
    assert text.count("\n| `POST ") + text.count("\n| JetStream") == 2 * len(SIDES)


def steady(pace: float) -> LoadResult:
    """One chat of two tokens, `pace` seconds each."""
    chat = ChatResult(started=1.0, pieces=((1.0 + pace, "a"), (1.0 + 2 * pace, "b")), tokens=2)
    return LoadResult(streams=8, requests=1, failed=0, seconds=pace, chats=(chat,))
