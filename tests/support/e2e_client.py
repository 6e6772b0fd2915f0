"""A user of the running service, and a reader of its ledger, for the end-to-end tests."""

import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tuneloop.supervisor.child import ServiceChild

SECONDS = 120
"""Bound of every wait; a healthy machine needs a fraction of it."""
UNREACHED_SECONDS = 20
"""How long the learner may stay unreachable for a client that asks again."""
OPEN_GATE = {
    "GATE__ABILITIES": "false",
    "GATE__PROMPTS": "2",
    "GATE__MAX_TOKENS": "8",
    "GATE__REWARD_MARGIN": "1000",
    "GATE__MAX_CHANGE": "1000",
    "GATE__MAX_KL": "1000",
    "GATE__MIN_LENGTH_RATIO": "0",
    "GATE__MAX_LENGTH_RATIO": "1000",
    "GATE__MAX_REPETITION_RISE": "1",
    "GATE__MAX_BROKEN_RISE": "1",
}
"""Settings of the learner with which every version of a random model passes."""


@dataclass
class User:
    """Chats, presses thumbs, and remembers which thumbs were acknowledged."""

    service: ServiceChild
    acknowledged: list[str] = field(default_factory=list)

    def chat(self, content: str = "tell me a short story", **body: Any) -> dict[str, Any]:
        request = {
            "model": "tuneloop",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 12,
            "temperature": 1.0,
            **body,
        }
        response = httpx.post(f"{self.service.url}/v1/chat/completions", json=request, timeout=60)
        assert response.status_code == 200, response.text
        assert response.headers["x-policy-version"] == str(response.json()["policy_version"])
        return dict(response.json())

    def press(self, completion_id: str, *, up: bool) -> httpx.Response:
        response = httpx.post(
            f"{self.service.url}/v1/feedback",
            json={
                "kind": "thumb",
                "completion_id": completion_id,
                "value": "up" if up else "down",
                "user": f"user-{len(self.acknowledged)}",
            },
            timeout=30,
        )
        if response.status_code == 202:
            self.acknowledged.append(response.json()["id"])
        return response

    def chat_and_press(self, count: int) -> None:
        """`count` chats with a thumb each, every one acknowledged."""
        for number in range(count):
            completion_id = self.chat(f"story {number} of {len(self.acknowledged)}")["id"]
            response = self.press(completion_id, up=number % 2 == 0)
            assert response.status_code == 202, response.text

    def get(self, path: str) -> dict[str, Any]:
        """Ask again while the learner cannot be reached: it starts last, and slowly under load."""
        deadline = time.monotonic() + UNREACHED_SECONDS
        while True:
            response = httpx.get(f"{self.service.url}{path}", timeout=30)
            if response.status_code != 503 or time.monotonic() > deadline:
                break
            time.sleep(float(response.headers.get("retry-after", 1)))
        assert response.status_code == 200, response.text
        return dict(response.json())

    def serving_version(self) -> int:
        return int(self.get("/v1/policies")["policy_version"])


ServeTiny = Callable[..., AbstractContextManager[User]]
"""See the fixture `serve_tiny`."""


def wait_until(condition: Callable[[], bool], what: str, pause: float = 0.2) -> None:
    """Poll until `condition` holds; an error of the connection counts as not yet."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except (httpx.HTTPError, AssertionError, sqlite3.OperationalError, KeyError):
            pass
        time.sleep(pause)
    raise AssertionError(f"not within {SECONDS} s: {what}")


def kill(service: ServiceChild, process: str, number: int = signal.SIGKILL) -> int:
    """Send a signal to one process of the service; its process id."""
    pid = int(service.run_state()["processes"][process]["pid"])
    os.kill(pid, number)
    return pid


def end(user: User, process: str) -> int:
    """kill -9, and wait for the end: what NATS still sends to a process that dies, it repeats late.

    Return the process's id.
    """
    pid = kill(user.service, process)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), f"the end of {process}")
    return pid


def wait_for_restart(service: ServiceChild, process: str, old_pid: int) -> None:
    """Until the supervisor has a new, ready process in its place."""

    def restarted() -> bool:
        state = service.run_state()["processes"][process]
        return state["pid"] not in (old_pid, None) and bool(state["ready"])

    wait_until(restarted, f"{process} restarted")


def rows(user: User, query: str) -> list[Any]:
    """What the ledger answers to a query."""
    path: Path = user.service.data_dir / "learner" / "ledger.db"
    ledger = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return ledger.execute(query).fetchall()
    finally:
        ledger.close()


def kto_uses(data_dir: Path) -> dict[str, int]:
    """How often each thumb was used for the policy, by feedback id, from the ledger."""
    ledger = sqlite3.connect(f"file:{data_dir / 'learner' / 'ledger.db'}?mode=ro", uri=True)
    try:
        rows = ledger.execute(
            "SELECT sample_id, count(*) FROM uses"
            " WHERE objective = 'kto' AND epoch = 0 GROUP BY sample_id"
        )
        return dict(rows.fetchall())
    finally:
        ledger.close()


def wait_until_each_thumb_is_used_once(user: User) -> None:
    """Until the ledger shows every acknowledged thumb in exactly one use, and no other."""
    data_dir = user.service.data_dir

    def all_used() -> bool:
        return set(kto_uses(data_dir)) >= set(user.acknowledged)

    wait_until(all_used, "every acknowledged thumb is used")
    assert kto_uses(data_dir) == dict.fromkeys(user.acknowledged, 1)


def read_stream(client: httpx.Client, url: str, prompt: str) -> list[dict[str, Any]]:
    """The chunks of one streamed chat; raises when it does not end with [DONE]."""
    body = {
        "model": "tuneloop",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": 48,
        "stream": True,
    }
    chunks = []
    with client.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=120) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line == "data: [DONE]":
                return chunks
            if line.startswith("data: "):
                chunks.append(json.loads(line[6:]))
    raise AssertionError("the stream was cut")
