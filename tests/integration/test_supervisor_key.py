"""`tuneloop up` beyond loopback: not without a key, and it says how to make one."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tuneloop.errors import SettingsError
from tuneloop.gateway.keys.store import KeyFile, Limits, Scope, hash_key, new_key
from tuneloop.supervisor.data_dir import open_data_dir
from tuneloop.supervisor.plan import ProcessPlan, make_plan
from tuneloop.supervisor.settings import SupervisorSettings
from tuneloop.supervisor.supervisor import announcement


def plan(tmp_path: Path, port: int, **environment: str) -> ProcessPlan:
    return make_plan(
        SupervisorSettings(data_dir=tmp_path, host="0.0.0.0", port=port),
        open_data_dir(tmp_path),
        model=tmp_path / "policy",
        reward_model=tmp_path / "reward",
        environment={"PATH": os.environ["PATH"], **environment},
    )


def test_up_tells_how_to_make_a_key(tmp_path: Path, unused_tcp_port: int) -> None:
    file = KeyFile(tmp_path / "keys" / "api_keys.json")
    with pytest.raises(SettingsError) as refused:
        plan(tmp_path, unused_tcp_port)
    command = next(line for line in str(refused.value).splitlines() if "keys create" in line)
    made = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True)
    assert plan(tmp_path, unused_tcp_port).key_needed
    assert file.read()[0].sha256 == hash_key(made.stdout.strip())
    file.revoke("admin")
    assert plan(tmp_path, unused_tcp_port, TUNELOOP_API_KEY="k").key_needed
    key = new_key("app", [Scope.INFER], Limits())[1]
    file.add(key)
    ready = plan(tmp_path, unused_tcp_port)
    assert ready.key_needed
    environment = next(s.environment for s in ready.specs if s.name == "gateway")
    assert environment["TUNELOOP_GATEWAY_KEYS_FILE"] == str(file.path)
    assert "tuneloop keys list" in announcement(ready, open_data_dir(tmp_path), 1.0)
    file.revoke(key.id)
    with pytest.raises(SettingsError, match="keys create"):
        plan(tmp_path, unused_tcp_port)
