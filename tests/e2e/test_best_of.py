"""The best of several by a reward model that learned from thumbs, through the real processes."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support.e2e_client import ServeTiny, User, kill, rows, wait_for_restart, wait_until

pytestmark = pytest.mark.timeout(600)

BEST = {"metadata": {"best_of": "4"}, "user": "ann", "session_id": "talk"}


@pytest.fixture(scope="module")
def user(serve_tiny: ServeTiny) -> Iterator[User]:
    environment = {
        "TUNELOOP_LEARNER_RELEASE": "off",
        "TUNELOOP_LEARNER_POLICY_GRADIENT": "off",
        # The reward model learns, the policy does not.
        "TUNELOOP_LEARNER_BATCH_SIZE": "64",
        "TUNELOOP_LEARNER_MIN_BATCH_SIZE": "64",
        "TUNELOOP_LEARNER_REWARD_BATCH_SIZE": "8",
        "TUNELOOP_LEARNER_PUBLISH_EVERY_STEPS": "1",
        "TUNELOOP_LEARNER_PUBLISH_EVERY_SECONDS": "0",
        "TUNELOOP_REWARD_MIN_LABELS": "8",
        "TUNELOOP_REWARD_MIN_ACCURACY": "0",
    }
    with serve_tiny("best-of", environment) as user:
        yield user


def sources(user: User, group: str) -> dict[str, str]:
    found = rows(user, f"SELECT completion_id, source FROM rollouts WHERE group_id = '{group}'")
    return dict(found)


def scores_of(user: User, answer: dict[str, Any]) -> list[float]:
    best = answer["best_of"]
    assert best["n"] == len(best["scores"]) == 4
    assert list(best["scores"])[best["chosen"]] == answer["id"]
    return list(best["scores"].values())


def test_nothing_is_chosen_before_the_reward_model_has_learned(user: User) -> None:
    # The reward service starts after generation; chats do not wait for it.
    first = user.chat(**BEST)
    assert (first["best_of"]["chosen_by"], first["best_of"]["chosen"]) == ("none", 0)
    assert first["choices"][0]["message"]["content"]

    def scored() -> bool:
        best = user.chat(**BEST)["best_of"]
        assert (best["chosen_by"], best["chosen"]) == ("none", 0)
        return bool(best["reason"] == "no scorer is informative yet")

    wait_until(scored, "the reward service has started")


def test_what_the_reward_model_learned_chooses_the_answer(user: User) -> None:
    user.chat_and_press(8)

    def learned() -> bool:
        return bool(user.chat(metadata={"best_of": 2})["best_of"]["chosen_by"] == "reward")

    wait_until(learned, "the reward model learned from the thumbs")
    question = "how cold is the sea"
    answer = user.chat(question, **BEST | {"session_id": "sea"})
    scores = scores_of(user, answer)
    assert scores[answer["best_of"]["chosen"]] == max(scores)
    assert answer["usage"]["completion_tokens"] > 12

    said = answer["choices"][0]["message"]["content"]
    body = {"messages": [{"role": "user", "content": question}], "completions": [said]}
    again = httpx.post(f"{user.service.url}/v1/score", json=body, timeout=30).json()
    assert again["scores"] == pytest.approx([max(scores)], abs=1e-4)

    group = answer["id"].partition(".")[0]
    expected = dict.fromkeys(answer["best_of"]["scores"], "candidate") | {answer["id"]: "user"}
    wait_until(lambda: sources(user, group) == expected, "all candidates are in the ledger")


def test_the_answer_alone_is_judged_with_its_session(user: User) -> None:
    session = user.get("/v1/sessions/sea")
    (turn,) = session["turns"]
    body = {"kind": "thumb", "session_id": "sea", "user": "ann", "value": "up", "id": "of-sea"}
    assert httpx.post(f"{user.service.url}/v1/feedback", json=body, timeout=30).status_code == 202
    query = "SELECT DISTINCT completion_id, weight FROM samples WHERE feedback_id = 'of-sea'"
    wait_until(lambda: rows(user, query) == [(turn["completion_id"], 1.0)], "the thumb is recorded")
    gone = httpx.delete(f"{user.service.url}/v1/sessions/sea", timeout=60).json()
    assert gone["rollouts_removed"] == 4
    assert sources(user, turn["completion_id"].partition(".")[0]) == {}


def test_without_the_reward_service_the_first_candidate_is_the_answer(user: User) -> None:
    pid = kill(user.service, "reward")
    answer = user.chat(**BEST)
    assert (answer["best_of"]["chosen_by"], answer["best_of"]["chosen"]) == ("none", 0)
    assert answer["best_of"]["reason"].startswith("the reward service did not score them")
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")
    wait_for_restart(user.service, "reward", pid)

    def chosen() -> bool:
        return bool(user.chat(**BEST)["best_of"]["chosen_by"] == "reward")

    wait_until(chosen, "the reward service is back with what it had learned")
