"""The reward process over a real nats-server: scores, swaps, drains, and says what is wrong."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import NatsServer
from support.ports import free_port
from support.reward_parts import Publisher, rollout

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.bus.jetstream import JetStreamBus
from tuneloop.errors import InvalidRequest
from tuneloop.rollouts import ChatMessage
from tuneloop.rpc.channel import connect
from tuneloop.rpc.probe import is_serving
from tuneloop.rpc.status import error_from_rpc
from tuneloop.v1 import reward_pb2, reward_pb2_grpc

TESTS = Path(__file__).parent.parent


class Process:
    """A reward process and how to reach it."""

    def __init__(self, environ: dict[str, str], log: Path) -> None:
        self.port, self.metrics_port = free_port(), free_port()
        self.log = log
        kept = {k: v for k, v in os.environ.items() if not k.startswith("TUNELOOP_")}
        ports = {
            "TUNELOOP_REWARD_PORT": str(self.port),
            "TUNELOOP_REWARD_METRICS_PORT": str(self.metrics_port),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tuneloop.reward.main"],
            env=kept | ports | environ,
            cwd=TESTS,
            stderr=log.open("wb"),
        )

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)

    def metrics(self) -> str:
        import httpx

        return httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics").text


@pytest.fixture
def publisher(tiny_reward_model: Path, tmp_path: Path) -> Publisher:
    return Publisher(tiny_reward_model, tmp_path)


@pytest.fixture
def start(
    publisher: Publisher, nats_server: NatsServer, tmp_path: Path
) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start_one(**changes: str) -> Process:
        environ = {
            "TUNELOOP_REWARD_MODEL": str(publisher.base),
            "TUNELOOP_REWARD_NATS_URL": nats_server.url,
            "TUNELOOP_REWARD_WEIGHTS_URI": publisher.root,
            "TUNELOOP_REWARD_WEIGHTS_CACHE_DIR": str(tmp_path / "cache"),
            "TUNELOOP_REWARD_VERIFY_KEY_FILE": str(publisher.keys[1]),
        }
        process = Process(environ | changes, tmp_path / f"reward-{len(started)}.log")
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.process.kill()
        process.process.wait()


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[JetStreamBus]:
    connected = await JetStreamBus.connect(nats_server.url)
    yield connected
    await connected.close()


async def eventually(condition: Callable[[], Awaitable[Any]], process: Process) -> Any:
    """The first truthy answer of `condition`."""
    for _ in range(600):
        if answer := await condition():
            return answer
        assert process.process.poll() is None, process.log.read_text()
        await asyncio.sleep(0.05)
    raise AssertionError(process.log.read_text())


async def ready(process: Process) -> reward_pb2_grpc.RewardServiceStub:
    channel = connect(f"127.0.0.1:{process.port}")
    service = "tuneloop.v1.RewardService"
    await eventually(lambda: is_serving(channel, service), process)
    return reward_pb2_grpc.RewardServiceStub(channel)


async def publish(bus: JetStreamBus, number: int, **changes: Any) -> None:
    made = rollout(number, user_hash=f"u{number}", **changes)
    await bus.publish(
        subjects.rollout_generated(made.policy, made.user_hash),
        wire.encode_rollout_generated(made),
        event_id=wire.rollout_event_id(made),
    )


async def score_of(bus: JetStreamBus, number: int, process: Process) -> Any:
    event = await eventually(
        lambda: bus.last(subjects.rollout_scored("tuneloop", f"u{number}")), process
    )
    return wire.decode_rollout_scored(event.data)


async def test_the_whole_life_of_a_reward_process(
    start: Callable[..., Process],
    bus: JetStreamBus,
    publisher: Publisher,
    nats_server: NatsServer,
) -> None:
    process = start(
        TUNELOOP_REWARD_FUNCTIONS='["support.reward_parts:by_length"]',
        TUNELOOP_REWARD_WEIGHTS='{"support.reward_parts:by_length": 0.5}',
    )
    # Bytes that are no rollout, in front of one.
    subject = subjects.rollout_generated("tuneloop", "u0")
    await bus.publish(subject, b"\xff\xff", event_id="bad")
    await publish(bus, 1, completion_text="four")
    stub = await ready(process)
    scored = await score_of(bus, 1, process)
    assert scored.score.reward == 2.0
    assert scored.reward_model_version == 0
    assert [result.informative for result in scored.score.results] == [False, True]
    dead = await eventually(lambda: bus.last("tuneloop.dead.reward.*"), process)
    assert dead.data == b"\xff\xff"

    # A trained reward model takes over while the process runs.
    reference = publisher.publish(1, bias=10.0)
    await bus.set_routing(
        subjects.reward_model_key("tuneloop"),
        wire.weights_to_proto(reference).SerializeToString(),
        revision=None,
    )

    async def swapped() -> bool:
        return "tuneloop_reward_model_version 1.0" in await asyncio.to_thread(process.metrics)

    await eventually(swapped, process)
    await publish(bus, 2, completion_text="four")
    scored = await score_of(bus, 2, process)
    assert scored.score.reward == pytest.approx(12.0)
    assert scored.reward_model_version == 1

    # On demand, with the same scorers.
    chat = wire.messages_to_proto([ChatMessage(role="user", content="hi")])
    request = reward_pb2.ScoreRolloutsRequest(chat=chat, completions=["ab", "abcd", ""])
    response = await stub.ScoreRollouts(request)
    assert [score.reward for score in response.scores] == pytest.approx([11.0, 12.0, 10.0])
    assert response.reward_model_version == 1

    # nats-server dies and comes back: what is published then is scored.
    nats_server.kill()
    assert (await stub.ScoreRollouts(request)).reward_model_version == 1
    nats_server.start()
    await eventually(lambda: _published(bus, 3), process)
    assert (await score_of(bus, 3, process)).completion_id == "chatcmpl-3"
    assert process.stop() == 0


@pytest.mark.slow
async def test_a_function_that_hangs_stops_neither_the_service_nor_its_end(
    start: Callable[..., Process], bus: JetStreamBus
) -> None:
    process = start(
        TUNELOOP_REWARD_FUNCTIONS=json.dumps(
            ["support.reward_parts:by_length", "support.reward_parts:waits"]
        ),
        TUNELOOP_REWARD_FUNCTION_TIMEOUT_SECONDS="2",
    )
    stub = await ready(process)
    await publish(bus, 1, completion_text="four")
    assert (await score_of(bus, 1, process)).score.reward == 5.0
    await publish(bus, 2, completion_text="hang")
    channel = connect(f"127.0.0.1:{process.port}")

    async def says_so() -> bool:
        return not await is_serving(channel, "tuneloop.v1.RewardService")

    await eventually(says_so, process)
    assert await is_serving(channel)
    request = reward_pb2.ScoreRolloutsRequest(text="q", completions=["four"])
    (score,) = (await stub.ScoreRollouts(request)).scores
    assert not score.HasField("reward")
    assert {r.scorer: r.score for r in score.results}["support.reward_parts:by_length"] == 4.0
    assert "scorer support.reward_parts:waits hangs" in process.log.read_text()
    assert process.stop() == 0


async def _published(bus: JetStreamBus, number: int) -> bool:
    from tuneloop.errors import Unavailable

    try:
        await publish(bus, number)
    except Unavailable:
        return False
    return True


@pytest.mark.slow
async def test_it_answers_without_a_bus_and_refuses_bad_requests(
    start: Callable[..., Process],
) -> None:
    import grpc

    process = start(TUNELOOP_REWARD_NATS_URL=f"nats://127.0.0.1:{free_port()}")
    stub = await ready(process)
    response = await stub.ScoreRollouts(
        reward_pb2.ScoreRolloutsRequest(text="q", completions=["a", "word " * 600])
    )
    assert response.scores[0].reward == 0.0
    assert not response.scores[0].results[0].informative
    assert not response.scores[1].HasField("reward")
    bad = {
        "messages": reward_pb2.ScoreRolloutsRequest(completions=["a"]),
        "completions": reward_pb2.ScoreRolloutsRequest(text="q"),
    }
    for param, request in bad.items():
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ScoreRollouts(request)
        error = error_from_rpc(refused.value)
        assert isinstance(error, InvalidRequest)
        assert error.param == param
    assert process.stop() == 0


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        pytest.param(
            {"TUNELOOP_REWARD_FUNCTIONS": '["support.reward_parts:absent"]'},
            "no such function",
            marks=pytest.mark.slow,
        ),
        ({"TUNELOOP_REWARD_MODELS": "x"}, "did you mean TUNELOOP_REWARD_MODEL?"),
    ],
)
async def test_a_wrong_setting_ends_it_at_start(
    start: Callable[..., Process], changes: dict[str, str], problem: str
) -> None:
    process = start(**changes)
    assert await asyncio.to_thread(process.process.wait, 60) == 2
    assert problem in process.log.read_text()
