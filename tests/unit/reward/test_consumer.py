"""Rollouts in, scores out: acknowledged once stored, retried, or dead."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.reward_parts import Publisher, dead_on, publish, rollout, scores_on
from support.waiting import until

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.bus.memory import MemoryBus
from tuneloop.errors import Unavailable, WeightsRefused
from tuneloop.policies import WeightsReference
from tuneloop.reward import consumer as consumer_module
from tuneloop.reward.consumer import RolloutConsumer
from tuneloop.reward.scorer import ScoringInput
from tuneloop.reward.scorers.functions import FunctionScorer, load_function
from tuneloop.reward.scorers.reward_model import base_scorer
from tuneloop.reward.scoring import ScoredBatch, Scoring
from tuneloop.reward.swap import RewardModelSwap, RewardSwapOptions
from tuneloop.rollouts import FinishReason
from tuneloop.weights.shapes import base_model_sha256


def functions() -> Scoring:
    return Scoring([load_function("support.reward_parts:by_length", 1.0)])


@contextlib.asynccontextmanager
async def running(bus: MemoryBus, scoring: Scoring) -> AsyncIterator[None]:
    with ThreadPoolExecutor(max_workers=1) as executor:
        consumer = RolloutConsumer(
            bus=bus, scoring=scoring, executor=executor, batch_size=4, batch_wait_seconds=0.01
        )
        task = asyncio.create_task(consumer.run())
        yield
        consumer.stop()
        await asyncio.wait_for(task, 10)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_module, "RETRY_DELAY", 0.01)
    monkeypatch.setattr(consumer_module, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(consumer_module, "ACK_WAIT", 0.5)


async def test_every_rollout_is_scored_once() -> None:
    bus = MemoryBus()
    for number in range(10):
        await publish(bus, rollout(number, completion_text="x" * number))
    async with running(bus, functions()), running(bus, functions()):
        await until(lambda: len(scores_on(bus)) == 10)
        scored = {score.completion_id: score for score in scores_on(bus)}
        assert len(scored) == 10
        assert scored["chatcmpl-7"].score.reward == 7.0
        assert scored["chatcmpl-7"].policy == "tuneloop"
        subject = subjects.rollout_scored("tuneloop", "u1")
        assert await bus.last(subject) is not None
    queue = await bus.consume(
        stream=subjects.ROLLOUTS,
        durable="reward",
        subjects=["tuneloop.v1.*.rollout.generated.*"],
        ack_wait=1,
    )
    assert await queue.pending() == 0
    assert dead_on(bus) == []


async def test_an_aborted_rollout_is_not_scored() -> None:
    bus = MemoryBus()
    await publish(bus, rollout(1, finish_reason=FinishReason.ABORT))
    await publish(bus, rollout(2))
    async with running(bus, functions()):
        await until(lambda: len(scores_on(bus)) == 1)
    assert scores_on(bus)[0].completion_id == "chatcmpl-2"
    assert dead_on(bus) == []


async def test_bad_bytes_are_dead_and_hold_nobody_up() -> None:
    bus = MemoryBus()
    subject = subjects.rollout_generated("tuneloop", "u1")
    await bus.publish(subject, b"\xff\xff not a rollout", event_id="bad-1")
    await bus.publish(subject, b"", event_id="bad-2")
    foreign = wire.encode_rollout_generated(rollout(3, user_hash="a.b"))
    await bus.publish(subject, foreign, event_id="bad-3")
    await publish(bus, rollout(4))
    async with running(bus, functions()):
        await until(lambda: len(scores_on(bus)) == 1 and len(dead_on(bus)) == 3)
    reasons = " ".join(dead_on(bus))
    assert "not a tuneloop.v1.RolloutGenerated" in reasons
    assert "completion_id: missing" in reasons
    assert "user: must be" in reasons


class Flaky(Scoring):
    """Fails a number of times."""

    def __init__(self, failures: int) -> None:
        super().__init__([load_function("support.reward_parts:by_length", 1.0)])
        self.failures = failures

    def score(self, candidates: Sequence[ScoringInput], **options: Any) -> ScoredBatch:
        self.failures -= 1
        if self.failures >= 0:
            raise MemoryError("no memory")
        return super().score(candidates, **options)


async def test_a_failure_is_tried_again() -> None:
    bus = MemoryBus()
    await publish(bus, rollout(1))
    async with running(bus, Flaky(2)):
        await until(lambda: len(scores_on(bus)) == 1)
    assert dead_on(bus) == []


async def test_what_always_fails_is_dead_in_the_end() -> None:
    bus = MemoryBus()
    await publish(bus, rollout(1))
    async with running(bus, Flaky(1000)):
        await until(lambda: len(dead_on(bus)) == 1)
    assert dead_on(bus) == ["failed 5 times"]
    assert scores_on(bus) == []


async def test_what_a_function_fails_on_is_dead_and_the_rest_goes_on() -> None:
    bus = MemoryBus()
    scoring = Scoring(
        [
            load_function("support.reward_parts:odd_answers"),
            load_function("support.reward_parts:trips"),
        ]
    )
    texts = ["fine", "nan", "trip", "word", "none", "good"]
    for number, text in enumerate(texts):
        await publish(bus, rollout(number, completion_text=text))
    async with running(bus, scoring):
        await until(lambda: len(scores_on(bus)) == 3 and len(dead_on(bus)) == 3)
        await publish(bus, rollout(9, completion_text="later"))
        await until(lambda: len(scores_on(bus)) == 4)
    scored = {score.completion_id: score.score.reward for score in scores_on(bus)}
    assert scored == {"chatcmpl-0": 3.0, "chatcmpl-4": None, "chatcmpl-5": 3.0, "chatcmpl-9": 3.0}
    odd_answers = "scorer support.reward_parts:odd_answers"
    assert sorted(dead_on(bus)) == [
        f"completion chatcmpl-1: {odd_answers} returned nan, not a finite number",
        "completion chatcmpl-2: scorer support.reward_parts:trips raised ValueError: tripped",
        f"completion chatcmpl-3: {odd_answers} returned 'good', not a number",
    ]


async def test_each_rollout_of_a_request_is_scored_once() -> None:
    bus = MemoryBus()
    ended = [rollout(n, completion_text="x" * n) for n in range(3)]
    aborted = rollout(3, finish_reason=FinishReason.ABORT)
    await publish(bus, *ended, aborted)
    async with running(bus, functions()):
        await until(lambda: len(scores_on(bus)) == 3)
    scored = {score.completion_id: score.score.reward for score in scores_on(bus)}
    assert scored == {"chatcmpl-0": 0.0, "chatcmpl-1": 1.0, "chatcmpl-2": 2.0}
    assert dead_on(bus) == []


async def test_one_rollout_that_a_function_fails_on_costs_the_others_of_its_request_nothing() -> (
    None
):
    bus = MemoryBus()
    texts = ["fine", "trip", "good"]
    await publish(bus, *(rollout(n, completion_text=text) for n, text in enumerate(texts)))
    async with running(bus, Scoring([load_function("support.reward_parts:trips")])):
        await until(lambda: len(dead_on(bus)) == 1)
    assert {score.completion_id for score in scores_on(bus)} == {"chatcmpl-0", "chatcmpl-2"}
    assert len(scores_on(bus)) == 2
    [reason] = dead_on(bus)
    assert reason.startswith("completion chatcmpl-1: scorer support.reward_parts:trips raised")


class Recovering:
    """Fails a number of times, as what depends on a service that restarts."""

    name, weight, informative = "recovering", 1.0, True

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def score(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
        self.failures -= 1
        if self.failures >= 0:
            raise ConnectionError("away")
        return [1.0] * len(completions)


async def test_a_function_that_recovers_costs_nothing() -> None:
    bus = MemoryBus()
    await publish(bus, rollout(1))
    async with running(bus, Scoring([Recovering(4)])):
        await until(lambda: len(scores_on(bus)) == 1)
    assert dead_on(bus) == []


async def test_columns_of_the_prompts_file_reach_the_function() -> None:
    seen: list[tuple[Any, Any]] = []

    def look(prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        seen.extend(zip(columns["topic"], columns["finish_reason"], strict=True))
        assert "prompts" not in columns
        return [0.0] * len(completions)

    bus = MemoryBus()
    taken = {"prompts": 1, "finish_reason": "mine"}
    await publish(bus, rollout(1, columns={"topic": ["sea"]} | taken))
    await publish(bus, rollout(2))
    scorer = FunctionScorer(name="look", weight=1.0, function=look)
    async with running(bus, Scoring([scorer])):
        await until(lambda: len(scores_on(bus)) == 2)
    assert seen == [(["sea"], "stop"), (None, "stop")]


async def test_nothing_is_lost_while_the_bus_is_away() -> None:
    bus = MemoryBus()
    bus.go_down()
    async with running(bus, functions()):
        await asyncio.sleep(0.1)
        bus.come_back()
        for number in range(3):
            await publish(bus, rollout(number))
        await until(lambda: len(scores_on(bus)) == 3)
        bus.go_down()
        await asyncio.sleep(0.1)
        bus.come_back()
        await publish(bus, rollout(4))
        await until(lambda: len(scores_on(bus)) == 4)


class Refusing(MemoryBus):
    """Stores no score the first time."""

    refused = 0

    async def publish(self, subject: str, data: bytes, **options: Any) -> Any:
        if ".scored." in subject and self.refused < 2:
            self.refused += 1
            raise Unavailable("not now")
        return await super().publish(subject, data, **options)


async def test_a_score_that_was_not_stored_is_made_again() -> None:
    bus = Refusing()
    await publish(bus, rollout(1))
    async with running(bus, functions()):
        await until(lambda: len(scores_on(bus)) == 1)
    assert bus.refused == 2


class Slow(Scoring):
    """Takes longer than the bus waits for an acknowledgement."""

    calls = 0

    def score(self, candidates: Sequence[ScoringInput], **options: Any) -> ScoredBatch:
        import time

        self.calls += 1
        time.sleep(1.5)
        return super().score(candidates, **options)


async def test_slow_scoring_is_not_handed_to_somebody_else() -> None:
    bus = MemoryBus()
    scoring = Slow([load_function("support.reward_parts:by_length", 1.0)])
    await publish(bus, rollout(1))
    async with running(bus, scoring), running(bus, scoring):
        await until(lambda: len(scores_on(bus)) == 1)
    assert scoring.calls == 1


class Swapping:
    """A hot swap over a memory bus and a real weight store."""

    def __init__(self, base_folder: Path, scratch: Path) -> None:
        self.bus = MemoryBus()
        self.publisher = Publisher(base_folder, scratch)
        base = base_scorer(base_folder, max_length=512, weight=1.0)
        self.scoring = Scoring([], base)
        self.hot_swap = RewardModelSwap(
            bus=self.bus,
            store=self.publisher.store(),
            scoring=self.scoring,
            base=base,
            options=RewardSwapOptions(
                policy="tuneloop",
                base_model_sha256=base_model_sha256(base_folder),
                min_labels=32,
                min_accuracy=0.65,
            ),
        )

    async def route(self, reference: WeightsReference) -> None:
        key = subjects.reward_model_key("tuneloop")
        entry = await self.bus.routing(key)
        value = wire.weights_to_proto(reference).SerializeToString()
        await self.bus.set_routing(key, value, revision=entry.revision if entry else None)

    def reward(self) -> float | None:
        return self.scoring.score([ScoringInput(prompt="q", completion="a")]).scores[0].reward


@pytest.fixture
def swapping(tiny_reward_model: Path, tmp_path: Path) -> Swapping:
    return Swapping(tiny_reward_model, tmp_path)


async def test_a_new_version_scores_and_an_old_one_comes_back(swapping: Swapping) -> None:
    task = asyncio.create_task(swapping.hot_swap.run())
    assert swapping.reward() == 0.0
    await swapping.route(swapping.publisher.publish(1, bias=0.5, labels=8))
    await until(lambda: swapping.scoring.reward_model_version == 1)
    assert swapping.reward() == pytest.approx(0.5)
    assert not swapping.scoring.reward_model.informative
    await swapping.route(swapping.publisher.publish(2, bias=2.0, labels=64))
    await until(lambda: swapping.scoring.reward_model_version == 2)
    assert swapping.reward() == pytest.approx(2.0)
    assert swapping.scoring.reward_model.informative
    base = WeightsReference(
        policy="tuneloop-reward-model", policy_version=0, uri="", manifest_sha256=""
    )
    await swapping.route(base)
    await until(lambda: swapping.scoring.reward_model_version == 0)
    assert swapping.reward() == 0.0
    task.cancel()


async def test_the_stable_version_is_used_from_the_start(swapping: Swapping) -> None:
    await swapping.hot_swap.activate_stable()
    assert swapping.scoring.reward_model_version == 0
    await swapping.route(swapping.publisher.publish(4, bias=0.5))
    await swapping.hot_swap.activate_stable()
    assert swapping.scoring.reward_model_version == 4
    swapping.bus.go_down()
    await swapping.hot_swap.activate_stable()
    assert swapping.scoring.reward_model_version == 4


async def test_what_does_not_fit_is_refused_and_changes_nothing(
    swapping: Swapping, tiny_policy: Path, tmp_path: Path
) -> None:
    from tuneloop.models.reward_model import load

    publisher, activate = swapping.publisher, swapping.hot_swap.activate
    await activate(publisher.publish(1, bias=0.5))
    load(tiny_policy).save(tmp_path / "llama")
    other_base = {"base_model_sha256": "0" * 64}
    refused = {
        "policy is": publisher.publish(2, bias=1.0, changes={"policy": "other"}),
        "another base": publisher.publish(3, bias=1.0, changes=other_base),
        "has no such tensor|missing": publisher.publish(4, bias=1.0, folder=tmp_path / "llama"),
    }
    for problem, reference in refused.items():
        with pytest.raises(WeightsRefused, match=problem):
            await activate(reference)
    bad = publisher.publish(5, bias=1.0)
    weights = tmp_path / "store/tuneloop-reward-model/00000005/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(WeightsRefused, match=r"model\.safetensors"):
        await activate(bad)
    assert swapping.scoring.reward_model_version == 1
    assert swapping.reward() == pytest.approx(0.5)


async def test_rubbish_in_the_table_is_passed_over(swapping: Swapping) -> None:
    task = asyncio.create_task(swapping.hot_swap.run())
    key = subjects.reward_model_key("tuneloop")
    entry = await swapping.bus.set_routing(key, b"\xff\xff", revision=None)
    await asyncio.sleep(0.05)
    value = wire.weights_to_proto(swapping.publisher.publish(1, bias=0.5)).SerializeToString()
    await swapping.bus.set_routing(key, value, revision=entry.revision)
    await until(lambda: swapping.scoring.reward_model_version == 1)
    task.cancel()


async def test_a_store_that_is_away_is_tried_again(swapping: Swapping, tmp_path: Path) -> None:
    task = asyncio.create_task(swapping.hot_swap.run())
    reference = swapping.publisher.publish(1, bias=0.5)
    (tmp_path / "store").rename(tmp_path / "away")
    await swapping.route(reference)
    await asyncio.sleep(0.2)
    assert swapping.scoring.reward_model_version == 0
    (tmp_path / "away").rename(tmp_path / "store")
    await until(lambda: swapping.scoring.reward_model_version == 1)
    task.cancel()
