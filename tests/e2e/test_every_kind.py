"""Every kind of feedback, and signals: from the client to a version, and back out of it.

Processes are killed in between. Signals wait until their user has been silent for five minutes, so
the learner's clock is set ahead.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos.clocks import Clocks, build_clocks
from support.e2e_client import ServeTiny, User, end, rows, wait_for_restart, wait_until
from typer.testing import CliRunner

from tuneloop.cli.app import app
from tuneloop.client import Client, Completion, Receipt

pytestmark = pytest.mark.timeout(600)

OBJECTIVES: dict[str, set[str]] = {
    "thumb": {"kto", "reward_model"},
    "rating": {"reward_model"},
    "comparison": {"dpo", "reward_model"},
    "ranking": {"dpo", "reward_model"},
    "demonstration": {"sft", "dpo", "reward_model"},
    "comment": {"sdft"},
    "metric": set(),
}
OF_POLICY = {kind: objectives - {"reward_model"} for kind, objectives in OBJECTIVES.items()}
SAMPLES = sum(map(len, OF_POLICY.values()))
"""What the policy learns from, if a user gives one feedback of each kind."""
SILENCE = 400
"""Seconds."""


@pytest.fixture(scope="module")
def clocks(tmp_path_factory: pytest.TempPathFactory) -> Clocks | None:
    return build_clocks(tmp_path_factory.mktemp("clocks") / "ahead")


@pytest.fixture(scope="module")
def user(serve_tiny: ServeTiny, clocks: Clocks | None) -> Iterator[User]:
    environment = {
        "TUNELOOP_LEARNER_COMMENTS": "train",
        "TUNELOOP_LEARNER_SIGNALS": "reward_model",
        "TUNELOOP_LEARNER_RELEASE": "off",
        # No step on what one user alone has said, nor because of a wait before the clock is set.
        "TUNELOOP_LEARNER_BATCH_SIZE": str(2 * SAMPLES),
        "TUNELOOP_LEARNER_MIN_BATCH_SIZE": str(2 * SAMPLES),
        "TUNELOOP_LEARNER_REWARD_BATCH_SIZE": "64",
        "TUNELOOP_LEARNER_BATCH_WAIT_SECONDS": str(SILENCE),
        "TUNELOOP_LEARNER_PUBLISH_EVERY_STEPS": "1",
        "TUNELOOP_LEARNER_PUBLISH_EVERY_SECONDS": "0",
        "TUNELOOP_LEARNER_POLICY_GRADIENT": "off",
    }
    with serve_tiny("kinds", environment | (clocks.environment() if clocks else {})) as user:
        yield user


@pytest.fixture(scope="module")
def given(user: User) -> dict[str, dict[str, Receipt]]:
    """What Ann and Bob said: the learner was killed once it knew of Ann's, and Bob spoke then."""
    said = {"ann": judge(user, "ann")}
    known = {"feedback": len(OBJECTIVES), "rollouts": 2 * len(OBJECTIVES), "signals": 0}
    wait_until(lambda: recorded(user) == known, "the ledger has Ann's")
    pid = end(user, "learner")
    said["bob"] = judge(user, "bob")
    wait_for_restart(user.service, "learner", pid)
    return said


@pytest.fixture(scope="module")
def behaved(user: User, given: dict[str, dict[str, Receipt]]) -> None:
    """Others send signals and Ann takes back all that she said, while the learner is down.

    The gateway is killed once it has acknowledged that.
    """
    learner = end(user, "learner")
    behave(user)
    with Client(user.service.url, user="ann") as client:
        for receipt in given["ann"].values():
            assert client.retract(receipt.receipt).status == "retracted"
    gateway = end(user, "gateway")
    wait_for_restart(user.service, "gateway", gateway)
    wait_for_restart(user.service, "learner", learner)


