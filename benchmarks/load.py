"""Concurrent streaming chats against any OpenAI-compatible server, and what came back."""

import asyncio
import itertools
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import aiohttp

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

HEADERS = {"x-stainless-retry-count": "0"}
"""As OpenAI's clients send it: a server that heeds it has to keep what it answers."""
NO_FIELDS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatResult:
    """One streamed chat; times are of `time.perf_counter`."""

    started: float
    pieces: tuple[tuple[float, str], ...]
    """When each piece of text arrived, and the text."""
    tokens: int
    """By the server's own usage."""

    @property
    def first_token_seconds(self) -> float:
        return self.pieces[0][0] - self.started

    @property
    def gap_seconds(self) -> list[float]:
        """Between a piece of text and the next."""
        times = [arrived for arrived, _ in self.pieces]
        return [later - earlier for earlier, later in itertools.pairwise(times)]

    @property
    def seconds_per_token(self) -> float:
        """From the first piece to the last, for each token after the first."""
        return (self.pieces[-1][0] - self.pieces[0][0]) / max(1, self.tokens - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What `streams` concurrent clients saw."""

    streams: int
    requests: int
    failed: int
    seconds: float
    chats: tuple[ChatResult, ...] = field(repr=False)
    """Those that ended well and had any text."""

    @property
    def completion_tokens(self) -> int:
        return sum(chat.tokens for chat in self.chats)

    @property
    def tokens_per_second(self) -> float:
        return self.completion_tokens / self.seconds

    @property
    def first_token_seconds(self) -> list[float]:
        return [chat.first_token_seconds for chat in self.chats]

    @property
    def gap_seconds(self) -> list[float]:
        return [gap for chat in self.chats for gap in chat.gap_seconds]

    @property
    def seconds_per_token(self) -> list[float]:
        return [chat.seconds_per_token for chat in self.chats]

    @property
    def first_token_seconds_p50(self) -> float:
        return percentile(self.first_token_seconds, 0.5)


Chat = Callable[[str, int], Awaitable[ChatResult]]
"""From a prompt and a limit to its tokens to one streamed chat."""


async def http_chat(
    session: aiohttp.ClientSession,
    prompt: str,
    max_tokens: int,
    fields: Mapping[str, Any] = NO_FIELDS,
) -> ChatResult:
    """One streamed chat over HTTP; `fields` are of the body, and win over the usual ones.

    Raises `RuntimeError` for a stream that did not end well.
    """
    body = {
        "model": "tuneloop",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0.7,
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": secrets.token_hex(8),
        **fields,
    }
    pieces: list[tuple[float, str]] = []
    tokens = 0
    started = time.perf_counter()
    async with session.post("/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            arrived = time.perf_counter()
            if not line.startswith(b"data: "):
                continue
            if line == b"data: [DONE]\n":
                return ChatResult(started=started, pieces=tuple(pieces), tokens=tokens)
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
            if chunk["choices"] and (text := chunk["choices"][0]["delta"].get("content")):
                pieces.append((arrived, text))
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
    raise RuntimeError("the stream ended without [DONE]")


def session_for(base_url: str, streams: int, *, train: bool = True) -> aiohttp.ClientSession:
    """A session that keeps as many connections; its chats may be learned from, or not."""
    return aiohttp.ClientSession(
        base_url,
        headers=HEADERS if train else HEADERS | {"x-tuneloop-train": "false"},
        connector=aiohttp.TCPConnector(limit=streams),
        timeout=aiohttp.ClientTimeout(total=300),
    )


async def load(
    base_url: str,
    *,
    streams: int,
    requests: int,
    max_tokens: int,
    apart: float = 0.0,
    train: bool = True,
    fields: Mapping[str, Any] = NO_FIELDS,
) -> LoadResult:
    """`requests` chats over HTTP, `streams` at a time; see `http_chat` and `load_with`."""
    async with session_for(base_url, streams, train=train) as session:

        async def chat(prompt: str, tokens: int) -> ChatResult:
            return await http_chat(session, prompt, tokens, fields)

        return await load_with(
            chat, streams=streams, requests=requests, max_tokens=max_tokens, apart=apart
        )


async def load_with(
    chat: Chat, *, streams: int, requests: int, max_tokens: int, apart: float = 0.0
) -> LoadResult:
    """`requests` chats, `streams` at a time, whose first ones start `apart` seconds one another."""
    chats: list[ChatResult] = []
    failed = 0
    numbers = iter(range(requests))

    async def stream(numbers: Iterator[int], wait: float) -> None:
        nonlocal failed
        await asyncio.sleep(wait)
        for number in numbers:
            try:
                chats.append(await chat(PROMPTS[number % len(PROMPTS)], max_tokens))
            except (aiohttp.ClientError, RuntimeError, TimeoutError):
                failed += 1

    started = time.perf_counter()
    await asyncio.gather(*(stream(numbers, i * apart) for i in range(streams)))
    return LoadResult(
        streams=streams,
        requests=requests,
        failed=failed,
        seconds=time.perf_counter() - started,
        chats=tuple(chat for chat in chats if chat.pieces),
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie; 0 where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
