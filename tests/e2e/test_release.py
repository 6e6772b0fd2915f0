"""Releases through the real processes: what is good is promoted, what is poisoned never serves."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.e2e_client import ServeTiny, User, wait_until
from typer.testing import CliRunner

from tuneloop.cli.policies import policies_app

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TESTS = Path(__file__).parent.parent
POISON = "000000000000"
BATCH = 32
"""Judgements of one version: four steps of eight."""


@pytest.fixture(scope="module")
def user(serve_tiny: ServeTiny) -> Iterator[User]:
    environment = {
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
        "TUNELOOP_REWARD_FUNCTIONS": '["support.e2e_reward:no_noise"]',
        "TUNELOOP_LEARNER_BATCH_SIZE": str(BATCH),
        "TUNELOOP_LEARNER_BATCH_WAIT_SECONDS": "0.5",
        "TUNELOOP_LEARNER_PUBLISH_EVERY_SECONDS": "0",
        "TUNELOOP_LEARNER_WARMUP_STEPS": "0",
        "TUNELOOP_LEARNER_LEARNING_RATE": "2e-2",
        "TUNELOOP_LEARNER_POLICY_GRADIENT": "off",
        "TUNELOOP_LEARNER_GATE__MAX_TOKENS": "16",
        # A random model knows nothing, and these steps are large.
        "TUNELOOP_LEARNER_GATE__ABILITIES": "false",
        "TUNELOOP_LEARNER_GATE__MAX_KL": "8",
        "TUNELOOP_LEARNER_GATE__MIN_LENGTH_RATIO": "0.2",
        "TUNELOOP_LEARNER_GATE__MAX_LENGTH_RATIO": "5",
        "TUNELOOP_LEARNER_GATE__MAX_REPETITION_RISE": "0.3",
        "TUNELOOP_LEARNER_GATE__MAX_BROKEN_RISE": "0.2",
    }
    with serve_tiny("release", environment) as user:
        yield user


@contextmanager
def chatting(user: User) -> Iterator[list[dict[str, Any]]]:
    """Somebody chats all the while; every answer, none of which may fail."""
    answers: list[dict[str, Any]] = []
    failures: list[BaseException] = []
    stop = threading.Event()

    def chat() -> None:
        while not stop.is_set():
            try:
                answers.append(user.chat("go on"))
            except (AssertionError, httpx.HTTPError) as error:
                failures.append(error)

    thread = threading.Thread(target=chat)
    thread.start()
    try:
        yield answers
    finally:
        stop.set()
        thread.join()
    assert failures == []
    assert answers


def versions(user: User) -> dict[int, dict[str, Any]]:
    return {v["policy_version"]: v for v in user.get("/v1/policies")["data"]}


def in_state(user: User, state: str) -> list[int]:
    return sorted(number for number, v in versions(user).items() if v["state"] == state)


def show(user: User, version: int) -> str:
    """What `tuneloop policies show` prints."""
    result = CliRunner().invoke(policies_app, ["show", str(version), "--url", user.service.url])
    assert result.exit_code == 0, result.output
    return result.stdout


@contextmanager
def paused(user: User, **wanted: int) -> Iterator[None]:
    """The learner waits until it has all that it is to learn from in one version."""
    wait_until(lambda: steer(user, "pause") == "paused", "the learner is up and pauses")
    yield
    for name, count in wanted.items():
        wait_until(lambda n=name, c=count: objective(user, n)["ready"] >= c, f"{count} of {name}")
    assert steer(user, "resume") != "paused"


def steer(user: User, action: str) -> str:
    """Pause or resume the learner; its state then."""
    response = httpx.post(f"{user.service.url}/v1/learner/{action}", timeout=30)
    assert response.status_code == 200, response.text
    return str(response.json()["state"])


def praise(user: User) -> None:
    with paused(user, kto=BATCH):
        for number in range(BATCH):
            completion_id = user.chat(f"story {number}")["id"]
            assert user.press(completion_id, up=True).status_code == 202


def poison(user: User) -> None:
    """Examples of noise, as answers that should have been given: each is learned from twice."""
    with paused(user, sft=BATCH // 2, dpo=BATCH // 2):
        for number in range(BATCH // 2):
            body = {
                "kind": "demonstration",
                "completion_id": user.chat(f"question {number}")["id"],
                "text": POISON,
                "user": f"stranger-{number}",
            }
            response = httpx.post(f"{user.service.url}/v1/feedback", json=body, timeout=30)
            assert response.status_code == 202, response.text


def objective(user: User, name: str) -> dict[str, Any]:
    return next(s for s in user.get("/v1/learner")["samples"] if s["objective"] == name)


def test_a_good_candidate_is_promoted_by_the_gate(user: User) -> None:
    with chatting(user):
        praise(user)
        wait_until(lambda: user.serving_version() >= 1, "the first candidate has passed")
    stable = user.serving_version()
    shown = user.get(f"/v1/policies/{stable}")
    assert [d["kind"] for d in shown["decisions"]] == ["gate", "promote"]
    gate, promote = shown["decisions"]
    assert (gate["outcome"], promote["actor"]) == ("pass", "gate")
    assert gate["numbers"]["reward"]["pairs"] == gate["numbers"]["candidate"]["answers"] == 12
    assert gate["numbers"]["rewards"]["scorers"] == ["support.e2e_reward:no_noise"]
    assert gate["numbers"]["candidate"]["kl"] is not None


def test_a_poisoned_batch_never_serves(user: User) -> None:
    stable = user.serving_version()
    with chatting(user) as answers:
        poison(user)
        wait_until(lambda: in_state(user, "quarantined") != [], "the poisoned candidate is refused")
        refused = in_state(user, "quarantined")[0]
        wait_until(lambda: len(in_state(user, "quarantined")) == 2, "learned from once more, again")
        wait_until(lambda: objective(user, "sft")["ready"] == 0, "the poison is set aside")
    assert user.serving_version() == stable
    assert {answer["policy_version"] for answer in answers} == {stable}

    shown = user.get(f"/v1/policies/{refused}")
    gate, quarantine = shown["decisions"]
    assert (gate["kind"], gate["outcome"]) == ("gate", "fail")
    assert (quarantine["kind"], quarantine["outcome"]) == ("quarantine", "quarantined")
    assert gate["numbers"]["reward"]["high"] < 0
    assert "mean reward fell" in gate["reason"]
    printed = show(user, refused)
    assert "mean reward fell" in printed
    assert "base_model_sha256" in printed


def test_what_spoilt_two_candidates_is_set_aside_and_learning_goes_on(user: User) -> None:
    stable = user.serving_version()
    assert objective(user, "sft")["ready"] == objective(user, "dpo")["ready"] == 0
    praise(user)
    wait_until(lambda: user.serving_version() > stable, "the next good candidate has passed")
    serving = user.get(f"/v1/policies/{user.serving_version()}")
    assert stable in serving["ancestors"]
    assert not set(in_state(user, "quarantined")) & set(serving["ancestors"])
    assert "sft" not in serving["samples"]


def test_a_person_rolls_back_and_nothing_is_promoted_by_itself(user: User) -> None:
    before = user.serving_version()
    response = httpx.post(f"{user.service.url}/v1/policies/rollback", timeout=30)
    assert response.status_code == 200, response.text
    good = response.json()["policy_version"]
    assert good < before
    wait_until(lambda: user.serving_version() == good, "the version before serves again")
    assert versions(user)[before]["state"] == "quarantined"
    wait_until(lambda: "rolled back" in user.get("/v1/learner")["waiting_for"], "it says so")
