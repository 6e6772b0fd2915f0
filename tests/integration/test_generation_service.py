"""The generation process over gRPC, on the tiny model, with a real nats-server."""

import asyncio
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
import pytest
from conftest import NatsServer
from support.engine_helpers import Versions, make_adapter
from support.ports import free_port

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.bus.jetstream import JetStreamBus
from tuneloop.errors import InvalidRequest, NotFound, Overloaded, TuneloopError, WeightsRefused
from tuneloop.rollouts import (
    ChatMessage,
    FinishReason,
    Rollout,
    RolloutSource,
    SamplingParameters,
)
from tuneloop.rpc.channel import connect
from tuneloop.rpc.probe import is_serving
from tuneloop.rpc.status import error_from_rpc
from tuneloop.v1 import generation_pb2, generation_pb2_grpc

USER = "0123456789abcdef"
NO_EOS = {2: -100.0, 0: -100.0, 3: -100.0}


@dataclass
class Service:
    """A running process and how to reach it."""

    process: subprocess.Popen[bytes]
    port: int
    metrics_port: int
    versions: Versions
    adapter: Path

    def metric(self, name: str) -> float:
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        lines = urllib.request.urlopen(url, timeout=10).read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def start_service(
    base: Path, root: Path, nats_url: str, engine: str = "transformers", **settings: str
) -> Service:
    versions = Versions(root, base)
    port, metrics_port = free_port(), free_port()
    environment = {
        "PORT": str(port),
        "METRICS_PORT": str(metrics_port),
        "MODEL": str(base),
        "ENGINE": engine,
        "NATS_URL": nats_url,
        "WEIGHTS_URI": versions.uri,
        "WEIGHTS_CACHE_DIR": str(versions.cache_dir),
        "VERIFY_KEY_FILE": str(versions.verify_key_file),
        "THREADS": "1",
        "REPLICA": "r1",
        "KV_CACHE_GIB": "0.1",
        "MAX_CONCURRENT_REQUESTS": "4",
        "DRAIN_SECONDS": "1",
    } | settings
    names = {f"TUNELOOP_GENERATION_{name}": value for name, value in environment.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "tuneloop.generation.main"],
        env=os.environ | names,
        stderr=(root / "generation.log").open("ab"),
    )
    adapter = make_adapter(base, root / "adapter", seed=1)
    return Service(process, port, metrics_port, versions, adapter)


async def ready(service: Service) -> None:
    async with connect(f"127.0.0.1:{service.port}") as channel, asyncio.timeout(150):
        while not await is_serving(channel):
            assert service.process.poll() is None, "the process ended while it started"
            await asyncio.sleep(0.1)


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = NatsServer(data_dir=tmp_path_factory.mktemp("nats"), port=free_port())
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def service(
    tiny_policy: Path, nats: NatsServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("generation")
    running = start_service(tiny_policy, root, nats.url)
    yield running
    running.process.terminate()
    assert running.process.wait(20) == 0, (root / "generation.log").read_text()


@pytest.fixture
async def stub(service: Service) -> AsyncIterator[generation_pb2_grpc.GenerationServiceStub]:
    await ready(service)
    async with connect(f"127.0.0.1:{service.port}") as channel:
        yield generation_pb2_grpc.GenerationServiceStub(channel)


@pytest.fixture
async def bus(nats: NatsServer) -> AsyncIterator[JetStreamBus]:
    connected = await JetStreamBus.connect(nats.url)
    yield connected
    await connected.close()


def make_request(completion_id: str, **options: object) -> generation_pb2.GenerateRequest:
    sampling = {"temperature": 1.0, "max_tokens": 8, "logit_bias": NO_EOS} | {
        name: options.pop(name) for name in list(options) if name in SamplingParameters.__slots__
    }
    messages = (ChatMessage(role="user", content="tell me a story"),)
    fields: dict[str, object] = {"chat": wire.messages_to_proto(messages), "user_hash": USER}
    if "text" in options or "tokens" in options:
        del fields["chat"]
    return generation_pb2.GenerateRequest(
        completion_id=completion_id,
        sampling=wire.sampling_to_proto(SamplingParameters(**sampling)),  # type: ignore[arg-type]
        tenant="default",
        **(fields | options),  # type: ignore[arg-type]
    )


async def run(
    stub: generation_pb2_grpc.GenerationServiceStub, request: generation_pb2.GenerateRequest
) -> tuple[list[generation_pb2.GenerateDelta], list[generation_pb2.GenerateFinal]]:
    """All messages of one call; raises the domain error that the status stands for."""
    deltas, finals = [], []
    try:
        async for response in stub.Generate(request):
            if response.HasField("final"):
                finals.append(response.final)
            else:
                deltas.append(response.delta)
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error) from error
    return deltas, finals