def judge(user: User, name: str) -> dict[str, Receipt]:
    """Give one feedback of each kind, each on an answer of its own."""
    with Client(user.service.url, user=name) as client:

        def ask() -> Completion:
            return client.chat("tell me a short story", n=2, max_tokens=12)

        return {
            "thumb": ask().thumb("up"),
            "rating": ask().rate(0.5),
            "comparison": client.compare(*ask().choices),
            "ranking": client.rank(ask().choices),
            "demonstration": ask().edit("a river and the sea"),
            "comment": ask().comment("too long, no tables"),
            "metric": ask().measure("task_solved", name == "ann"),
        }


def behave(user: User) -> None:
    """Raters copy what they like and leave the rest; Cyd copies three answers and says nothing."""
    for rater in range(6):
        with Client(user.service.url, user=f"rater-{rater}") as client:
            for number in range(5):
                answer = client.chat(f"story {number}", max_tokens=8)
                likes = number % 2 == 0
                answer.signal("copied" if likes else "abandoned")
                answer.thumb("up" if likes else "down")
    with Client(user.service.url, user="cyd") as client:
        for number in range(3):
            answer = client.chat(f"story {number}", max_tokens=8)
            for _ in range(2):
                assert answer.signal("copied").status == "accepted"


def recorded(user: User) -> dict[str, int]:
    """How much the ledger has of each."""
    tables = ("feedback", "rollouts", "signals")
    return {table: rows(user, f"SELECT count(*) FROM {table}")[0][0] for table in tables}


def lineage(user: User, receipt: Receipt) -> dict[str, Any]:
    return user.get(f"/v1/lineage/feedback/{receipt.id}")


def states(user: User, receipt: Receipt) -> dict[str, str]:
    """The state of each sample of feedback, by its objective."""
    return {sample["objective"]: sample["state"] for sample in lineage(user, receipt)["samples"]}


def metric(user: User) -> tuple[int, float, float, float]:
    """The metric of version 0: how often it was measured, and the mean with its interval."""
    with Client(user.service.url) as client:
        traffic = client.policy(0).traffic
    assert traffic is not None
    [found] = traffic["metrics"]
    assert (found["name"], found["type"]) == ("task_solved", "boolean")
    assert found["low"] is not None
    assert found["high"] is not None
    return found["count"], found["mean"], found["low"], found["high"]


def run(user: User, *command: str) -> Any:
    """What a command prints with --json."""
    result = CliRunner().invoke(app, [*command, "--json", "--url", user.service.url])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_every_kind_of_feedback_reaches_a_version_once(
    user: User, given: dict[str, dict[str, Receipt]]
) -> None:
    wait_until(lambda: user.serving_version() == 1, "a version that learned from them")
    used = sorted(
        (receipt.id, objective)
        for receipts in given.values()
        for kind, receipt in receipts.items()
        for objective in OF_POLICY[kind]
    )
    version = user.get("/v1/policies/1")
    assert sorted((use["feedback_id"], use["objective"]) for use in version["uses"]) == used
    assert version["manifest"]["data"]["samples"] == {"kto": 2, "dpo": 6, "sft": 2, "sdft": 2}
    with Client(user.service.url) as client:
        for receipts in given.values():
            for kind, receipt in receipts.items():
                versions = [1] if OF_POLICY[kind] else []
                assert lineage(user, receipt)["policy"]["direct"] == versions
                assert states(user, receipt) == {
                    objective: "used" if objective in OF_POLICY[kind] else "open"
                    for objective in OBJECTIVES[kind]
                }
                reach = client.get_receipt(receipt)
                assert (reach.policy_versions, reach.is_serving) == (versions, bool(versions))


def test_a_metric_is_shown_by_version(user: User, given: dict[str, dict[str, Receipt]]) -> None:
    wait_until(lambda: metric(user)[0] == 2, "both measured")
    # Wilson's interval of one of two.
    half = 1.96 / (1 + 1.96**2 / 2) * math.sqrt(0.25 / 2 + 1.96**2 / 16)
    assert metric(user) == pytest.approx((2, 0.5, 0.5 - half, 0.5 + half), abs=1e-4)


