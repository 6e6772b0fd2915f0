"""Events are stored once, in spite of the bus; what cannot be is counted."""

import asyncio
import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from prometheus_client import REGISTRY

from tuneloop import wire
from tuneloop.bus import PublishReceipt, subjects
from tuneloop.bus.memory import MemoryBus
from tuneloop.errors import NotFound, Unavailable
from tuneloop.generation import rollout_publisher
from tuneloop.generation.rollout_publisher import RolloutPublisher
from tuneloop.policies import Activation
from tuneloop.redaction.redactor import RedactionSettings, Redactor, make_redactor
from tuneloop.rollouts import (
    FinishReason,
    PolicyVersionSpan,
    Rollout,
    RolloutSource,
    SamplingParameters,
)


def make_rollout(number: int) -> Rollout:
    return Rollout(
        completion_id=f"chatcmpl-{number}",
        group_id=f"chatcmpl-{number}",
        policy="tuneloop",
        tenant="default",
        user_hash="u1",
        messages=(),
        prompt_text="hi",
        completion_text="yes",
        prompt_token_ids=(1,),
        completion_token_ids=(5, 2),
        generation_logprobs=(-0.5, -0.25),
        finish_reason=FinishReason.STOP,
        policy_version_spans=(PolicyVersionSpan(policy_version=0, start=0, end=2),),
        sampling=SamplingParameters(),
        finished_time=datetime.now(UTC),
    )


def stored(bus: MemoryBus) -> list[str]:
    events = bus.streams[subjects.ROLLOUTS].events
    return [r.completion_id for e in events for r in wire.decode_rollouts_generated(e.data)]


def dropped(reason: str) -> float:
    return REGISTRY.get_sample_value("tuneloop_rollouts_dropped_total", {"reason": reason}) or 0.0


async def test_events_are_stored_and_stopping_waits_for_them() -> None:
    bus = MemoryBus()
    publisher = RolloutPublisher(bus, buffer_size=200)
    for number in range(100):
        publisher.publish([make_rollout(number)])
    publisher.start()
    await publisher.stop(10)
    assert sorted(stored(bus)) == sorted(f"chatcmpl-{n}" for n in range(100))


async def test_what_came_while_the_bus_was_down_is_stored_later() -> None:
    bus = MemoryBus()
    bus.go_down()
    publisher = RolloutPublisher(bus, buffer_size=10)
    publisher.start()
    for number in range(3):
        publisher.publish([make_rollout(number)])
    await asyncio.sleep(0.05)
    bus.come_back()
    await publisher.stop(10)
    assert stored(bus) == ["chatcmpl-0", "chatcmpl-1", "chatcmpl-2"]


async def test_a_full_buffer_drops_the_oldest_and_counts() -> None:
    bus = MemoryBus()
    bus.go_down()
    publisher = RolloutPublisher(bus, buffer_size=3)
    before = dropped("overflow")
    for number in range(5):
        publisher.publish([make_rollout(number)])
    assert dropped("overflow") == before + 2
    bus.come_back()
    publisher.start()
    await publisher.stop(10)
    assert stored(bus) == ["chatcmpl-2", "chatcmpl-3", "chatcmpl-4"]


async def test_what_is_left_at_the_end_is_counted() -> None:
    bus = MemoryBus()
    bus.go_down()
    publisher = RolloutPublisher(bus, buffer_size=3)
    publisher.start()
    before = dropped("shutdown")
    publisher.publish([make_rollout(1)])
    await publisher.stop(10)
    assert dropped("shutdown") == before + 1