async def rollout(bus: JetStreamBus, completion_id: str) -> Rollout:
    """The stored rollout of a completion."""
    durable = f"test-{completion_id.replace('.', '-')}"
    consumer = await bus.consume(
        stream=subjects.ROLLOUTS,
        durable=durable,
        subjects=[subjects.rollout_generated("tuneloop", USER)],
        ack_wait=30,
    )
    async with asyncio.timeout(20):
        while True:
            for delivery in await consumer.fetch(100, 1.0):
                await delivery.ack()
                for stored in wire.decode_rollouts_generated(delivery.data):
                    if stored.completion_id == completion_id:
                        return stored


async def test_an_answer_streams_and_its_rollout_is_stored(
    stub: generation_pb2_grpc.GenerationServiceStub, bus: JetStreamBus, service: Service
) -> None:
    deltas, (final,) = await run(stub, make_request("chatcmpl-a", top_logprobs=2))
    assert [t for d in deltas for t in d.token_ids] == list(final.token_ids)
    positions = [position for d in deltas for position in d.logprobs]
    assert [p.chosen.token_id for p in positions] == list(final.token_ids)
    assert all(len(p.top) == 2 for p in positions)
    assert final.usage.completion_tokens == 8
    stored = await rollout(bus, "chatcmpl-a")
    assert stored.completion_token_ids == tuple(final.token_ids)
    assert stored.generation_logprobs == pytest.approx(list(final.generation_logprobs))
    assert stored.completion_text == "".join(d.text for d in deltas)
    assert stored.prompt_text.endswith("<|im_start|>assistant\n")
    assert stored.messages[0].content == "tell me a story"
    assert (stored.tenant, stored.user_hash) == ("default", USER)
    assert stored.finish_reason is FinishReason.LENGTH
    assert len(stored.prompt_token_ids) == final.usage.prompt_tokens
    assert service.metric("tuneloop_rollouts_published_total") >= 1
    assert service.metric("tuneloop_time_to_first_token_seconds_count") >= 1


async def test_the_tokens_of_a_conversation_are_counted_as_an_answer_counts_them(
    stub: generation_pb2_grpc.GenerationServiceStub,
) -> None:
    request = make_request("chatcmpl-count")
    _, (final,) = await run(stub, request)
    count = await stub.CountTokens(generation_pb2.CountTokensRequest(chat=request.chat))
    assert count.prompt_tokens == final.usage.prompt_tokens
    tools = generation_pb2.ToolUse(tools=[generation_pb2.Tool(name="f")])
    with pytest.raises(grpc.aio.AioRpcError, match="tools: calling functions is off"):
        await stub.CountTokens(generation_pb2.CountTokensRequest(chat=request.chat, tool_use=tools))


async def test_siblings_share_a_group_and_have_ids_of_their_own(
    stub: generation_pb2_grpc.GenerationServiceStub, bus: JetStreamBus
) -> None:
    _, finals = await run(stub, make_request("chatcmpl-n", n=2))
    assert sorted(f.completion_id for f in finals) == ["chatcmpl-n", "chatcmpl-n.1"]
    for completion_id in ("chatcmpl-n", "chatcmpl-n.1"):
        assert (await rollout(bus, completion_id)).group_id == "chatcmpl-n"


