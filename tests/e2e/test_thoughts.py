"""A model that thinks, through the real processes: streamed, judged, trained and swapped."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.e2e_client import ServeTiny, User, rows, wait_until
from support.thinking_models import (
    ANSWER,
    NEXT_ANSWER,
    NEXT_QUESTION,
    NEXT_THOUGHT,
    QUESTION,
    SHAPES,
    THOUGHT,
    lessons,
    make_thinker,
)

from tuneloop.learner.ledger.rows import unpack_ids

pytestmark = pytest.mark.timeout(300)
BATCH = 4


@pytest.fixture(
    scope="module",
    params=[pytest.param(s, marks=[] if s == "qwen3" else pytest.mark.slow) for s in SHAPES],
)
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def policy(shape: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_thinker(tmp_path_factory.mktemp(shape) / "policy", shape)


@pytest.fixture(scope="module")
def user(serve_tiny: ServeTiny, policy: Path) -> Iterator[User]:
    environment = {
        "TUNELOOP_LEARNER_RELEASE": "off",
        "TUNELOOP_LEARNER_BATCH_SIZE": str(BATCH),
        "TUNELOOP_LEARNER_BATCH_WAIT_SECONDS": "0.5",
        "TUNELOOP_LEARNER_MIN_BATCH_SIZE": str(BATCH),
        "TUNELOOP_LEARNER_PUBLISH_EVERY_STEPS": "1",
        "TUNELOOP_LEARNER_PUBLISH_EVERY_SECONDS": "0",
        "TUNELOOP_LEARNER_LEARNING_RATE": "1e-5",
    }
    with serve_tiny("thoughts", environment, "--model", str(policy)) as user:
        yield user


def streamed(user: User, messages: list[dict[str, str]]) -> tuple[str, dict[str, Any]]:
    """Ask, and return the completion's id and the message that the stream adds up to."""
    body = {"model": "tuneloop", "messages": messages, "temperature": 0, "max_tokens": 64}
    message: dict[str, Any] = {"role": "assistant", "content": "", "reasoning_content": ""}
    completion_id = ""
    with httpx.stream(
        "POST",
        f"{user.service.url}/v1/chat/completions",
        json=body | {"stream": True},
        timeout=60,
    ) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                completion_id = choice["completion_id"]
                assert not (message["content"] and "reasoning_content" in choice["delta"])
                for name in ("content", "reasoning_content"):
                    message[name] += choice["delta"].get(name) or ""
    return completion_id, message


def test_thoughts_are_streamed_kept_as_sampled_and_learned_from(
    user: User, shape: str, policy: Path
) -> None:
    from transformers import AutoTokenizer

    first, message = streamed(user, [{"role": "user", "content": QUESTION}])
    assert (message["reasoning_content"], message["content"]) == (THOUGHT, ANSWER)
    turns = [{"role": "user", "content": QUESTION}, message]
    second, message = streamed(user, [*turns, {"role": "user", "content": NEXT_QUESTION}])
    assert (message["reasoning_content"], message["content"]) == (NEXT_THOUGHT, NEXT_ANSWER)

    query = (
        "SELECT completion_id, prompt_tokens, completion_tokens, reasoning_text, completion_text,"
        " reasoning_tokens FROM rollouts"
    )
    wait_until(lambda: len(rows(user, query)) == 2, "both turns are in the ledger")
    found = {row[0]: row[1:] for row in rows(user, query)}
    for completion_id, lesson, thought, answer in zip(
        (first, second),
        lessons(AutoTokenizer.from_pretrained(policy), shape),
        (THOUGHT, NEXT_THOUGHT),
        (ANSWER, NEXT_ANSWER),
        strict=True,
    ):
        prompt, completion, *texts, reasoning_tokens = found[completion_id]
        # The model was taught these tokens, and samples them by heart.
        assert (unpack_ids(prompt), unpack_ids(completion)) == tuple(map(tuple, lesson))
        assert texts == [thought, answer]
        assert 0 < reasoning_tokens < len(lesson[1])

    for number in range(BATCH - 2):
        answer = user.chat(QUESTION, user=f"u{number}", max_tokens=64, temperature=0)
        user.press(answer["id"], up=True)
    for completion_id in (first, second):
        assert user.press(completion_id, up=completion_id == first).status_code == 202
    wait_until(lambda: user.serving_version() >= 1, "a version that learned from the thumbs")
    answer = user.chat(QUESTION, max_tokens=64, temperature=0)
    message = answer["choices"][0]["message"]
    assert answer["policy_version"] >= 1
    assert (message["reasoning_content"], message["content"]) == (THOUGHT, ANSWER)
