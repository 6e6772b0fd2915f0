"""A conversation with a tool call is judged once, at its end, through the real processes."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support.e2e_client import ServeTiny, User, end, rows, wait_for_restart, wait_until
from support.tiny_models import make_obliging_policy

pytestmark = pytest.mark.timeout(600)

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "look",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"at": {"enum": ["sea"]}},
            "required": ["at"],
            "additionalProperties": False,
        },
    },
}
RESULT = "the sea is 7 degrees cold"


@pytest.fixture(scope="module")
def user(serve_tiny: ServeTiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    policy = make_obliging_policy(tmp_path_factory.mktemp("obliging") / "policy")
    environment = {
        "TUNELOOP_LEARNER_RELEASE": "off",
        "TUNELOOP_LEARNER_BATCH_SIZE": "6",
        "TUNELOOP_LEARNER_BATCH_WAIT_SECONDS": "0.5",
        "TUNELOOP_LEARNER_MIN_BATCH_SIZE": "6",
        "TUNELOOP_LEARNER_PUBLISH_EVERY_STEPS": "1",
        "TUNELOOP_LEARNER_PUBLISH_EVERY_SECONDS": "0",
        "TUNELOOP_LEARNER_LEARNING_RATE": "1e-3",
        "TUNELOOP_GENERATION_TOOL_PARSER": "hermes",
    }
    with serve_tiny("sessions", environment, "--model", str(policy)) as user:
        yield user


def converse(user: User, session: str, name: str) -> list[str]:
    """Have a conversation of three turns, the first of which calls a function; its answers' ids."""
    asked = {"session_id": session, "user": name, "tools": [TOOL], "temperature": 0.5}
    asked["metadata"] = {"speaker": name}
    messages: list[dict[str, Any]] = [{"role": "user", "content": "how cold is the sea"}]
    called = user.chat(messages=messages, tool_choice="required", max_tokens=200, **asked)
    message = called["choices"][0]["message"]
    [call] = message["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"at": "sea"}
    messages += [message, {"role": "tool", "tool_call_id": call["id"], "content": RESULT}]
    told = user.chat(messages=messages, tool_choice="none", **asked)
    messages += [told["choices"][0]["message"], {"role": "user", "content": "thanks"}]
    last = user.chat(messages=messages, tool_choice="none", **asked)
    return [answer["id"] for answer in (called, told, last)]


def judge(user: User, session: str, name: str, value: str) -> str:
    body = {"kind": "thumb", "session_id": session, "user": name, "value": value, "id": name}
    response = httpx.post(f"{user.service.url}/v1/feedback", json=body, timeout=30)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def test_every_turn_is_trained_once_and_taken_back_once(user: User) -> None:
    turns = {name: converse(user, f"talk/{name}", name) for name in ("ann", "bob")}
    judge(user, "talk/ann", "ann", "up")
    pid = end(user, "learner")
    judge(user, "talk/bob", "bob", "down")
    wait_for_restart(user.service, "learner", pid)

    wanted = sorted((f"{name}.{turn}", 1) for name in turns for turn in turns[name])
    used = (
        "SELECT sample_id, count(*) FROM uses WHERE objective = 'kto' AND epoch = 0"
        " GROUP BY sample_id ORDER BY sample_id"
    )
    wait_until(lambda: rows(user, used) == wanted, "every turn of both conversations was used")
    weights = rows(user, "SELECT weight FROM samples WHERE objective = 'kto'")
    assert [weight for (weight,) in weights] == pytest.approx([1 / 3] * 6)

    # Only what the policy wrote is learned: the function's result is in prompts alone.
    texts = rows(user, "SELECT prompt_text, completion_text FROM rollouts WHERE source = 'user'")
    assert [RESULT in prompt for prompt, _ in texts].count(True) == 4
    assert not any(RESULT in completion for _, completion in texts)

    wait_until(lambda: user.serving_version() >= 1, "a version that learned from them")
    session = user.get("/v1/sessions/talk%2Fann")
    assert [turn["completion_id"] for turn in session["turns"]] == turns["ann"]
    assert [turn["used_by_versions"] for turn in session["turns"]] == [[1]] * 3
    assert [item["session_id"] for item in session["feedback"]] == ["talk/ann"]
    assert session["policy"]["direct"] == [1]
    [item] = user.get("/v1/feedback?tag=speaker=ann")["data"]
    assert (item["id"], item["tags"]) == ("ann", {"speaker": "ann"})
    tag = user.get("/v1/lineage/tags/speaker=ann")
    assert (tag["feedback"], tag["policy"]["direct"]) == (1, [1])
    version = user.get("/v1/policies/1")
    assert {use["sample_id"] for use in version["uses"]} == {sample for sample, _ in wanted}

    gone = httpx.delete(f"{user.service.url}/v1/feedback/ann", timeout=30)
    assert gone.json()["status"] == "retracted"

    def taken_back() -> bool:
        lineage = user.get("/v1/lineage/feedback/ann")
        return {sample["state"] for sample in lineage["samples"]} == {"retracted"}

    wait_until(taken_back, "all samples of the session's thumb are retracted")
    [part] = user.get("/v1/learner")["retracted"]
    assert (part["policy_version"], part["samples"], part["share"]) == (1, 3, pytest.approx(0.5))
    assert rows(user, used) == wanted


def test_a_session_is_forgotten(user: User) -> None:
    gone = httpx.delete(f"{user.service.url}/v1/sessions/talk%2Fbob", timeout=120).json()
    assert (gone["rollouts_removed"], gone["feedback_removed"]) == (3, 1)
    assert gone["policy_versions"] == [1]
    assert rows(user, "SELECT count(*) FROM rollouts WHERE session_id = 'talk/bob'") == [(0,)]
    assert user.get("/v1/sessions/talk%2Fbob")["policy"]["direct"] == [1]
    assert user.get("/v1/feedback?tag=speaker=bob")["data"] == []
