"""Functions that hang: their batch fails, nobody else's does, and the service goes on."""

import asyncio
import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from prometheus_client import REGISTRY
from support.reward_parts import by_length, dead_on, publish, rollout, scores_on
from support.waiting import until, wait_until

from tuneloop.bus.memory import MemoryBus
from tuneloop.reward import consumer as consumer_module
from tuneloop.reward import process
from tuneloop.reward.build import build
from tuneloop.reward.consumer import RolloutConsumer
from tuneloop.reward.scorer import ScoringInput
from tuneloop.reward.scorers import deadline
from tuneloop.reward.scorers.deadline import LimitedScorer
from tuneloop.reward.scorers.functions import FunctionScorer
from tuneloop.reward.scoring import ScoredBatch, Scoring

GOOD, BAD = [ScoringInput(prompt="p", completion=text) for text in ("good", "hang")]


class Hanging:
    """A function that hangs on some completions until it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.calls: list[list[str]] = []
        self.threads: set[int] = set()

    def __call__(
        self, prompts: list[str], completions: list[str], **columns: list[Any]
    ) -> list[float]:
        self.calls.append(completions)
        self.threads.add(threading.get_ident())
        if "hang" in completions:
            self.released.wait()
        return [1.0] * len(completions)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "CANCEL_SECONDS", 0.1)


@pytest.fixture
def function() -> Iterator[Hanging]:
    hanging = Hanging()
    yield hanging
    hanging.released.set()


def limited(function: Any, name: str) -> LimitedScorer:
    return LimitedScorer(FunctionScorer(name=name, weight=1.0, function=function), 60.0)


@contextlib.contextmanager
def impatient(*scorers: LimitedScorer) -> Iterator[None]:
    """Only what is meant to hang has little time: this machine may be slow."""
    for scorer in scorers:
        scorer._seconds = 0.1
    yield
    for scorer in scorers:
        scorer._seconds = 60.0


def count_of(metric: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(metric, labels) or 0.0


def rewards(batch: ScoredBatch) -> list[float | None]:
    return [score.reward for score in batch.scores]


def test_a_function_that_hangs_fails_its_batch_and_is_left_alone_until_it_returns(
    function: Hanging, caplog: pytest.LogCaptureFixture
) -> None:
    hangs = limited(function, "mine:hangs")
    scoring = Scoring([hangs, limited(by_length, "mine:works")])
    assert rewards(scoring.score([GOOD])) == [5.0]
    with impatient(hangs), caplog.at_level(logging.WARNING, logger="tuneloop.reward"):
        batch = scoring.score([GOOD, BAD])
    problem = "scorer mine:hangs took longer than 0.1 s"
    assert dict(batch.failures) == {0: problem, 1: problem}
    # The other function was heard all the same.
    assert [[r.score for r in s.results] for s in batch.scores] == [[None, 4.0], [None, 4.0]]
    assert "scorer mine:hangs hangs" in caplog.text
    labels = {"scorer": "mine:hangs", "reason": "timeout"}
    assert count_of("tuneloop_reward_unscored_total", **labels) == 2
    assert count_of("tuneloop_reward_scorer_hangs", scorer="mine:hangs") == 1
    assert scoring.hanging == ("mine:hangs",)
    batch = scoring.score([GOOD])
    assert batch.failures[0].startswith("scorer mine:hangs has been at an earlier batch for")
    assert len(function.calls) == 2
    function.released.set()
    wait_until(lambda: not scoring.hanging)
    assert rewards(scoring.score([GOOD])) == [5.0]
    assert count_of("tuneloop_reward_scorer_hangs", scorer="mine:hangs") == 0
    # Always in the same thread, for functions whose clients care.
    assert len(function.threads) == 1


def test_an_async_function_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "CANCEL_SECONDS", 60.0)
    begun = threading.Event()
    cancelled: list[bool] = []

    async def sleeps(prompts: Any, completions: list[str], **columns: Any) -> list[float]:
        try:
            if "hang" in completions:
                begun.set()
                await asyncio.sleep(1000)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return [1.0] * len(completions)

    scorer = limited(sleeps, "mine:sleeps")
    scoring = Scoring([scorer])
    with impatient(scorer):
        failures = scoring.score([BAD]).failures
    assert failures == {0: "scorer mine:sleeps took longer than 0.1 s"}
    # Unless it was so late that it never began.
    assert cancelled == [True] * begun.is_set()
    assert scoring.hanging == ()
    assert rewards(scoring.score([GOOD])) == [1.0]


def test_one_that_blocks_the_loop_makes_others_overdue_but_nothing_waits(
    function: Hanging,
) -> None:
    async def blocks(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return function(prompts, completions, **columns)

    async def polite(prompts: Any, completions: list[str], **columns: Any) -> list[float]:
        return [2.0] * len(completions)

    scorers = limited(blocks, "mine:blocks"), limited(polite, "mine:polite")
    scoring = Scoring(scorers)
    with impatient(*scorers):
        assert set(scoring.score([BAD]).failures) == {0}
    assert scoring.hanging == ("mine:blocks", "mine:polite")
    assert rewards(scoring.score([GOOD])) == [None]
    function.released.set()
    wait_until(lambda: not scoring.hanging)
    assert rewards(scoring.score([GOOD])) == [3.0]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_function_that_exits_fails_and_nothing_else_ends(is_async: bool) -> None:
    def leave(prompts: Any, completions: list[str], **columns: Any) -> list[float]:
        if "hang" in completions:
            sys.exit("enough")
        return [1.0] * len(completions)

    async def leave_later(prompts: Any, completions: list[str], **columns: Any) -> list[float]:
        return leave(prompts, completions)

    scoring = Scoring([limited(leave_later if is_async else leave, "mine:exits")])
    batch = scoring.score([GOOD, BAD])
    # It is an error as any other: asked again row by row, the good row has its score.
    assert rewards(batch) == [1.0, None]
    assert batch.failures == {1: "scorer mine:exits raised RuntimeError: SystemExit: enough"}
    assert rewards(scoring.score([GOOD])) == [1.0]


async def test_what_a_function_hangs_on_is_dead_in_the_end_and_scoring_goes_on(
    function: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_module, "RETRY_DELAY", 0.01)
    monkeypatch.setattr(consumer_module, "IDLE_SECONDS", 0.05)
    bus = MemoryBus()
    hangs = limited(function, "mine:hangs")
    scoring = Scoring([hangs])
    await publish(bus, rollout(1, completion_text="hang"))
    with ThreadPoolExecutor(max_workers=1) as executor, impatient(hangs):
        consumer = RolloutConsumer(
            bus=bus, scoring=scoring, executor=executor, batch_size=1, batch_wait_seconds=0.01
        )
        task = asyncio.create_task(consumer.run())
        await until(lambda: len(dead_on(bus)) == 1)
        assert dead_on(bus)[0].startswith("completion chatcmpl-1: scorer mine:hangs has been at")
        function.released.set()
        await until(lambda: not scoring.hanging)
        hangs._seconds = 60.0
        await publish(bus, rollout(2, completion_text="good"))
        await until(lambda: len(scores_on(bus)) == 1)
        consumer.stop()
        await asyncio.wait_for(task, 20)
    assert len(dead_on(bus)) == 1


class Health:
    """What `Server` is told."""

    def __init__(self) -> None:
        self.told: list[tuple[bool, str | None]] = []

    async def set_serving(self, serving: bool, service: str | None = None) -> None:
        self.told.append((serving, service))


async def test_the_service_says_that_it_does_not_serve_while_a_scorer_hangs(
    function: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "HEALTH_SECONDS", 0.01)
    hangs, server = limited(function, "mine:hangs"), Health()
    scoring = Scoring([hangs])
    task = asyncio.create_task(process.report_health(server, scoring))  # type: ignore[arg-type]
    with impatient(hangs):
        await asyncio.to_thread(scoring.score, [BAD])
    await until(lambda: len(server.told) == 1)
    function.released.set()
    await until(lambda: len(server.told) == 2)
    assert server.told == [(False, process.SERVICE), (True, process.SERVICE)]
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_the_end_of_the_process_waits_for_no_function(function: Hanging) -> None:
    scoring = Scoring([limited(function, "mine:hangs")])
    task = asyncio.create_task(asyncio.to_thread(scoring.score, [BAD]))
    await until(lambda: bool(function.calls))
    scoring.close()
    assert (await task).failures == {0: "scorer mine:hangs was cut short"}


def test_only_with_a_limit_are_functions_given_one() -> None:
    limited_ = build(functions=["support.reward_parts:by_length"], function_timeout=5.0)
    assert [type(scorer) for scorer in limited_.scorers] == [LimitedScorer]
    assert limited_.rewards(["p"], ["four"], {}) == [4.0]
    assert [type(s) for s in build(functions=["support.reward_parts:by_length"]).scorers] == [
        FunctionScorer
    ]
