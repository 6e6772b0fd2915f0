"""Simulated users with a hidden taste: they chat through the public API and press thumbs.

The service never sees the taste, only the thumbs.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

LONGEST_LIKED_ANSWER = 40
"""Tokens. The hidden taste: an answer that ends by itself within this many is liked."""
MAX_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer a user read, and what they thought of it."""

    completion_id: str
    policy_version: int
    tokens: int
    liked: bool
    question: str
    text: str


async def ask(
    client: httpx.AsyncClient, question: str, *, user: str, seed: int, train: bool
) -> Answer:
    """Ask one question and judge the answer by the hidden taste."""
    response = await client.post(
        "/v1/chat/completions",
        json={
            "model": "tuneloop",
            "messages": [{"role": "user", "content": question}],
            "max_tokens": MAX_TOKENS,
            "temperature": 1.0,
            "seed": seed,
            "user": user,
            "metadata": {"train": train},
        },
    )
    response.raise_for_status()
    body = response.json()
    tokens = body["usage"]["completion_tokens"]
    ended = body["choices"][0]["finish_reason"] == "stop"
    return Answer(
        completion_id=body["id"],
        policy_version=body["policy_version"],
        tokens=tokens,
        liked=ended and tokens <= LONGEST_LIKED_ANSWER,
        question=question,
        text=body["choices"][0]["message"]["content"],
    )


async def press_thumb(client: httpx.AsyncClient, answer: Answer, *, user: str) -> None:
    """Tell the service, as a front end would."""
    response = await client.post(
        "/v1/feedback",
        json={
            "kind": "thumb",
            "completion_id": answer.completion_id,
            "value": "up" if answer.liked else "down",
            "user": user,
        },
    )
    response.raise_for_status()


async def chat_round(
    client: httpx.AsyncClient, questions: Sequence[str], *, seed: int
) -> list[Answer]:
    """Every user asks one question at the same time, reads, and presses a thumb."""

    async def one_user(number: int, question: str) -> Answer:
        user = f"demo-{number}"
        answer = await ask(client, question, user=user, seed=seed * 1000 + number, train=True)
        await press_thumb(client, answer, user=user)
        return answer

    picked = random.Random(seed).sample(list(questions), 16)
    return list(await asyncio.gather(*(one_user(i, q) for i, q in enumerate(picked))))


async def evaluate(client: httpx.AsyncClient, questions: Sequence[str]) -> list[Answer]:
    """Fresh questions, no thumbs, kept out of training: what the present version is worth."""
    limit = asyncio.Semaphore(16)

    async def one(number: int, question: str) -> Answer:
        async with limit:
            return await ask(client, question, user="evaluation", seed=number, train=False)

    return list(await asyncio.gather(*(one(i, q) for i, q in enumerate(questions))))