async def test_candidates_are_stored_when_one_is_chosen(
    stub: generation_pb2_grpc.GenerationServiceStub, bus: JetStreamBus
) -> None:
    request = make_request("chatcmpl-best", n=3, are_candidates=True, session_id="s")
    deltas, finals = await run(stub, request)
    choice = generation_pb2.ChooseCandidateRequest(
        group_id="chatcmpl-best", completion_id="chatcmpl-best.1"
    )
    await stub.ChooseCandidate(choice)
    found = {f.completion_id: await rollout(bus, f.completion_id) for f in finals}
    assert {name: r.source for name, r in found.items()} == {
        "chatcmpl-best": RolloutSource.CANDIDATE,
        "chatcmpl-best.1": RolloutSource.USER,
        "chatcmpl-best.2": RolloutSource.CANDIDATE,
    }
    assert {(r.group_id, r.sampling.n, r.session_id) for r in found.values()} == {
        ("chatcmpl-best", 3, "s")
    }
    for final in finals:
        text = "".join(d.text for d in deltas if d.index == final.index)
        assert final.candidate_text == found[final.completion_id].completion_text == text
    with pytest.raises(grpc.aio.AioRpcError, match="no candidates of 'chatcmpl-best' are held"):
        await stub.ChooseCandidate(choice)


async def test_greedy_siblings_are_equal(
    stub: generation_pb2_grpc.GenerationServiceStub, bus: JetStreamBus
) -> None:
    request = make_request("chatcmpl-greedy", n=3, temperature=0.0)
    deltas, finals = await run(stub, request)
    assert sorted(final.index for final in finals) == [0, 1, 2]
    texts = ["".join(d.text for d in deltas if d.index == index) for index in range(3)]
    assert len(set(texts)) == len({tuple(final.token_ids) for final in finals}) == 1
    for completion_id in ("chatcmpl-greedy", "chatcmpl-greedy.2"):
        stored = await rollout(bus, completion_id)
        assert stored.completion_text == texts[0]
        assert (stored.sampling.n, stored.sampling.temperature) == (3, 0.0)


async def test_a_temperature_is_kept_as_it_was_used(
    stub: generation_pb2_grpc.GenerationServiceStub, bus: JetStreamBus
) -> None:
    await run(stub, make_request("chatcmpl-cold", temperature=0.001))
    assert (await rollout(bus, "chatcmpl-cold")).sampling.temperature == pytest.approx(0.01)


async def test_the_bytes_of_the_tokens_are_the_text(
    stub: generation_pb2_grpc.GenerationServiceStub,
) -> None:
    schema = json.dumps({"const": "漢😀"}, ensure_ascii=False)
    request = make_request("bytes", json_schema=schema, max_tokens=64, top_logprobs=2)
    deltas, _ = await run(stub, request)
    tokens = [position.chosen for delta in deltas for position in delta.logprobs]
    joined = b"".join(token.token_bytes for token in tokens)
    assert joined.decode() == "".join(delta.text for delta in deltas)
    assert "漢😀" in joined.decode()
    assert {"bytes:\\xe6", "bytes:\\xbc", "bytes:\\xa2"} <= {token.token for token in tokens}
    assert all(token.HasField("token_bytes") for token in tokens)


async def test_a_long_prompt_does_not_stop_the_streams_of_others(
    stub: generation_pb2_grpc.GenerationServiceStub, service: Service
) -> None:
    """Tibetan has many tokens a character: this is refused once it is tokenized."""
    call = stub.Generate(make_request("chatcmpl-stream", max_tokens=400))
    async with asyncio.TaskGroup() as group:
        refused = group.create_task(raised_by(stub, text="\u0f40" * 50_000))
        gaps, before = [], asyncio.get_running_loop().time()
        async for _ in call:
            now = asyncio.get_running_loop().time()
            gaps.append((now - before, refused.done()))
            before = now
    assert isinstance(await refused, InvalidRequest)
    # The stream went on while the other was being tokenized.
    assert sum(not done for _, done in gaps) > 1


