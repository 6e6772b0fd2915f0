"""The gateway's own price: chats of a paced generation service through it and past it.

Paced generation takes 50 ms to the first piece and 30 ms to each further one, whoever asks, and
writes into each piece when it was sent. The same load asks it over gRPC, then through the gateway
over HTTP; the difference is what gateway and HTTP cost together, the client's side included.
"""

import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from benchmarks.gateway_edge import FIRST_SECONDS, PACE_SECONDS, Edge
from benchmarks.intervals import Pair, added
from benchmarks.load import Chat, ChatResult, LoadResult, http_chat, load_with, session_for
from tuneloop.rpc.channel import connect
from tuneloop.v1 import generation_pb2, generation_pb2_grpc, rollout_pb2

PIECES = 16


async def measure_pace(
    edge: Edge, *, streams: tuple[int, ...], rounds: int
) -> list[dict[str, Any]]:
    """A row for each count of streams."""
    rows = []
    for count in streams:
        async with past_gateway(edge) as direct, through_gateway(edge, count) as ours:
            sides = {"ours": ours, "direct": direct}
            for chat in sides.values():
                await run(chat, count, requests=2 * count)
            pairs = []
            for number in range(rounds):
                order = list(sides) if number % 2 == 0 else list(reversed(sides))
                seen = {name: await run(sides[name], count, max(8, 4 * count)) for name in order}
                pairs.append((seen["ours"], seen["direct"]))
        rows.append(pace_row(count, pairs))
    return rows


async def run(chat: Chat, streams: int, requests: int) -> LoadResult:
    """One run, its streams spread over the length of a chat."""
    apart = (FIRST_SECONDS + PIECES * PACE_SECONDS) / streams
    return await load_with(chat, streams=streams, requests=requests, max_tokens=PIECES, apart=apart)


def pace_row(streams: int, pairs: list[tuple[LoadResult, LoadResult]]) -> dict[str, Any]:
    """What the gateway adds, in milliseconds."""
    first: list[Pair] = [(milliseconds(a), milliseconds(b)) for a, b in firsts(pairs)]
    later: list[Pair] = [(on_the_way(a), on_the_way(b)) for a, b in pairs]
    return {
        "streams": streams,
        "added_first_token_ms": {"p50": added(first, 0.5), "p99": added(first, 0.99)},
        "added_later_token_ms": {"p50": added(later, 0.5), "p99": added(later, 0.99)},
        "chats": sum(len(a.chats) for a, _ in pairs),
        "failed": sum(a.failed + b.failed for a, b in pairs),
    }


def firsts(pairs: list[tuple[LoadResult, LoadResult]]) -> list[Pair]:
    return [(a.first_token_seconds, b.first_token_seconds) for a, b in pairs]


def milliseconds(seconds: Any) -> list[float]:
    return [value * 1e3 for value in seconds]


def on_the_way(result: LoadResult) -> list[float]:
    """Milliseconds from sending to arrival of every piece after a chat's first."""
    return [
        (arrived - float(text)) * 1e3 for chat in result.chats for arrived, text in chat.pieces[1:]
    ]


@contextlib.asynccontextmanager
async def through_gateway(edge: Edge, streams: int) -> AsyncIterator[Chat]:
    """Chats over HTTP."""
    async with session_for(edge.url, streams) as session:

        async def chat(prompt: str, max_tokens: int) -> ChatResult:
            return await http_chat(session, prompt, max_tokens)

        yield chat


@contextlib.asynccontextmanager
async def past_gateway(edge: Edge) -> AsyncIterator[Chat]:
    """Chats over gRPC."""
    async with connect(edge.generation_address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)

        async def chat(prompt: str, max_tokens: int) -> ChatResult:
            return await grpc_chat(stub, prompt, max_tokens)

        yield chat


async def grpc_chat(
    stub: generation_pb2_grpc.GenerationServiceStub, prompt: str, max_tokens: int
) -> ChatResult:
    """One streamed chat from the service itself, kept out of training."""
    started = time.perf_counter()
    request = generation_pb2.GenerateRequest(
        completion_id=f"chatcmpl-{secrets.token_hex(8)}",
        publish_rollout=False,
        policy="tuneloop",
        sampling=rollout_pb2.SamplingParameters(
            max_tokens=max_tokens, temperature=0.7, top_p=1.0, n=1
        ),
    )
    request.chat.messages.add(role="user", content=prompt)
    pieces = []
    tokens = 0
    async for event in stub.Generate(request, timeout=300):
        if event.WhichOneof("event") == "delta":
            pieces.append((time.perf_counter(), event.delta.text))
        else:
            tokens = event.final.usage.completion_tokens
    return ChatResult(started=started, pieces=tuple(pieces), tokens=tokens)
