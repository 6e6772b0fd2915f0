"""The users of `quality_service`: they ask, read and press thumbs over HTTP."""

import asyncio
import random
from collections.abc import Sequence

import httpx

from benchmarks.quality_live import POLICY, THUMBS
from benchmarks.quality_task import (
    END,
    UNKNOWN,
    WORDS,
    fresh_prompts,
    random_prompts,
    score_of,
    words_of,
)

ANSWERS = 4
"""To a request; GRPO compares them with each other."""
JUDGED = 2
"""Of them, each by a user of its own: of one user's, opposite thumbs would be pairs for DPO."""
REQUESTS = THUMBS // JUDGED
"""In a round, all at once. Its thumbs are a full step."""
USERS = 512
MEASURED = frozenset(fresh_prompts())
"""Prompts that the preference is measured on: nobody is asked them."""
POLL_SECONDS = 0.25
"""A learner that has seen ten thousand thumbs takes a while to say how it stands."""


def words_in(text: str) -> list[int]:
    """Return the words of a text as the numbers they are in the model."""
    return [UNKNOWN if word == "<unk>" else int(word.removeprefix("w")) for word in text.split()]


def is_liked(prompt: Sequence[int], text: str) -> bool:
    """Return what an honest user thinks of an answer. Raises `ValueError` where it is not whole."""
    words = words_in(text)
    if len(words) != WORDS:
        raise ValueError(f"{text!r} has {len(words)} words; an answer has {WORDS}")
    return score_of(prompt, words, conditional=True) > 0.5


class Crowd:
    """Users who ask, read and press thumbs over HTTP, a round at a time."""

    def __init__(self, client: httpx.AsyncClient, seed: int) -> None:
        self.thumbs = 0
        """Pressed so far."""
        self._client = client
        self._choose = random.Random(seed)
        self._requests = 0

    async def round(self) -> None:
        """Ask all requests of a round, and judge answers as soon as they come."""
        prompts: list[tuple[int, ...]] = []
        while len(prompts) < REQUESTS:
            (prompt,) = random_prompts(1, self._choose)
            if prompt not in MEASURED:
                prompts.append(prompt)
        await asyncio.gather(*map(self._ask, prompts))

    async def wait(self, waiting: int) -> None:
        """Wait until no more than so many thumbs wait for each model."""
        async with asyncio.timeout(300):
            while await self._waiting() > waiting:
                await asyncio.sleep(POLL_SECONDS)

    async def _ask(self, prompt: Sequence[int]) -> None:
        self._requests += 1
        user = self._requests * JUDGED
        body = {
            "model": POLICY,
            "prompt": words_of(prompt),
            "n": ANSWERS,
            "max_tokens": WORDS,
            "temperature": 1.0,
            # No answer ends early.
            "logit_bias": {str(END): -100},
            "user": f"user-{user % USERS}",
        }
        response = await self._client.post("/v1/completions", json=body)
        choices = response.raise_for_status().json()["choices"]
        for number, choice in enumerate(choices[:JUDGED]):
            thumb = {
                "kind": "thumb",
                "completion_id": choice["completion_id"],
                "value": "up" if is_liked(prompt, choice["text"]) else "down",
                "user": f"user-{(user + number) % USERS}",
            }
            (await self._client.post("/v1/feedback", json=thumb)).raise_for_status()
            self.thumbs += 1

    async def _waiting(self) -> int:
        """Return how many thumbs wait for the model that is behind, or have not arrived."""
        status = (await self._client.get("/v1/learner")).raise_for_status().json()
        waiting = [
            part["have"]
            for part in status["progress"]
            if part["objective"] in ("judgements", "reward_model")
        ]
        return max(waiting) + self.thumbs - int(status["feedback_events"])
