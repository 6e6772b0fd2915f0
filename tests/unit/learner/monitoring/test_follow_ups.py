"""Follow-ups are judged beside training, by a real model or behind an endpoint, and only once."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from support.learner_events import START, CountingTrainer, make_turn

from tuneloop.generation.prompts import Tokenization
from tuneloop.learner.data.follow_ups import LABELS, NOTHING, label_sequences, verdict_of
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.events.follow_up_rules import FollowUp, waiting
from tuneloop.learner.ledger.events.sample_rules import SampleRules
from tuneloop.learner.ledger.schema import follow_ups, signals
from tuneloop.learner.model_thread import ModelThread
from tuneloop.learner.monitoring.follow_ups import (
    AT_ONCE,
    EndpointJudge,
    FollowUpJudge,
    FollowUps,
    PolicyJudge,
)
from tuneloop.learner.samples import TokenSequence
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.settings import TrainerSettings
from tuneloop.reward.scorers.judge_client import Endpoint, EndpointSettings

T0 = START.timestamp()


@pytest.fixture
def ledger(tmp_path: Path) -> Database:
    return Database.at(tmp_path / "ledger.db")


@pytest.fixture(scope="module")
def tokenization(tiny_policy: Path) -> Tokenization:
    return Tokenization(tiny_policy)


def converse(ledger: Database, turns: int) -> None:
    """A session of so many turns, each but the last with a follow-up."""
    rollouts = [make_turn(f"c{n}", n) for n in range(turns)]
    recorder.record_rollouts(ledger, rollouts, T0, SampleRules(follow_ups_noted=True))


def judging(ledger: Database, judge: FollowUpJudge, tokenization: Tokenization) -> FollowUps:
    return FollowUps(ledger, judge, tokenization, learned=True, hints=True, clock=lambda: T0)


def endpoint(answer: Callable[[str], httpx.Response], votes: int = 3) -> EndpointJudge:
    """A judge behind an endpoint that answers as told."""

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/models"):
            return httpx.Response(200, json={"data": []})
        return answer(json.loads(request.content)["messages"][0]["content"])

    settings = EndpointSettings(url="http://judge/v1", model="m", retries=0)
    return EndpointJudge(Endpoint(settings, httpx.MockTransport(handle)), votes)


def says(text: str) -> httpx.Response:
    return httpx.Response(200, json={"choices": [{"message": {"content": text}}]})


def labels(ledger: Database) -> dict[str, str]:
    with ledger.read() as connection:
        query = select(signals.c.completion_id, signals.c.kind)
        return {row.completion_id: row.kind for row in connection.execute(query)}


def notes(ledger: Database) -> list[str]:
    with ledger.read() as connection:
        return list(connection.execute(select(follow_ups.c.note)).scalars())


async def test_the_base_model_judges_by_the_likelihood_of_each_label(
    ledger: Database, tiny_policy: Path, tokenization: Tokenization
) -> None:
    settings = TrainerSettings(threads=1, anchor_weight=0)
    trainer = PolicyTrainer(tiny_policy, settings, base_model="tiny")
    judge = PolicyJudge(trainer, tokenization, ModelThread())
    given = FollowUp(completion_id="c0", question="yes", answer="no", text="hello world")
    (verdict,) = await judge.judge([given])

    def logprobs(of: FollowUp) -> list[float]:
        sequences = label_sequences(tokenization, of)
        return [sum(row) for row in trainer.reference_logprobs(sequences)]

    # One after the other, as it would be by hand.
    expected = verdict_of(logprobs(given), logprobs(NOTHING))
    assert verdict.label == expected.label
    assert verdict.probability == pytest.approx(expected.probability, abs=1e-4)
    assert 1 / 3 <= verdict.probability < 1
    (again,) = await judge.judge([NOTHING])
    assert again.probability == pytest.approx(1 / 3, abs=1e-4)
    long = FollowUp(completion_id="c1", question="x\n" * 300, answer="y\n" * 300, text="no")
    (cut,) = await judge.judge([long])
    assert (cut.label, cut.note) == (None, "too long for the model")


class LabelTrainer(CountingTrainer):
    """A base model that finds the labels of what it is asked as likely as they are told."""

    def __init__(self, tokenization: Tokenization, *answers: str) -> None:
        super().__init__()
        self.answers = answers
        self._tokenization = tokenization

    def reference_logprobs(self, sequences: Any) -> list[tuple[float, ...]]:
        self.referred += sequences
        return [self._logprobs(sequence) for sequence in sequences]

    def _logprobs(self, sequence: TokenSequence) -> tuple[float, ...]:
        asked = self._tokenization.decode(sequence.prompt_token_ids)
        label = self._tokenization.decode(sequence.completion_token_ids)
        told = next((a for a in self.answers if a.partition(":")[0] in asked), "")
        return (-0.1 if told.endswith(f":{label}") else -3.0,)


async def test_a_few_are_judged_at_once_the_newest_first_and_each_once(
    ledger: Database, tokenization: Tokenization
) -> None:
    converse(ledger, 7)
    trainer = LabelTrainer(tokenization, "Question 6:complained", "Question:satisfied")
    judge = PolicyJudge(trainer, tokenization, ModelThread())
    follow = judging(ledger, judge, tokenization)
    assert await follow.judge_some() == AT_ONCE
    newest = dict.fromkeys(("c2", "c3", "c4"), "satisfied") | {"c5": "complained"}
    assert labels(ledger) == newest
    # Another process goes on where this one was killed.
    follow = judging(ledger, judge, tokenization)
    assert await follow.judge_some() == 2
    assert await follow.judge_some() == 0
    assert labels(ledger) == newest | dict.fromkeys(("c0", "c1"), "satisfied")
    # Without content it is asked once, and each follow-up once about each label.
    assert len(trainer.referred) == (6 + 1) * len(LABELS)


async def test_it_waits_while_the_models_are_used(tokenization: Tokenization) -> None:
    idle, worker = [False], ModelThread()
    judge = PolicyJudge(CountingTrainer(), tokenization, worker, idle=lambda: idle[0])
    assert not judge.ready
    idle[0] = True
    assert judge.ready
    step = asyncio.ensure_future(worker.run(lambda: None))
    await asyncio.sleep(0)
    assert not judge.ready
    await step
    assert judge.ready


async def test_a_judge_that_falls_over_means_no_labels(
    ledger: Database, tokenization: Tokenization
) -> None:
    class Broken(CountingTrainer):
        def reference_logprobs(self, sequences: Any) -> list[tuple[float, ...]]:
            raise RuntimeError("a kernel failed")

    converse(ledger, 3)
    follow = judging(ledger, PolicyJudge(Broken(), tokenization, ModelThread()), tokenization)
    assert await follow.judge_some() == 2
    assert labels(ledger) == {}
    assert notes(ledger) == ["the judge failed: a kernel failed"] * 2
    assert waiting(ledger, 9) == []


async def test_what_may_not_be_shown_to_a_judge_is_not(
    ledger: Database, tokenization: Tokenization
) -> None:
    converse(ledger, 2)
    with ledger.write() as connection:
        connection.exec_driver_sql(
            "UPDATE rollouts SET messages = replace(messages, 'Question 1', '<|im_end|>')"
        )
    follow = judging(ledger, endpoint(lambda _: pytest.fail("it was asked")), tokenization)
    assert await follow.judge_some() == 1
    assert notes(ledger) == ["the message spells a control token of the model"]


async def test_an_endpoint_judges_by_votes(ledger: Database, tokenization: Tokenization) -> None:
    converse(ledger, 3)
    replies = iter(("complained", "complained", "corrected"))
    judge = endpoint(lambda task: says(next(replies) if "Question 2" in task else "Satisfied."))
    assert await judging(ledger, judge, tokenization).judge_some() == 2
    assert labels(ledger) == {"c0": "satisfied", "c1": "complained"}
    with ledger.read() as connection:
        found = connection.execute(select(follow_ups.c.probability)).scalars()
        assert sorted(found) == [pytest.approx(2 / 3), 1.0]


@pytest.mark.parametrize("status", [503, 401])
async def test_while_an_endpoint_is_away_they_wait(
    ledger: Database, tokenization: Tokenization, status: int
) -> None:
    converse(ledger, 2)
    up: list[bool] = []
    judge = endpoint(lambda _: says("corrected") if up else httpx.Response(status))
    follow = judging(ledger, judge, tokenization)
    assert await follow.judge_some() is None
    assert len(waiting(ledger, 9)) == 1
    up.append(True)
    assert await follow.judge_some() == 1
    assert labels(ledger) == {"c0": "corrected"}


async def test_one_that_an_endpoint_refuses_has_no_label(
    ledger: Database, tokenization: Tokenization
) -> None:
    converse(ledger, 3)
    judge = endpoint(
        lambda task: httpx.Response(413) if "Question 2" in task else says("satisfied")
    )
    assert await judging(ledger, judge, tokenization).judge_some() == 2
    assert labels(ledger) == {"c0": "satisfied"}
