"""Full weights and PPO through the real processes, with a user's own reward function."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.e2e_client import ServeTiny, User, wait_until, wait_until_each_thumb_is_used_once

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]
TESTS = Path(__file__).parents[1]


@pytest.fixture(
    scope="module",
    params=["transformers", pytest.param("vllm", marks=pytest.mark.vllm)],
)
def user(request: pytest.FixtureRequest, serve_tiny: ServeTiny) -> Iterator[User]:
    environment = {
        "PYTHONPATH": str(TESTS),
        "TUNELOOP_REWARD_FUNCTIONS": '["support.e2e_reward:brevity"]',
        # Versions are served as they come; the gate has a test of its own.
        "TUNELOOP_LEARNER_RELEASE": "off",
        "TUNELOOP_LEARNER_BATCH_SIZE": "4",
        "TUNELOOP_LEARNER_BATCH_WAIT_SECONDS": "0.5",
        "TUNELOOP_LEARNER_PUBLISH_EVERY_STEPS": "1",
        "TUNELOOP_LEARNER_PUBLISH_EVERY_SECONDS": "0",
        "TUNELOOP_LEARNER_POLICY_GRADIENT_BATCH_SIZE": "8",
        "TUNELOOP_GENERATION_KV_CACHE_GIB": "0.25",
    }
    with serve_tiny("full", environment, "--weights", "full", engine=request.param) as user:
        yield user


def test_thumbs_replace_the_weights_of_the_running_service(user: User) -> None:
    user.chat_and_press(4)
    wait_until(lambda: user.chat()["policy_version"] >= 1, "an answer from new weights")
    wait_until_each_thumb_is_used_once(user)
    serving = user.get("/v1/policies")["serving"]
    assert serving["weights_kind"] == "full"
    names = {f["name"] for f in user.get("/v1/policies/1")["manifest"]["files"]}
    assert {"model.safetensors", "config.json"} <= names


def test_scored_rollouts_are_learned_by_ppo(user: User) -> None:
    def score() -> list[float]:
        # A chat is answered before the rewards are there.
        body = {"prompt": "hi", "completions": ["a", "a longer one"]}
        document = httpx.post(f"{user.service.url}/v1/score", json=body, timeout=60).json()
        return list(document.get("scores", []))

    wait_until(lambda: bool(score()), "an answer of the reward service")
    short, long = score()
    assert short > long

    def used() -> bool:
        user.chat()
        samples = {s["objective"]: s["used"] for s in user.get("/v1/learner")["samples"]}
        return samples["ppo"] >= 8

    wait_until(used, "a PPO step on eight scored rollouts")
    wait_until(
        lambda: any("ppo" in v["algorithms"] for v in user.get("/v1/policies")["data"]),
        "a version that PPO made",
    )
