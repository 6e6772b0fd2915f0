"""The audit log of the gateway: who did or tried what, and what does not belong there."""

import json
import logging
import os
import pwd
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.gateway_fakes import IDS
from support.gateway_stack import running_gateway
from typer.testing import CliRunner

from tuneloop import audit, wire
from tuneloop.bus import subjects
from tuneloop.cli.app import app
from tuneloop.errors import SettingsError
from tuneloop.gateway.edge.audit import REFUSALS_OF_ADDRESS_PER_MINUTE
from tuneloop.gateway.keys.store import KeyFile, Limits, Scope, new_key
from tuneloop.gateway.metrics import refused

TEXT = "what ann wrote"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file; the process's log is as before afterwards."""
    logger = logging.getLogger("tuneloop.audit")
    monkeypatch.setattr(logger, "handlers", [])
    before = logger.propagate, logger.level
    audit.write_to(tmp_path / "logs" / "audit.jsonl")
    yield tmp_path / "logs" / "audit.jsonl"
    logger.handlers[0].close()
    logger.propagate, logger.level = before


def records(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text(log).splitlines()]


def text(log: Path) -> str:
    return log.read_text()


def make(file: KeyFile, name: str, scope: Scope) -> dict[str, str]:
    secret, key = new_key(name, [scope], Limits())
    file.add(key)
    return {"authorization": f"Bearer {secret}"}


ADMINS = [
    ("POST", "/v1/policies/3/promote", None, "POST /v1/policies/{version}/promote"),
    ("POST", "/v1/policies/rollback", None, "POST /v1/policies/rollback"),
    ("POST", "/v1/learner/pause", None, "POST /v1/learner/pause"),
    ("POST", "/v1/learner/resume", None, "POST /v1/learner/resume"),
    ("DELETE", "/v1/users/ann", None, "DELETE /v1/users/{user_id:path}"),
    ("GET", "/v1/export?kind=thumbs", None, "GET /v1/export"),
    ("GET", "/v1/feedback?user=ann&kind=comment", None, "GET /v1/feedback"),
    ("GET", "/v1/lineage/users/ann", None, "GET /v1/lineage/users/{user_id:path}"),
    (
        "POST",
        "/v1/import",
        {"kind": "thumbs", "rows": [{"place": "a:1", "row": {"prompt": TEXT}}]},
        "POST /v1/import",
    ),
]


async def test_what_admins_do_is_recorded_with_actor_key_and_outcome(
    log: Path, tmp_path: Path
) -> None:
    file = KeyFile(tmp_path / "keys.json")
    admin = make(file, "root", Scope.ADMIN)
    [key] = file.read()
    async with (
        running_gateway(keys_file=file.path) as stack,
        httpx.AsyncClient(base_url=stack.url, headers=admin) as http,
    ):
        for method, path, body, _ in ADMINS:
            await http.request(method, path, json=body)
        for quiet in ("/v1/policies", "/v1/learner", "/v1/models"):
            await http.get(quiet)
    found = records(log)
    assert [record["action"] for record in found] == [action for *_, action in ADMINS]
    for record in found:
        assert (record["actor"], record["key"]) == ("key:root", key.id)
        assert record["address"] == "127.0.0.1"
        assert record["outcome"] == ("ok" if record["status"] < 400 else "refused")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", record["time"])
    assert found[0]["about"] == {"version": "3"}
    ann = IDS.user_hash("default", "ann")
    assert found[4]["about"] == {"user_hash": ann}
    assert found[6]["about"] == {"kind": "comment", "user_hash": ann}
    assert "ann" not in text(log)
    assert admin["authorization"].removeprefix("Bearer ") not in text(log)


async def test_without_keys_it_is_the_one_on_this_machine(log: Path) -> None:
    async with running_gateway() as stack, httpx.AsyncClient(base_url=stack.url) as http:
        await http.post("/v1/learner/pause")
    [record] = records(log)
    assert (record["actor"], record["key"], record["outcome"]) == ("local", "local", "ok")


