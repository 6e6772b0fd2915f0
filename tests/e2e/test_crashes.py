"""kill -9, a frozen event bus, a restart: all comes back, no thumb is lost or used twice."""

import signal
import threading
from collections.abc import Iterator

import httpx
import pytest
from support.e2e_client import (
    ServeTiny,
    User,
    kill,
    kto_uses,
    wait_for_restart,
    wait_until,
    wait_until_each_thumb_is_used_once,
)

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def user(serve_tiny: ServeTiny) -> Iterator[User]:
    environment = {
        # Versions are served as they come; the gate has a test of its own.
        "TUNELOOP_LEARNER_RELEASE": "off",
        "TUNELOOP_LEARNER_BATCH_SIZE": "4",
        "TUNELOOP_LEARNER_BATCH_WAIT_SECONDS": "0.5",
        "TUNELOOP_LEARNER_PUBLISH_EVERY_STEPS": "2",
        "TUNELOOP_LEARNER_PUBLISH_EVERY_SECONDS": "1",
    }
    with serve_tiny("crashes", environment) as user:
        yield user


def learner_state(user: User) -> str:
    return str(user.get("/v1/learner")["state"])


def at_work(user: User, used_before: int) -> bool:
    """Whether a step is under way; one of a tiny model may be over before it is seen."""
    return len(kto_uses(user.service.data_dir)) > used_before or learner_state(user) == "stepping"


def settled(user: User) -> bool:
    """Whether the learner waits, and its newest version holds its newest step."""
    status = user.get("/v1/learner")
    newest = user.get(f"/v1/policies/{status['policy_version']}")["manifest"]["data"]["last_step"]
    return status["state"] == "waiting" and newest == status["step"]


def test_learner_killed_in_the_middle_of_steps(user: User) -> None:
    wait_until(lambda: learner_state(user) == "waiting", "the learner is up")
    for _ in range(3):
        answers = [user.chat(f"story {number}")["id"] for number in range(8)]
        pressing = threading.Thread(
            target=lambda ids=answers: [user.press(i, up=n % 2 == 0) for n, i in enumerate(ids)]
        )
        before = len(kto_uses(user.service.data_dir))
        pressing.start()
        wait_until(lambda before=before: at_work(user, before), "steps began", pause=0.0)
        old_pid = kill(user.service, "learner")
        pressing.join()
        assert user.chat()["choices"][0]["finish_reason"] in ("stop", "length")
        wait_for_restart(user.service, "learner", old_pid)
    assert len(user.acknowledged) == 24
    wait_until_each_thumb_is_used_once(user)


def test_generation_killed(user: User) -> None:
    wait_until(lambda: user.serving_version() >= 1, "a version beyond 0")
    wait_until(lambda: learner_state(user) == "waiting", "nothing left to learn")
    version = user.serving_version()
    old_pid = kill(user.service, "generation")
    ready = f"{user.service.url}/readyz"
    wait_until(lambda: httpx.get(ready).status_code == 503, "/readyz says so")
    wait_for_restart(user.service, "generation", old_pid)
    wait_until(lambda: httpx.get(ready).status_code == 200, "/readyz is well again")
    assert user.chat()["policy_version"] >= version
    user.chat_and_press(4)
    wait_until_each_thumb_is_used_once(user)


def test_nats_server_killed(user: User) -> None:
    user.chat_and_press(4)
    old_pid = kill(user.service, "nats")
    assert user.chat()["choices"]
    wait_for_restart(user.service, "nats", old_pid)
    completion_id = user.chat()["id"]
    wait_until(lambda: user.press(completion_id, up=True).status_code == 202, "feedback again")
    wait_until_each_thumb_is_used_once(user)


def test_answers_flow_and_feedback_says_503_while_the_bus_is_frozen(user: User) -> None:
    before = user.chat()["id"]
    kill(user.service, "nats", signal.SIGSTOP)
    try:
        during = user.chat()["id"]
        response = user.press(during, up=True)
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["code"] == "unavailable"
    finally:
        kill(user.service, "nats", signal.SIGCONT)
    wait_until(lambda: user.press(before, up=True).status_code == 202, "feedback again")
    wait_until_each_acknowledged_thumb_is_used(user)


def wait_until_each_acknowledged_thumb_is_used(user: User) -> None:
    """As its sibling, but a thumb answered 503 may have been stored all the same."""

    def all_used() -> bool:
        return set(kto_uses(user.service.data_dir)) >= set(user.acknowledged)

    wait_until(all_used, "every acknowledged thumb is used")
    uses = kto_uses(user.service.data_dir)
    assert all(uses[feedback_id] == 1 for feedback_id in user.acknowledged)


@pytest.mark.slow
def test_everything_survives_a_restart(user: User) -> None:
    wait_until(lambda: settled(user), "nothing left to learn")
    version = user.serving_version()
    uses = kto_uses(user.service.data_dir)
    versions = [v["policy_version"] for v in user.get("/v1/policies")["data"]]
    assert user.service.stop() == 0
    user.service.start()
    user.service.wait_until_ready()
    assert user.chat()["policy_version"] >= version
    wait_until(lambda: learner_state(user) == "waiting", "the learner is up")
    # A thumb answered 503 may have been stored all the same and be learned only now.
    listed = [v["policy_version"] for v in user.get("/v1/policies")["data"]]
    assert listed[-len(versions) :] == versions
    assert kto_uses(user.service.data_dir).items() >= uses.items()
    user.chat_and_press(4)
    wait_until(lambda: user.serving_version() > version, "it goes on learning")