class LosesAcknowledgements(MemoryBus):
    """Stores each event, then says that it does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.losses = 3

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        event_id: str,
        timeout: float = 5.0,  # noqa: ASYNC109
    ) -> PublishReceipt:
        receipt = await super().publish(subject, data, event_id=event_id, timeout=timeout)
        if self.losses > 0:
            self.losses -= 1
            raise Unavailable("no acknowledgement came")
        return receipt


async def test_a_lost_acknowledgement_does_not_store_twice() -> None:
    bus = LosesAcknowledgements()
    publisher = RolloutPublisher(bus, buffer_size=10)
    publisher.start()
    for number in range(3):
        publisher.publish([make_rollout(number)])
    await publisher.stop(10)
    assert bus.losses == 0
    assert sorted(stored(bus)) == ["chatcmpl-0", "chatcmpl-1", "chatcmpl-2"]


@pytest.mark.parametrize("logprob", [math.nan, -math.inf])
async def test_a_rollout_nobody_could_decode_is_counted_and_not_sent(logprob: float) -> None:
    bus = MemoryBus()
    publisher = RolloutPublisher(bus, buffer_size=10)
    before = dropped("invalid")
    publisher.publish([replace(make_rollout(1), generation_logprobs=(-1.0, logprob))])
    assert dropped("invalid") == before + 1
    assert not publisher.buffer


def siblings(count: int, tokens: int) -> list[Rollout]:
    """Rollouts of one request."""
    span = PolicyVersionSpan(policy_version=0, start=0, end=tokens)
    return [
        replace(
            make_rollout(1),
            completion_id="chatcmpl-1" + (f".{choice}" if choice else ""),
            completion_token_ids=(5,) * tokens,
            generation_logprobs=(-0.5,) * tokens,
            policy_version_spans=(span,),
        )
        for choice in range(count)
    ]


async def test_the_rollouts_of_a_request_are_one_event() -> None:
    bus = MemoryBus()
    publisher = RolloutPublisher(bus, buffer_size=10)
    publisher.publish(siblings(8, 2))
    publisher.publish([])
    publisher.start()
    await publisher.stop(10)
    assert len(bus.streams[subjects.ROLLOUTS].events) == 1
    assert stored(bus) == [r.completion_id for r in siblings(8, 2)]


async def test_a_request_too_large_for_one_event_is_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rollout_publisher, "EVENT_TOKENS", 25)
    bus = MemoryBus()
    publisher = RolloutPublisher(bus, buffer_size=10)
    publisher.publish([*siblings(5, 10), *(replace(r, completion_id="b") for r in siblings(1, 40))])
    publisher.start()
    await publisher.stop(10)
    parts = [wire.decode_rollouts_generated(e.data) for e in bus.streams[subjects.ROLLOUTS].events]
    assert sorted(len(part) for part in parts) == [1, 1, 2, 2]
    assert sorted(stored(bus)) == sorted(["b", *(r.completion_id for r in siblings(5, 10))])


async def test_the_buffer_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_publisher, "BUFFER_BYTES", 10_000)
    bus = MemoryBus()
    bus.go_down()
    publisher = RolloutPublisher(bus, buffer_size=1000)
    publisher.start()
    before = dropped("overflow")
    for number in range(10):
        publisher.publish([replace(make_rollout(number), prompt_text="x" * 2000)])
        await asyncio.sleep(0)
        assert publisher.buffer_bytes <= 10_000
    assert dropped("overflow") == before + 6
    bus.come_back()
    await publisher.stop(10)
    assert stored(bus) == [f"chatcmpl-{number}" for number in range(6, 10)]
    assert publisher.buffer_bytes == 0


async def test_activations_travel_the_same_way() -> None:
    bus = MemoryBus()
    publisher = RolloutPublisher(bus, buffer_size=10)
    publisher.start()
    activation = Activation(
        policy="tuneloop",
        policy_version=3,
        replica="r1",
        activated_time=datetime(2026, 1, 1, tzinfo=UTC),
        swap_seconds=0.5,
    )
    publisher.publish_activation(activation)
    await publisher.stop(10)
    (event,) = bus.streams[subjects.LEARNER].events
    assert wire.decode_activation(event.data) == activation


async def test_a_completion_with_personal_data_is_not_published(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("presidio_analyzer")
    monkeypatch.setenv("TUNELOOP_REDACT_ENTITIES", '["EMAIL_ADDRESS"]')
    redactor = make_redactor(processes=1, seconds=60.0)
    assert redactor is not None
    await redactor.start()
    bus, before = MemoryBus(), dropped("personal_data")
    publisher = RolloutPublisher(bus, buffer_size=10, redactor=redactor)
    publisher.start()
    rollout = make_rollout(0)
    publisher.publish(
        [
            rollout,
            replace(rollout, completion_id="c-1", completion_text="Ask ann@example.org."),
            replace(rollout, completion_id="c-2", reasoning_text="ann@example.org, was it?"),
            # It ends what the prompt began; what the prompt has is redacted already.
            replace(
                rollout, completion_id="c-3", prompt_text="ann@exa", completion_text="mple.org"
            ),
            replace(rollout, completion_id="c-4", prompt_text="<EMAIL_ADDRESS>?"),
        ]
    )
    await publisher.stop(30)
    assert stored(bus) == ["chatcmpl-0", "c-4"]
    assert dropped("personal_data") == before + 3
    await redactor.close()


async def test_a_completion_that_cannot_be_examined_is_not_published() -> None:
    bus, before = MemoryBus(), dropped("unexamined")
    # Never started: there is nobody to ask.
    settings = RedactionSettings(entities=("EMAIL_ADDRESS",))
    publisher = RolloutPublisher(bus, buffer_size=10, redactor=Redactor(settings, seconds=0.01))
    publisher.start()
    publisher.publish([make_rollout(0)])
    await publisher.stop(10)
    assert stored(bus) == []
    assert dropped("unexamined") == before + 1


def sources(bus: MemoryBus) -> dict[str, RolloutSource]:
    events = bus.streams[subjects.ROLLOUTS].events
    return {
        r.completion_id: r.source for e in events for r in wire.decode_rollouts_generated(e.data)
    }


async def test_the_candidate_that_was_answered_is_told_from_the_others() -> None:
    bus = MemoryBus()
    publisher = RolloutPublisher(bus, buffer_size=10)
    publisher.start()
    publisher.hold(siblings(3, 2))
    await asyncio.sleep(0.05)
    assert stored(bus) == []
    publisher.choose("chatcmpl-1", "chatcmpl-1.1")
    with pytest.raises(NotFound, match="no candidates of 'chatcmpl-1' are held"):
        publisher.choose("chatcmpl-1", "chatcmpl-1")
    await publisher.stop(10)
    assert sources(bus) == {
        "chatcmpl-1": RolloutSource.CANDIDATE,
        "chatcmpl-1.1": RolloutSource.USER,
        "chatcmpl-1.2": RolloutSource.CANDIDATE,
    }


async def test_candidates_that_nobody_chooses_from_are_published_as_choices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bus = MemoryBus()
    publisher = RolloutPublisher(bus, buffer_size=10)
    publisher.start()
    publisher.hold([replace(r, group_id="stopped", completion_id="s") for r in siblings(1, 2)])
    monkeypatch.setattr(rollout_publisher, "CHOICE_SECONDS", 0.01)
    publisher.hold(
        [replace(siblings(1, 2)[0], completion_id="c", finish_reason=FinishReason.ABORT)]
    )
    assert list(publisher.held) == ["stopped"]
    publisher.hold(siblings(2, 2))
    async with asyncio.timeout(5):
        while "chatcmpl-1" in publisher.held:
            await asyncio.sleep(0.01)
    monkeypatch.setattr(rollout_publisher, "MAX_HELD", 1)
    publisher.hold([replace(r, group_id="g2", completion_id="b") for r in siblings(1, 2)])
    assert list(publisher.held) == ["g2"]
    await publisher.stop(10)
    assert publisher.held == {}
    assert sources(bus) == dict.fromkeys(
        ("chatcmpl-1", "chatcmpl-1.1", "s", "b", "c"), RolloutSource.USER
    )
