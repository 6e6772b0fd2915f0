"""Versions that pass the gate are tried on users, through the real processes."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support.e2e_client import OPEN_GATE, ServeTiny, User, wait_until

pytestmark = pytest.mark.timeout(400)

VOTERS = 400
"""Users who come, at most; a fraction of them decides."""


@pytest.fixture(scope="module")
def user(serve_tiny: ServeTiny) -> Iterator[User]:
    learner = {
        "RELEASE": "gate+canary",
        "CANARY__SHARE": "0.5",
        "CANARY__MIN_EVENTS": "5",
        # The gate is not what is tried here.
        **OPEN_GATE,
        "BATCH_SIZE": "12",
        "BATCH_WAIT_SECONDS": "60",
        "REWARD_BATCH_SIZE": "64",
        "PPO": "off",
        "PUBLISH_EVERY_STEPS": "1",
        "PUBLISH_EVERY_SECONDS": "0",
        "LEARNING_RATE": "1e-3",
    }
    environment = {f"TUNELOOP_LEARNER_{name}": value for name, value in learner.items()}
    with serve_tiny("canary", environment) as user:
        yield user


def serving(user: User) -> dict[str, Any]:
    return dict(user.get("/v1/policies")["serving"])


def canary_after(user: User, version: int) -> int:
    """The next canary that its share of the users gets."""

    def found() -> bool:
        canary = serving(user)["canary"]
        return bool(canary and canary["loaded"] and canary["policy_version"] > version)

    wait_until(found, f"a canary after version {version}")
    return int(serving(user)["canary"]["policy_version"])


def vote(user: User, canary: int, *, liked: bool) -> set[int]:
    """New users come until the canary's fate is decided, and find it better or worse.

    Returns the versions that answered. No request may fail.
    """
    answered = set()
    for number in range(VOTERS):
        name = f"voter-{canary}-{number}"
        answer = user.chat(f"story {number}", user=name, max_tokens=4)
        answered.add(answer["policy_version"])
        feedback = httpx.post(
            f"{user.service.url}/v1/feedback",
            json={
                "kind": "thumb",
                "completion_id": answer["id"],
                "value": "up" if (answer["policy_version"] == canary) == liked else "down",
                "user": name,
            },
            timeout=30,
        )
        assert feedback.status_code == 202, feedback.text
        now = serving(user)["canary"]
        if now is None or now["policy_version"] != canary:
            return answered
    raise AssertionError(f"{VOTERS} users could not decide on version {canary}")


def verdict(user: User, version: int) -> dict[str, Any]:
    """What the canary's trial came to."""
    decisions = user.get(f"/v1/policies/{version}")["decisions"]
    return next(d for d in reversed(decisions) if d["kind"] == "canary")


def state(user: User, version: int) -> str:
    return str(user.get(f"/v1/policies/{version}")["state"])


@pytest.mark.slow
def test_a_version_that_users_dislike_is_rolled_back_and_one_they_like_is_promoted(
    user: User,
) -> None:
    user.chat_and_press(12)
    first = canary_after(user, 0)
    assert vote(user, first, liked=False) == {0, first}
    wait_until(lambda: state(user, first) == "quarantined", "the version is quarantined")
    decided = verdict(user, first)
    assert decided["outcome"] == "roll_back"
    assert decided["numbers"]["thumbs"]["canary_mean"] == 0
    assert decided["numbers"]["thumbs"]["stable_mean"] == 1
    assert serving(user)["policy_version"] == 0

    second = canary_after(user, first)
    assert vote(user, second, liked=True) <= {0, second}
    wait_until(lambda: serving(user)["policy_version"] >= second, "the version serves everybody")
    assert verdict(user, second)["outcome"] == "promote"
    processes = user.service.run_state()["processes"]
    assert {process["restarts"] for process in processes.values()} == {0}
