"""Personal data that is redacted is in no file of the service: every byte of its folder is read."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.e2e_client import ServeTiny, User, wait_until
from support.stored_bytes import forms_of, found
from tokenizers import Tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MAIL = "grete.mustermann-4711@beispiel-firma.example"
CARD = "4012888888881881"
PERSONAL = {
    "mail": MAIL,
    "card": CARD,
    "account": "DE89370400440532013000",
    "phone": "+49 30 901820-4711",
}
PLAIN = "Geschichte-1234-kůň"
"""Kept: what shows that the search finds what is there."""
TEXT = f"{PLAIN}: write to {MAIL} or {PERSONAL['phone']}, pay {CARD} to {PERSONAL['account']}."
USER = f"grete {MAIL}"
"""Only its hash is kept."""


@pytest.fixture(scope="module")
def user(serve_tiny: ServeTiny) -> Iterator[User]:
    environment = {
        "TUNELOOP_REDACT_ENTITIES": '["EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE"]',
        "TUNELOOP_LEARNER_BATCH_SIZE": "2",
        "TUNELOOP_LEARNER_BATCH_WAIT_SECONDS": "0.5",
        "TUNELOOP_LEARNER_RELEASE": "off",
        "TUNELOOP_LEARNER_COMMENTS": "train",
        "TUNELOOP_LOG_LEVEL": "DEBUG",
    }
    with serve_tiny("redacted", environment) as user:
        yield user


def post(user: User, path: str, status: int = 200, /, **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{user.service.url}/v1/{path}", json=body, timeout=60)
    assert answer.status_code == status, answer.text
    assert MAIL not in answer.text
    return dict(answer.json())


def ask_everything(user: User) -> list[str]:
    """Write the text into the requests of every API; return the ids of the answers.

    The template of the tiny model has no place for tools.
    """
    common = {"model": "tuneloop", "metadata": {"note": TEXT}}
    chat = post(
        user,
        "chat/completions",
        **common,
        user=USER,
        n=2,
        max_tokens=8,
        stop=[MAIL],
        messages=[
            {"role": "system", "content": TEXT},
            {"role": "user", "content": [{"type": "text", "text": TEXT}]},
            {"role": "assistant", "content": TEXT},
            {"role": "user", "content": TEXT},
        ],
    )
    completion = post(user, "completions", **common, user=USER, prompt=[TEXT], max_tokens=8)
    message = post(
        user,
        "messages",
        **common | {"metadata": {"user_id": USER}},
        max_tokens=8,
        system=TEXT,
        messages=[
            {"role": "user", "content": [{"type": "text", "text": TEXT}]},
            {"role": "assistant", "content": TEXT},
            {"role": "user", "content": TEXT},
        ],
    )
    # Without a user, which the answer names again.
    asked = {"max_output_tokens": 8, "model": "tuneloop"}
    first = post(user, "responses", **asked, input=TEXT)
    second = post(user, "responses", **asked, input="Go on.", previous_response_id=first["id"])
    choices = [choice["completion_id"] for choice in chat["choices"]]
    return [*choices, completion["id"], message["id"], first["id"], second["id"]]


def judge_everything(user: User, ids: list[str]) -> None:
    """Write the text into every field of feedback and signals."""
    note = {"metadata": {"note": TEXT}}
    for completion_id in ids:
        judged = {"completion_id": completion_id, "user": USER, **note}
        post(user, "feedback", 202, kind="comment", text=f"{TEXT} is wrong", **judged)
        post(user, "feedback", 202, kind="demonstration", text=f"{TEXT} is better", **judged)
        post(user, "feedback", 202, kind="thumb", value="up", **judged)
    signal = {"kind": "copied", "completion_id": ids[0], "user": USER, **note}
    post(user, "signals", 202, signals=[signal])


def refuse_everything(user: User, completion_id: str) -> None:
    """Send what is refused, which errors and logs may quote."""
    messages = [{"role": "user", "content": TEXT}]
    url = f"{user.service.url}/v1/"
    for path, body in (
        ("chat/completions", {"model": MAIL, "messages": messages}),
        ("chat/completions", {"model": "tuneloop", "messages": messages, "session_id": MAIL}),
        ("completions", {"model": "tuneloop", "prompt": [5, 6, 7]}),
        ("feedback", {"kind": "comment", "completion_id": MAIL, "text": TEXT}),
        ("feedback", {"kind": "thumb", "session_id": MAIL, "value": "up"}),
        ("feedback", {"kind": "thumb", "completion_id": completion_id, "value": TEXT}),
    ):
        assert httpx.post(url + path, json=body, timeout=60).is_client_error, path


def count(user: User, table: str) -> int:
    path = user.service.data_dir / "learner" / "ledger.db"
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as ledger:
        return int(ledger.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def test_every_byte_of_the_folder(user: User, tiny_policy: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_policy / "tokenizer.json"))
    folder = user.service.data_dir
    ids = ask_everything(user)
    judge_everything(user, ids)
    refuse_everything(user, ids[0])
    wait_until(lambda: count(user, "rollouts") >= len(ids), "the answers in the ledger")
    row = {"prompt": TEXT, "completion": TEXT}
    rows = [{"place": f"{MAIL}.jsonl:1", "row": row}]
    post(user, "import", kind="demonstrations", rows=rows)
    wait_until(lambda: count(user, "feedback") >= 3 * len(ids), "the feedback in the ledger")
    wait_until(lambda: count(user, "signals") == 1, "the signal in the ledger")
    wait_until(lambda: user.serving_version() >= 1, "a version that learned from it")
    kept = found(folder, forms_of(PLAIN, tokenizer))
    for place in ("ROLLOUTS", "FEEDBACK", "ledger.db"):
        assert any(place in file for file in kept), kept
    assert {place.partition(": ")[2] for place in kept} >= {"UTF-8", "tokens"}
    for name, text in PERSONAL.items():
        assert found(folder, forms_of(text, tokenizer)) == set(), name
    # An orderly stop writes what is in memory.
    user.service.stop()
    for name, text in PERSONAL.items():
        assert found(folder, forms_of(text, tokenizer)) == set(), name