async def raised_by(
    stub: generation_pb2_grpc.GenerationServiceStub, **options: object
) -> TuneloopError | None:
    try:
        await run(stub, make_request("chatcmpl-refused", **options))
    except TuneloopError as error:
        return error
    return None


async def test_a_request_that_names_no_limit_is_clipped_to_the_room(
    stub: generation_pb2_grpc.GenerationServiceStub,
) -> None:
    tokens = generation_pb2.TokenPrompt(token_ids=[300] * 505)
    request = make_request("cmpl-clip", tokens=tokens, max_tokens=256, clip_max_tokens=True)
    _, (final,) = await run(stub, request)
    assert final.usage.completion_tokens == 7


@pytest.mark.parametrize(
    ("options", "error", "param"),
    [
        ({"max_tokens": 600}, InvalidRequest, "max_tokens"),
        ({"temperature": -1.0}, InvalidRequest, "temperature"),
        ({"policy": "other"}, NotFound, "model"),
        ({"policy_version": 99}, NotFound, "policy_version"),
        ({"n": 5}, Overloaded, None),
        ({"stop": ("x" * 65,)}, InvalidRequest, "stop"),
        ({"logit_bias": dict.fromkeys(range(301), 1.0)}, InvalidRequest, "logit_bias"),
        ({"user_hash": "not a token"}, InvalidRequest, "user_hash"),
        ({"text": "x" * 60_000}, InvalidRequest, "prompt"),
        ({"tokens": generation_pb2.TokenPrompt(token_ids=[-1])}, InvalidRequest, "prompt"),
    ],
)
async def test_what_cannot_be_answered_is_a_clear_error(
    stub: generation_pb2_grpc.GenerationServiceStub,
    options: dict[str, object],
    error: type[TuneloopError],
    param: str | None,
) -> None:
    with pytest.raises(error) as raised:
        await run(stub, make_request("chatcmpl-bad", **options))
    if param is not None:
        assert raised.value.param == param


async def test_a_request_without_prompt_or_id_is_refused(
    stub: generation_pb2_grpc.GenerationServiceStub,
) -> None:
    request = make_request("chatcmpl-none")
    request.ClearField("chat")
    with pytest.raises(InvalidRequest, match="prompt"):
        await run(stub, request)
    with pytest.raises(InvalidRequest, match="completion_id"):
        await run(stub, make_request(""))


async def test_cancelling_frees_the_engine_and_keeps_what_was_sampled(
    stub: generation_pb2_grpc.GenerationServiceStub, bus: JetStreamBus, service: Service
) -> None:
    call = stub.Generate(make_request("chatcmpl-left", max_tokens=400))
    async for response in call:
        if response.delta.token_ids:
            break
    call.cancel()
    stored = await rollout(bus, "chatcmpl-left")
    assert stored.finish_reason is FinishReason.ABORT
    assert 0 < len(stored.completion_token_ids) < 400
    assert service.metric("tuneloop_running_requests") == 0
    policy = (await stub.GetPolicy(generation_pb2.GetPolicyRequest())).policy
    assert [version.leases for version in policy.loaded_versions] == [0]


async def test_unpublished_answers_leave_no_rollout(
    stub: generation_pb2_grpc.GenerationServiceStub, bus: JetStreamBus
) -> None:
    await run(stub, make_request("chatcmpl-private", publish_rollout=False))
    await run(stub, make_request("chatcmpl-public"))
    await rollout(bus, "chatcmpl-public")
    last = await bus.last(subjects.rollout_generated("tuneloop", USER))
    assert last is not None
    [stored] = wire.decode_rollouts_generated(last.data)
    assert stored.completion_id == "chatcmpl-public"


