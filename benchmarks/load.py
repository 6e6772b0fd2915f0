"""Concurrent streaming chats against any OpenAI-compatible server, and what came back."""

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

PROMPTS = [
    "Tell me about the history of bridges.",
    "Explain how bread is made, step by step.",
    "Describe a day at the sea.",
    "Why is the sky blue?",
    "What should I know before I buy a bicycle?",
    "Write a short story about an owl.",
    "How do volcanoes work?",
    "Give me advice for learning chess.",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What `streams` concurrent clients saw."""

    streams: int
    requests: int
    failed: int
    completion_tokens: int
    seconds: float
    first_token_seconds_p50: float
    first_token_seconds_p99: float

    @property
    def tokens_per_second(self) -> float:
        return self.completion_tokens / self.seconds


async def one_stream(
    client: httpx.AsyncClient, prompt: str, *, max_tokens: int
) -> tuple[int, float]:
    """One streamed chat: (completion tokens by the server's own usage, seconds to first text)."""
    body = {
        "model": "tuneloop",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0.7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started = time.perf_counter()
    first = 0.0
    tokens = 0
    done = False
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            data = line[6:]
            if data == "[DONE]":
                done = True
                break
            chunk = json.loads(data)
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
            if not first and chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - started
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
    if not done:
        raise RuntimeError("the stream ended without [DONE]")
    return tokens, first


async def load(base_url: str, *, streams: int, requests: int, max_tokens: int) -> LoadResult:
    """`requests` chats, `streams` at a time."""
    slots = asyncio.Semaphore(streams)
    results: list[tuple[int, float]] = []
    failed = 0
    limits = httpx.Limits(max_connections=streams, max_keepalive_connections=streams)

    async with httpx.AsyncClient(base_url=base_url, timeout=300, limits=limits) as client:

        async def one(number: int) -> None:
            nonlocal failed
            async with slots:
                try:
                    prompt = PROMPTS[number % len(PROMPTS)]
                    results.append(await one_stream(client, prompt, max_tokens=max_tokens))
                except (httpx.HTTPError, RuntimeError):
                    failed += 1

        started = time.perf_counter()
        await asyncio.gather(*(one(i) for i in range(requests)))
        seconds = time.perf_counter() - started
    first = sorted(f for _, f in results if f) or [0.0]
    return LoadResult(
        streams=streams,
        requests=requests,
        failed=failed,
        completion_tokens=sum(tokens for tokens, _ in results),
        seconds=seconds,
        first_token_seconds_p50=statistics.median(first),
        first_token_seconds_p99=percentile(first, 0.99),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of an ordered sequence lies (nearest rank)."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
