"""No log line quotes a prompt or a completion, however much is logged and whatever fails."""

import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import SQLAlchemyError
from support.observe_flow import ANSWER, flowing
from support.reward_parts import rollout
from support.waiting import until

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.bus.memory import MemoryBus
from tuneloop.errors import Unavailable
from tuneloop.learner.intake import consumers
from tuneloop.learner.ledger.events import recorder
from tuneloop.reward.consumer import MAX_DELIVERIES, RolloutConsumer
from tuneloop.reward.scorer import ScoringInput
from tuneloop.reward.scorers.functions import FunctionScorer
from tuneloop.reward.scoring import Scoring
from tuneloop.telemetry import JsonFormatter

SECRET = "the-launch-code-is-4711"


class Lines(logging.Handler):
    """Keeps what would be written."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(JsonFormatter("test"))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def quoting(self, *texts: str) -> list[str]:
        return [line for line in self.lines if any(text in line for text in texts)]


@pytest.fixture
def log() -> Iterator[Lines]:
    handler, logger = Lines(), logging.getLogger("tuneloop")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


async def test_what_is_asked_answered_and_judged_is_not_logged(
    log: Lines, tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "RETRY_SECONDS", 0.01)
    async with flowing(tiny_policy, tmp_path) as flow:
        answer = await flow.ask(SECRET)
        assert answer.status_code == 200
        about = {"completion_id": answer.json()["id"]}
        for body in (
            {"kind": "demonstration", "text": SECRET},
            {"kind": "comment", "text": SECRET},
            {"kind": "thumb", "value": SECRET},
            {"kind": SECRET},
        ):
            await flow.judge(body | about)
        assert (await flow.ask(SECRET * 1000)).status_code == 400
        await flow.http.post("/v1/chat/completions", content=f'{{"{SECRET}'.encode())
        await flow.http.post("/v1/chat/completions", json={"model": SECRET, "messages": SECRET})
        flow.learner.thumbs(0, 8)
        flow.learner.trainer.fails_on = {"f1"}
        await flow.learner.turn()
    assert any("step failed" in line for line in log.lines)
    assert log.quoting(SECRET, *(piece.strip() for piece in ANSWER)) == []


@pytest.mark.parametrize(
    ("sabotage", "said"),
    [
        ("ALTER TABLE rollouts DROP COLUMN columns", "wait: ledger"),
        (
            "CREATE TRIGGER sabotage BEFORE INSERT ON rollouts "
            "BEGIN SELECT RAISE(ABORT, 'no more'); END",
            "could not be recorded",
        ),
    ],
    ids=["unavailable", "refuses"],
)
async def test_a_ledger_that_fails_does_not_tell_what_it_was_given(
    log: Lines, tiny_policy: Path, tmp_path: Path, sabotage: str, said: str
) -> None:
    """SQLAlchemy's errors name the parameters of their statement unless they are told not to."""
    async with flowing(tiny_policy, tmp_path) as flow:
        with flow.learner.database.write() as connection:
            connection.exec_driver_sql(sabotage)
        made = rollout(1, completion_text=SECRET, prompt_text=SECRET)
        with pytest.raises((SQLAlchemyError, Unavailable)) as caught:
            recorder.record_rollouts(flow.learner.database, [made], 0.0)
        assert SECRET not in "".join(traceback.format_exception(caught.value))
        await flow.ask(SECRET)
        await until(lambda: any(said in line for line in log.lines))
    assert log.quoting(SECRET) == []


def complains(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    raise ValueError(f"I do not like {completions[0]}")


def repeats(prompts: list[str], completions: list[str], **_: Any) -> list[Any]:
    return list(completions)


@pytest.mark.parametrize("function", [complains, repeats], ids=["raises", "returns text"])
async def test_a_reward_function_that_quotes_is_not_quoted(
    log: Lines, monkeypatch: pytest.MonkeyPatch, function: Any
) -> None:
    scoring = Scoring([FunctionScorer(name="mine", weight=1.0, function=function)])
    candidate = ScoringInput(prompt=SECRET, completion=SECRET)
    scoring.score([candidate])
    bus = MemoryBus()
    made = rollout(1, completion_text=SECRET)
    data, event_id = wire.encode_rollout_generated(made), wire.rollout_event_id(made)
    await bus.publish(subjects.rollout_generated("tuneloop", "u1"), data, event_id=event_id)
    source = await bus.consume(
        stream=subjects.ROLLOUTS, durable="reward", subjects=["tuneloop.v1.>"], ack_wait=30
    )
    consumer = RolloutConsumer(
        bus=bus,
        scoring=scoring,
        executor=None,
        batch_size=1,
        batch_wait_seconds=0,  # type: ignore[arg-type]
    )
    [delivery] = await source.fetch(1, 1)
    delivery.deliveries = MAX_DELIVERIES  # type: ignore[misc]
    await consumer.handle([delivery])
    assert any("mine" in line for line in log.lines)
    assert any("a scorer failed" in line for line in log.lines)
    assert log.quoting(SECRET) == []
    # Who asks for it gets it: a dead letter has its reason.
    [letter] = bus.streams[subjects.DEAD_LETTERS].events
    assert SECRET in letter.headers["Tuneloop-Reason"]
    monkeypatch.setenv("TUNELOOP_LOG_QUOTES", "yes")
    scoring.score([candidate])
    assert log.quoting(SECRET)
