"""A forgotten user's texts are in no file of the service: every byte of its folder is searched."""

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.e2e_client import ServeTiny, User, kill, wait_until
from support.stored_bytes import forms_of, found
from tokenizers import Tokenizer
from typer.testing import CliRunner

from tuneloop.bus import subjects
from tuneloop.bus.jetstream import JetStreamBus
from tuneloop.cli.app import app

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SECRET = "Geheimnis-4711-žluť"
KEPT = "Geschichte-1234-kůň"
ANN = f"ann {SECRET}"


@pytest.fixture(scope="module")
def user(serve_tiny: ServeTiny) -> Iterator[User]:
    environment = {
        "TUNELOOP_LEARNER_BATCH_SIZE": "2",
        "TUNELOOP_LEARNER_BATCH_WAIT_SECONDS": "0.5",
        "TUNELOOP_LEARNER_PUBLISH_EVERY_STEPS": "1",
        "TUNELOOP_LEARNER_PUBLISH_EVERY_SECONDS": "0",
        "TUNELOOP_LEARNER_RELEASE": "off",
        "TUNELOOP_LOG_LEVEL": "DEBUG",
    }
    with serve_tiny("forgotten", environment) as user:
        yield user


def judge(user: User, who: str, **body: Any) -> None:
    answer = httpx.post(f"{user.service.url}/v1/feedback", json={"user": who, **body}, timeout=30)
    assert answer.status_code == 202, answer.text


def write_everywhere(user: User, who: str, text: str) -> str:
    """Write a text into every field that a user can fill; return one of their answers."""
    messages = [
        {"role": "system", "content": f"You know {text} by heart."},
        {"role": "user", "content": f"Tell me of {text}.", "name": "n"},
    ]
    extra = {"user": who, "stop": [text], "metadata": {"note": text}}
    answer = user.chat(messages=messages, n=2, **extra)
    first, second = (choice["completion_id"] for choice in answer["choices"])
    body = {"model": "tuneloop", "prompt": f"About {text}", "max_tokens": 8, "user": who}
    assert httpx.post(f"{user.service.url}/v1/completions", json=body, timeout=60).is_success
    note = {"metadata": {"note": text}}
    judge(user, who, kind="thumb", completion_id=first, value="up", **note)
    judge(user, who, kind="comparison", chosen=first, rejected=[second], **note)
    judge(user, who, kind="comment", completion_id=first, text=f"It lacks {text}.")
    judge(user, who, kind="demonstration", completion_id=second, text=f"Better: {text}.")
    # Refused, and with a name and a model that nobody has: what an error or a log may quote.
    refused = {"kind": "comment", "completion_id": text, "text": text, "user": who}
    assert httpx.post(f"{user.service.url}/v1/feedback", json=refused).is_client_error
    unknown = {"model": text, "messages": messages, "user": who}
    assert httpx.post(f"{user.service.url}/v1/chat/completions", json=unknown).is_client_error
    return str(first)


async def publish_broken(user: User, user_hash: str, text: str) -> None:
    """Publish what nobody can read, so that it becomes dead letters, and what nobody takes."""
    bus = await JetStreamBus.connect(user.service.run_state()["nats_url"], name="test")
    data = b"\xff\xff" + text.encode()
    places = {
        "r": subjects.rollout_generated("tuneloop", user_hash),
        "s": subjects.rollout_scored("tuneloop", user_hash),
        "f": subjects.feedback("tuneloop", "comment", user_hash, f"{user_hash}-f"),
        "x": subjects.feedback_retracted("tuneloop", user_hash, f"{user_hash}-x"),
        "elsewhere": subjects.rollout_generated("another", user_hash),
    }
    for name, subject in places.items():
        await bus.publish(subject, data, event_id=f"broken-{user_hash}-{name}")
    # The first is a dead letter of two, of the reward service and of the learner.
    letters, sequence = 0, 0
    async with asyncio.timeout(60):
        while letters < 5:
            letter = await bus.first_after(f"tuneloop.dead.*.{user_hash}", sequence)
            if letter is None:
                await asyncio.sleep(0.1)
            else:
                letters, sequence = letters + 1, letter.sequence
    await bus.close()


def hashes(user: User) -> list[str]:
    """The hashes of the users of whom the ledger has answers, in the order they came."""
    path = user.service.data_dir / "learner" / "ledger.db"
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as ledger:
        query = "SELECT user_hash FROM rollouts GROUP BY user_hash ORDER BY min(finished_time)"
        return [row[0] for row in ledger.execute(query)]


def test_every_byte_of_the_folder(user: User, tiny_policy: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_policy / "tokenizer.json"))
    folder = user.service.data_dir
    secret, kept = forms_of(SECRET, tokenizer), forms_of(KEPT, tokenizer)
    of_ann = write_everywhere(user, ANN, SECRET)
    wait_until(lambda: len(hashes(user)) == 1, "ann's answers in the ledger")
    of_bob = write_everywhere(user, "bob", KEPT)
    # What one says of the other's answer belongs to both.
    judge(user, "bob", kind="comment", completion_id=of_ann, text=f"{SECRET}? Never.")
    judge(user, ANN, kind="comment", completion_id=of_bob, text=f"{SECRET}! Always.")
    wait_until(lambda: len(hashes(user)) == 2, "bob's answers in the ledger")
    ann, bob = hashes(user)
    for user_hash, text in ((ann, SECRET), (bob, KEPT)):
        asyncio.run(publish_broken(user, user_hash, text))
    wait_until(lambda: user.serving_version() >= 1, "a version that learned from them")
    before = found(folder, secret)
    for place in ("ROLLOUTS", "FEEDBACK", "DEAD_LETTERS", "ledger.db"):
        assert any(place in file for file in before), before
    assert {place.partition(": ")[2] for place in before} >= {"UTF-8", "tokens"}
    command = ["forget", ANN, "--yes", "--json", "--url", user.service.url]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["rollouts_removed"] == 3
    assert answer["events_purged"] >= 16
    assert answer["events_left_on_disk"] == 0
    assert answer["policy_versions"]
    assert found(folder, secret) == set()
    # An orderly stop writes what is in memory, and the start reads it again.
    kill(user.service, "nats")
    user.service.stop()
    assert found(folder, secret) == set()
    places = found(folder, kept)
    for place in ("ROLLOUTS", "FEEDBACK", "DEAD_LETTERS", "ledger.db"):
        assert any(place in file for file in places), places