@pytest.mark.usefixtures("behaved")
def test_every_kind_of_feedback_is_taken_back(
    user: User, given: dict[str, dict[str, Receipt]]
) -> None:
    def taken_back() -> bool:
        found = [lineage(user, receipt) for receipt in given["ann"].values()]
        return {item["status"] for item in found} == {"retracted"}

    wait_until(taken_back, "all that Ann said is retracted")
    for kind, receipt in given["ann"].items():
        assert states(user, receipt) == dict.fromkeys(OBJECTIVES[kind], "retracted")
    [part] = user.get("/v1/learner")["retracted"]
    assert (part["policy_version"], part["samples"], part["share"]) == (1, SAMPLES, 0.5)
    wait_until(lambda: metric(user)[:2] == (1, 0.0), "Bob's measurement alone")
    # What the version learned stays on record, and what Bob said stays with it.
    with Client(user.service.url) as client:
        reach = client.get_receipt(given["ann"]["comment"])
    assert (reach.status, reach.policy_versions) == ("retracted", [1])
    assert states(user, given["bob"]["comment"]) == {"sdft": "used"}
    assert len(user.get("/v1/policies/1")["uses"]) == 2 * SAMPLES


def manifest(user: User, version: int) -> dict[str, Any]:
    """The manifest of a version of the reward model, as it is stored."""
    folder: Path = user.service.data_dir / "weights" / "tuneloop-reward-model"
    [path] = folder.glob(f"*{version}/manifest.json")
    return dict(json.loads(path.read_text()))


@pytest.mark.usefixtures("behaved")
def test_signals_reach_the_reward_model_and_go_with_their_user(
    user: User, given: dict[str, dict[str, Receipt]], clocks: Clocks | None
) -> None:
    if clocks is None:
        pytest.skip("setting a clock needs a C compiler and glibc")
    known = {"feedback": 44, "rollouts": 61, "signals": 33}
    wait_until(lambda: recorded(user) == known, "every acknowledged signal, once")
    # The policy learns from the thumbs, a full batch at a time, and from nothing else.
    wait_until(lambda: user.serving_version() == 3, "two versions more")
    assert user.get("/v1/policies/3")["manifest"]["data"]["samples"] == {"kto": 12}
    report = run(user, "signals")
    assert {kind["kind"]: kind["used"] for kind in report["kinds"]}["copied"]
    assert (report["rated"], report["learned"]) == (30, 0)

    # All have been silent for long enough once the learner is back.
    clocks.set("learner", SILENCE)
    learner = end(user, "learner")
    wait_for_restart(user.service, "learner", learner)
    wait_until(lambda: run(user, "lineage", "user", "cyd")["reward_model"]["direct"] == [1], "used")
    hers = run(user, "lineage", "user", "cyd")
    assert (hers["signals"], hers["feedback"], hers["policy"]["direct"]) == (3, 0, [])
    assert run(user, "signals")["learned"] == 3
    # 30 thumbs, and what Bob said: a thumb, a rating, a comparison, a ranking and an edit.
    assert manifest(user, 1)["data"]["samples"] == {"reward_model": 35, "signals": 3}
    for kind, objectives in OBJECTIVES.items():
        reached = [1] if "reward_model" in objectives else []
        assert lineage(user, given["bob"][kind])["reward_model"]["direct"] == reached
        assert lineage(user, given["ann"][kind])["reward_model"]["direct"] == []

    gone = run(user, "forget", "cyd", "--yes")
    assert (gone["reward_model_versions"], gone["policy_versions"]) == ([1], [])
    assert gone["events_purged"] >= 6
    hers = run(user, "lineage", "user", "cyd")
    assert (hers["signals"], hers["rollouts"]) == (0, 0)
    assert [record["reward_model_versions"] for record in hers["forgotten"]] == [[1]]
    assert run(user, "signals")["learned"] == 0
    assert recorded(user) == known | {"rollouts": 58, "signals": 30}
