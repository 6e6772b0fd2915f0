"""Errors cross a real gRPC connection and arrive as what they were."""

import asyncio
import inspect
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from tuneloop import errors
from tuneloop.errors import TuneloopError, Unavailable
from tuneloop.rpc.channel import MAX_MESSAGE_BYTES, connect
from tuneloop.rpc.probe import is_serving
from tuneloop.rpc.server import Server
from tuneloop.rpc.status import code_of, error_from_rpc
from tuneloop.v1 import generation_pb2, generation_pb2_grpc, reward_pb2, reward_pb2_grpc

every_error = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, TuneloopError)
]
SCORE = "/tuneloop.v1.RewardService/ScoreRollouts"


class Scripted(reward_pb2_grpc.RewardServiceServicer):
    """Raises what it is told to, or answers."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.entered = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def ScoreRollouts(self, request: Any, context: Any) -> reward_pb2.ScoreRolloutsResponse:
        self.entered.set()
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        return reward_pb2.ScoreRolloutsResponse(reward_model_version=3)


class Streaming(generation_pb2_grpc.GenerationServiceServicer):
    """Streams two deltas, then raises what it is told to or goes on until it is cancelled."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.ended = asyncio.Event()

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            for text in ("a", "b"):
                yield generation_pb2.GenerateResponse(delta=generation_pb2.GenerateDelta(text=text))
            if self.error is not None:
                raise self.error
            await asyncio.sleep(3600)
        finally:
            self.ended.set()


class Served:
    def __init__(self, server: Server, scripted: Scripted, streaming: Streaming) -> None:
        self.server, self.scripted, self.streaming = server, scripted, streaming
        self.channel = connect(f"127.0.0.1:{server.port}")
        self.reward = reward_pb2_grpc.RewardServiceStub(self.channel)
        self.generation = generation_pb2_grpc.GenerationServiceStub(self.channel)

    async def score_error(self) -> TuneloopError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.reward.ScoreRollouts(reward_pb2.ScoreRolloutsRequest(), timeout=10)
        return error_from_rpc(caught.value)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    server = Server(host="127.0.0.1", port=0, drain_seconds=5)
    scripted, streaming = Scripted(), Streaming()
    server.add(reward_pb2_grpc.add_RewardServiceServicer_to_server, scripted)
    server.add(generation_pb2_grpc.add_GenerationServiceServicer_to_server, streaming)
    await server.start()
    await server.set_serving(True)
    yield (served := Served(server, scripted, streaming))
    await served.channel.close()
    scripted.go_on.set()
    await server.stop()


@pytest.mark.parametrize("kind", every_error, ids=lambda kind: kind.__name__)
async def test_every_error_arrives_as_itself(kind: type[TuneloopError], served: Served) -> None:
    served.scripted.error = kind("told to", param="completions", retry_after=1.5)
    error = await served.score_error()
    assert type(error) is kind
    assert (error.message, error.param, error.retry_after) == ("told to", "completions", 1.5)


async def test_absent_param_and_retry_stay_absent(served: Served) -> None:
    served.scripted.error = errors.NotFound("no such thing")
    error = await served.score_error()
    assert (error.param, error.retry_after) == (None, None)


def test_an_error_without_a_code_of_its_own_has_its_parents() -> None:
    assert code_of(errors.WeightsRefused("x")) is grpc.StatusCode.INVALID_ARGUMENT
    assert code_of(TuneloopError("x")) is grpc.StatusCode.INTERNAL


async def test_a_long_message_still_arrives(served: Served) -> None:
    served.scripted.error = errors.InvalidRequest("x" * 100_000)
    error = await served.score_error()
    assert type(error) is errors.InvalidRequest
    assert error.message.startswith("xxx")