async def test_reading_and_retracting_feedback_is_recorded(log: Path, tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    app = make(file, "app", Scope.FEEDBACK)
    async with (
        running_gateway(keys_file=file.path) as stack,
        httpx.AsyncClient(base_url=stack.url, headers=app) as http,
    ):
        of = IDS.make("chatcmpl", "default", IDS.user_hash("default", "ann"))
        body = {"kind": "comment", "completion_id": of, "text": TEXT, "id": "f-1"}
        assert (await http.post("/v1/feedback", json=body)).status_code == 202
        await http.get("/v1/feedback/f-1")
        await http.delete("/v1/feedback/f-1")
        stored = await stack.bus.last(subjects.feedback_with_id("f-1"))
    [key] = file.read()
    assert stored is not None
    assert wire.decode_retraction(stored.data).api_key_id == key.id
    assert [(r["actor"], r["action"], r["about"]) for r in records(log)] == [
        ("key:app", f"{method} /v1/feedback/{{feedback_id}}", {"feedback_id": "f-1"})
        for method in ("GET", "DELETE")
    ]
    assert TEXT not in text(log)


async def test_refusals_say_who_if_it_is_known(log: Path, tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    app, gone = make(file, "app", Scope.INFER), make(file, "gone", Scope.ADMIN)
    file.revoke("gone")
    wrong = {"authorization": "Bearer hunter2"}
    async with (
        running_gateway(keys_file=file.path) as stack,
        httpx.AsyncClient(base_url=stack.url) as http,
    ):
        for headers in (app, gone, wrong, wrong, {}):
            await http.get(f"/v1/export?kind={TEXT}", headers=headers)
        await http.get(f"/v1/{TEXT}", headers=wrong)
    found = records(log)
    assert [(r["actor"], r["outcome"]) for r in found] == [
        ("key:app", "missing_scope"),
        ("key:gone", "invalid_api_key"),
        ("nobody", "invalid_api_key"),
        ("nobody", "invalid_api_key"),
        ("nobody", "unauthenticated"),
        ("nobody", "invalid_api_key"),
    ]
    assert found[2]["key"] == found[3]["key"]
    assert re.fullmatch("wrong-[0-9a-f]{8}", found[2]["key"])
    assert "hunter2" not in text(log)
    assert TEXT not in text(log)


async def test_one_caller_cannot_fill_the_disk(log: Path, tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    make(file, "root", Scope.ADMIN)
    before = refused.labels("invalid_api_key")._value.get()
    async with (
        running_gateway(keys_file=file.path) as stack,
        httpx.AsyncClient(base_url=stack.url, headers={"authorization": "Bearer x"}) as http,
    ):
        for _ in range(REFUSALS_OF_ADDRESS_PER_MINUTE + 20):
            await http.get("/v1/export")
    assert len(records(log)) in range(
        REFUSALS_OF_ADDRESS_PER_MINUTE, REFUSALS_OF_ADDRESS_PER_MINUTE + 5
    )
    after = refused.labels("invalid_api_key")._value.get()
    assert after - before == REFUSALS_OF_ADDRESS_PER_MINUTE + 20


def test_full_files_are_kept_aside_and_are_private(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [handler] = [h for h in audit.logger.handlers if isinstance(h, audit.PrivateFile)]
    monkeypatch.setattr(handler, "maxBytes", 2_000)
    for number in range(400):
        audit.record(actor="a", action=str(number), outcome="ok")
    files = sorted(log.parent.iterdir())
    assert len(files) == audit.FILES + 1
    assert all(file.stat().st_size <= 2_000 for file in files)
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"AUDIT_FILE=.*file/audit"):
        audit.write_to(tmp_path / "file" / "audit")


def test_without_a_file_it_is_in_the_processs_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="tuneloop.audit"):
        audit.record(actor="key:root", action="x", outcome="ok", about={"version": "3"}, left_out=2)
    line = json.loads(caplog.records[0].getMessage())
    assert line["about"] == {"version": "3"}
    assert line["left_out"] == 2
    assert "status" not in line


def test_commands_that_change_keys_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("tuneloop.audit")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", logger.propagate)
    monkeypatch.setattr(logger, "level", logger.level)
    run = CliRunner()
    made = run.invoke(
        app, ["keys", "create", "--name", "ci", "--data-dir", str(tmp_path), "--json"]
    )
    key = json.loads(made.output)
    run.invoke(app, ["keys", "revoke", "ci", "--data-dir", str(tmp_path)])
    again = run.invoke(app, ["keys", "revoke", "ci", "--data-dir", str(tmp_path)])
    assert again.exit_code != 0
    logger.handlers[0].close()

    file = tmp_path / "logs" / audit.COMMANDS
    assert file.stat().st_mode & 0o777 == 0o600
    assert [(r["action"], r["outcome"]) for r in records(file)] == [
        ("keys create", "ok"),
        ("keys revoke", "ok"),
    ]
    about = {"key": key["id"], "name": "ci", "scopes": "feedback infer"}
    assert all(record["about"] == about for record in records(file))
    me = pwd.getpwuid(os.getuid()).pw_name
    assert {record["actor"] for record in records(file)} == {f"os:{me}"}
    assert key["key"] not in file.read_text()