async def test_a_published_version_serves_by_the_table_and_by_call(
    stub: generation_pb2_grpc.GenerationServiceStub, bus: JetStreamBus, service: Service
) -> None:
    reference = service.versions.publish(1, service.adapter)
    key = subjects.stable_policy_key("tuneloop")
    await bus.set_routing(key, wire.encode_routing(reference), revision=None)
    async with asyncio.timeout(20):
        while (await stub.GetPolicy(generation_pb2.GetPolicyRequest())).policy.policy_version != 1:
            await asyncio.sleep(0.05)
    _, (final,) = await run(stub, make_request("chatcmpl-v1"))
    assert final.policy_version == 1
    _, (pinned,) = await run(stub, make_request("chatcmpl-v0", policy_version=0))
    assert pinned.policy_version == 0
    async with asyncio.timeout(20):
        while (event := await bus.last(subjects.weights_activated("tuneloop"))) is None:
            await asyncio.sleep(0.05)
    assert wire.decode_activation(event.data).policy_version == 1
    second = service.versions.publish(2, service.adapter)
    load = generation_pb2.LoadWeightsRequest(weights=wire.weights_to_proto(second), activate=False)
    assert (await stub.LoadWeights(load)).policy_version == 1
    load.activate = True
    assert (await stub.LoadWeights(load)).policy_version == 2
    load.weights.policy_version = 3
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await stub.LoadWeights(load)
    assert isinstance(error_from_rpc(refusal.value), NotFound | WeightsRefused)
    (policy,) = (await stub.ListPolicies(generation_pb2.ListPoliciesRequest())).policies
    assert (policy.name, policy.policy_version) == ("tuneloop", 2)
    assert (policy.engine, policy.weights_kind) == ("transformers", "lora")
    assert policy.max_model_len == 512


async def test_answers_flow_without_the_bus_and_rollouts_follow_later(
    stub: generation_pb2_grpc.GenerationServiceStub, nats: NatsServer, service: Service
) -> None:
    nats.kill()
    _, (final,) = await run(stub, make_request("chatcmpl-dark"))
    assert final.usage.completion_tokens == 8
    assert service.metric("tuneloop_rollout_buffer_length") >= 1
    nats.start()
    bus = await JetStreamBus.connect(nats.url)
    assert (await rollout(bus, "chatcmpl-dark")).completion_id == "chatcmpl-dark"
    await bus.close()


@pytest.mark.vllm
@pytest.mark.slow
async def test_vllm_serves_the_stable_version_and_its_crash_ends_the_process(
    tiny_policy: Path, nats_server: NatsServer, tmp_path: Path
) -> None:
    versions = Versions(tmp_path, tiny_policy)
    reference = versions.publish(4, make_adapter(tiny_policy, tmp_path / "stable", seed=4))
    bus = await JetStreamBus.connect(nats_server.url)
    key = subjects.stable_policy_key("tuneloop")
    await bus.set_routing(key, wire.encode_routing(reference), revision=None)
    settings = {"VERIFY_KEY_FILE": str(versions.verify_key_file), "WEIGHTS_URI": versions.uri}
    root = tmp_path / "process"
    root.mkdir()
    service = start_service(tiny_policy, root, nats_server.url, "vllm", **settings)
    try:
        await ready(service)
        async with connect(f"127.0.0.1:{service.port}") as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            _, (final,) = await run(stub, make_request("chatcmpl-first"))
            assert final.policy_version == 4
            assert (await rollout(bus, "chatcmpl-first")).policy_version == 4
        await bus.close()
        children = psutil.Process(service.process.pid).children(recursive=True)
        (core,) = [c for c in children if "EngineCore" in c.name()]
        core.kill()
        # The supervisor restarts what has ended with an error.
        assert await asyncio.to_thread(service.process.wait, 30) == 1
    finally:
        service.process.kill()
        service.process.wait()
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, timeout=20)
    assert alive == []