async def test_a_bug_is_hidden_behind_an_id_that_the_log_has(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    served.scripted.error = KeyError("the secret")
    error = await served.score_error()
    assert type(error) is TuneloopError
    assert "secret" not in error.message
    incident = error.message.split()[-1]
    assert incident in caplog.text
    assert "the secret" in caplog.text


async def test_an_error_in_the_middle_of_a_stream_comes_after_what_was_sent(
    served: Served,
) -> None:
    served.streaming.error = errors.Overloaded("enough", retry_after=3)
    texts = []

    async def read() -> None:
        async for response in served.generation.Generate(generation_pb2.GenerateRequest()):
            texts.append(response.delta.text)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read()
    error = error_from_rpc(caught.value)
    assert texts == ["a", "b"]
    assert (type(error), error.retry_after) == (errors.Overloaded, 3)


async def test_cancelling_a_stream_ends_its_handler(served: Served) -> None:
    call = served.generation.Generate(generation_pb2.GenerateRequest())
    async for _ in call:
        break
    call.cancel()
    async with asyncio.timeout(10):
        await served.streaming.ended.wait()


@pytest.mark.parametrize("stream", [False, True])
async def test_bytes_that_are_no_message_are_an_invalid_argument(
    served: Served, stream: bool
) -> None:
    if stream:
        call = served.channel.unary_stream("/tuneloop.v1.GenerationService/Generate")
        answer = call(b"\xff\xff\xff").read()
    else:
        answer = served.channel.unary_unary(SCORE)(b"\xff\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answer
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    error = error_from_rpc(caught.value)
    assert type(error) is errors.CorruptData
    assert "not a valid message" in error.message


async def test_an_unknown_method_and_an_oversize_message_are_refused(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.channel.unary_unary("/tuneloop.v1.RewardService/Nothing")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    big = reward_pb2.ScoreRolloutsRequest(text="x" * (MAX_MESSAGE_BYTES + 1))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.reward.ScoreRollouts(big)
    assert type(error_from_rpc(caught.value)) is errors.InvalidRequest


async def test_nobody_listening_is_unavailable(unused_tcp_port: int) -> None:
    channel = connect(f"127.0.0.1:{unused_tcp_port}")
    stub = reward_pb2_grpc.RewardServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ScoreRollouts(reward_pb2.ScoreRolloutsRequest(), timeout=10)
    error = error_from_rpc(caught.value)
    assert type(error) is Unavailable
    assert error.retry_after is not None
    assert not await is_serving(channel)
    await channel.close()


async def test_health_follows_set_serving_for_the_server_and_each_service(served: Served) -> None:
    names = ("", "tuneloop.v1.RewardService", "tuneloop.v1.GenerationService")
    assert [await is_serving(served.channel, name) for name in names] == [True] * 3
    await served.server.set_serving(False)
    assert [await is_serving(served.channel, name) for name in names] == [False] * 3
    assert not await is_serving(served.channel, "tuneloop.v1.Unknown")


async def test_stopping_lets_a_call_in_flight_end(served: Served) -> None:
    served.scripted.go_on.clear()
    call = served.reward.ScoreRollouts(reward_pb2.ScoreRolloutsRequest())
    await served.scripted.entered.wait()
    stopping = asyncio.create_task(served.server.stop())
    await asyncio.sleep(0.1)
    assert not stopping.done()
    served.scripted.go_on.set()
    assert (await call).reward_model_version == 3
    await stopping


async def test_a_port_that_a_connection_has_is_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as somebody, socket.socket() as connection:
        connection.bind(("127.0.0.1", 0))
        port = int(connection.getsockname()[1])
        connection.connect(somebody.getsockname())
        accepted, _ = somebody.accept()
        server = Server(host="127.0.0.1", port=port, drain_seconds=0.1)
        starting = asyncio.create_task(server.start())
        await asyncio.sleep(0.6)
        assert not starting.done()
        # Whoever ends it first keeps the port for a minute: not the one that is waited for.
        accepted.close()
        assert connection.recv(1) == b""
        connection.close()
        assert await starting == port
    await server.stop()


async def test_a_taken_port_is_refused(served: Served) -> None:
    second = Server(host="127.0.0.1", port=served.server.port)
    with pytest.raises(errors.SettingsError, match=str(served.server.port)):
        await second.start()


async def test_reflection_lists_the_services(served: Served) -> None:
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    call = stub.ServerReflectionInfo(iter([request]))
    response = await call.read()
    call.cancel()
    names = {service.name for service in response.list_services_response.service}
    assert {"tuneloop.v1.RewardService", "tuneloop.v1.GenerationService"} <= names
