"""What users write after answers: from the client through a judge to a version, and out of it."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from support.e2e_client import ServeTiny, User, end, rows, wait_for_restart, wait_until
from typer.testing import CliRunner

from tuneloop.cli.app import app
from tuneloop.client import Client

pytestmark = pytest.mark.timeout(600)

COMPLAINT = "no, shorter"


class ComplaintReader(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that finds complaints in what it is asked about."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = asked["messages"][-1]["content"].split("Next message:\n---\n")[1].split("\n---")[0]
        label = "complained" if text == COMPLAINT else "satisfied"
        body = {"choices": [{"message": {"role": "assistant", "content": label}}]}
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def judge() -> Iterator[str]:
    """Its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), ComplaintReader)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def user(serve_tiny: ServeTiny, judge: str) -> Iterator[User]:
    environment = {
        "TUNELOOP_LEARNER_FOLLOW_UPS": "judged",
        "TUNELOOP_LEARNER_FOLLOW_UP_JUDGE__URL": judge,
        "TUNELOOP_LEARNER_FOLLOW_UP_JUDGE__MODEL": "reader",
        "TUNELOOP_LEARNER_COMMENTS": "train",
        "TUNELOOP_LEARNER_RELEASE": "off",
        # No step on one complaint alone.
        "TUNELOOP_LEARNER_BATCH_SIZE": "2",
        "TUNELOOP_LEARNER_MIN_BATCH_SIZE": "2",
        "TUNELOOP_LEARNER_BATCH_WAIT_SECONDS": "0.5",
        "TUNELOOP_LEARNER_PUBLISH_EVERY_STEPS": "1",
        "TUNELOOP_LEARNER_PUBLISH_EVERY_SECONDS": "0",
        "TUNELOOP_LEARNER_POLICY_GRADIENT": "off",
    }
    with serve_tiny("follow-ups", environment) as user:
        yield user


def converse(user: User, name: str, says: str) -> str:
    """Ask for a story, and write something after it, in a session; the first answer's id."""
    question = {"role": "user", "content": "tell me a short story"}
    with Client(user.service.url, user=name) as client:
        told = client.chat([question], max_tokens=12, session_id=f"talk/{name}")
        messages = [
            question,
            {"role": "assistant", "content": told.text},
            {"role": "user", "content": says},
        ]
        client.chat(messages, max_tokens=12, session_id=f"talk/{name}")
    return told.id


def labels(user: User) -> dict[str, str]:
    """What is known of follow-ups, by the answer that they were written after."""
    return dict(rows(user, "SELECT completion_id, label FROM follow_ups WHERE label IS NOT NULL"))


def signals(user: User) -> dict[str, str]:
    return dict(rows(user, "SELECT completion_id, kind FROM signals"))


def test_a_complaint_reaches_a_version_once_though_the_learner_is_killed(user: User) -> None:
    ann, cyd = converse(user, "ann", COMPLAINT), converse(user, "cyd", "thanks, and the moon?")
    wait_until(lambda: labels(user) == {ann: "complained", cyd: "satisfied"}, "both were judged")
    learner = end(user, "learner")
    bob = converse(user, "bob", COMPLAINT)
    wait_for_restart(user.service, "learner", learner)

    wait_until(lambda: user.serving_version() == 1, "a version that learned from the complaints")
    found = {ann: "complained", bob: "complained", cyd: "satisfied"}
    assert labels(user) == signals(user) == found
    uses = rows(user, "SELECT objective, count(*) FROM uses WHERE epoch = 0 GROUP BY objective")
    assert uses == [("sdft", 2)]
    assert user.get("/v1/policies/1")["manifest"]["data"]["samples"] == {"sdft": 2}

    for name, versions in (("ann", [1]), ("bob", [1]), ("cyd", [])):
        session = user.get(f"/v1/sessions/talk%2F{name}")
        assert session["policy"]["direct"] == versions
        result = CliRunner().invoke(
            app, ["lineage", "user", name, "--json", "--url", user.service.url]
        )
        reached = json.loads(result.stdout)
        assert (reached["signals"], reached["feedback"]) == (1, 0)
        assert reached["policy"]["direct"] == versions


@pytest.mark.parametrize("kind", ["complained", "corrected", "satisfied"])
def test_no_client_can_say_what_a_judge_reads(user: User, kind: str) -> None:
    before = signals(user)
    sent = {"kind": kind, "completion_id": next(iter(before)), "user": "eve"}
    response = httpx.post(f"{user.service.url}/v1/signals", json={"signals": [sent]}, timeout=30)
    assert response.status_code == 400
    assert "kind" in response.json()["error"]["message"]
    assert signals(user) == before


def test_a_follow_up_goes_with_its_user_and_with_its_session(user: User) -> None:
    command = ["forget", "ann", "--yes", "--json", "--url", user.service.url]
    gone = json.loads(CliRunner().invoke(app, command).stdout)
    assert (gone["rollouts_removed"], gone["policy_versions"]) == (2, [1])
    assert sorted(labels(user).values()) == sorted(signals(user).values())
    assert sorted(labels(user).values()) == ["complained", "satisfied"]
    url = f"{user.service.url}/v1/sessions/talk%2Fbob"
    gone = httpx.delete(url, timeout=120).json()
    assert (gone["rollouts_removed"], gone["policy_versions"]) == (2, [1])
    assert list(labels(user).values()) == list(signals(user).values()) == ["satisfied"]
    # What the version learned from stays on record.
    assert user.get("/v1/sessions/talk%2Fbob")["policy"]["direct"] == [1]
