"""The file of keys and the commands that change it."""

import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tuneloop.cli.app import app
from tuneloop.errors import Conflict, CorruptData, InvalidRequest, NotFound
from tuneloop.gateway.keys.store import KeyFile, Limits, Scope, hash_key, new_key


def tuneloop(*arguments: str, status: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["keys", *arguments])
    assert result.exit_code == status, result.output
    return result.stdout, result.stderr


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("TUNELOOP_GATEWAY_KEYS_FILE", "TUNELOOP_SUPERVISOR_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_a_key_is_shown_once_and_kept_as_a_hash(tmp_path: Path) -> None:
    secret, told = tuneloop("create", "--name", "app", "--tokens-per-day", "500")
    secret = secret.strip()
    assert secret.startswith("tl-")
    assert len(secret) == 3 + 43  # 256 bits
    assert secret not in told
    path = tmp_path / ".tuneloop" / "keys" / "api_keys.json"
    text = path.read_text()
    assert secret not in text
    assert secret.removeprefix("tl-") not in text
    [key] = KeyFile(path).read()
    assert (key.sha256, key.scopes) == (hash_key(secret), {Scope.INFER, Scope.FEEDBACK})
    assert key.limits == Limits(tokens_per_day=500)
    for file in (path, path.parent):
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0


def test_json_everywhere(tmp_path: Path) -> None:
    file = ("--file", str(tmp_path / "k.json"))
    scopes = ("--scope", "infer", "--scope", "admin")
    made = json.loads(tuneloop("create", "--name", "a", *scopes, "--json", *file)[0])
    assert made["scopes"] == ["admin", "infer"]
    listed = json.loads(tuneloop("list", "--json", *file)[0])
    assert "key" not in listed[0]
    assert listed[0] == {name: value for name, value in made.items() if name != "key"}
    assert json.loads(tuneloop("revoke", made["id"], "--json", *file)[0])["revoked_time"]
    assert json.loads(tuneloop("list", "--json", *file)[0]) == []
    assert "revoked" in tuneloop("list", "--all", *file)[0]


def test_wrong_uses_are_told_in_one_line(tmp_path: Path) -> None:
    tuneloop("create", "--name", "a")
    assert "'a' exists" in tuneloop("create", "--name", "a", status=1)[1]
    assert tuneloop("create", "--name", "a b", status=1)[1].startswith("name: ")
    assert "no active key" in tuneloop("revoke", "b", status=1)[1]
    tuneloop("create", "--name", "c", "--scope", "all", status=2)
    tuneloop("create", "--name", "c", "--requests-per-minute", "0", status=2)
    (tmp_path / "broken").write_text("[{}]")
    assert "keys file" in tuneloop("list", "--file", str(tmp_path / "broken"), status=1)[1]
    tuneloop("revoke", "a")
    tuneloop("create", "--name", "a")


def test_the_file_refuses_what_is_not_a_key(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    assert file.read() == []
    with pytest.raises(InvalidRequest, match="scopes"):
        new_key("a", [], Limits())
    _, key = new_key("a", [Scope.INFER], Limits())
    file.add(key)
    with pytest.raises(Conflict):
        file.add(new_key("a", [Scope.ADMIN], Limits())[1])
    revoked = file.revoke(key.id)
    assert not revoked.is_active
    with pytest.raises(NotFound):
        file.revoke(key.id)
    document = json.loads(file.path.read_text())
    for wrong in ({"scopes": ["root"]}, {"sha256": "x"}, {"unknown": 1}):
        file.path.write_text(json.dumps([document[0] | wrong]))
        with pytest.raises(CorruptData, match=str(file.path)):
            file.read()
