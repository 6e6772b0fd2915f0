"""Ports and environment of the processes that `tuneloop up` starts."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tuneloop.errors import SettingsError
from tuneloop.supervisor.data_dir import open_data_dir
from tuneloop.supervisor.plan import choose_ports, make_plan
from tuneloop.supervisor.settings import SupervisorSettings


def test_ports_the_user_sets_are_kept(unused_tcp_port_factory: Callable[[], int]) -> None:
    gateway, learner = unused_tcp_port_factory(), unused_tcp_port_factory()
    chosen = choose_ports("127.0.0.1", gateway, {"TUNELOOP_LEARNER_PORT": str(learner)})
    assert chosen["learner"] == learner
    assert len({gateway, *chosen.values()}) == 9
    with pytest.raises(SettingsError, match="TUNELOOP_REWARD_METRICS_PORT='x'"):
        choose_ports("127.0.0.1", gateway, {"TUNELOOP_REWARD_METRICS_PORT": "x"})


def test_other_users_of_the_machine_cannot_talk_to_the_processes(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    data = open_data_dir(tmp_path / "data")
    plan = make_plan(
        SupervisorSettings(data_dir=tmp_path, port=unused_tcp_port),
        data,
        model=tmp_path / "policy",
        reward_model=tmp_path / "reward",
        environment={"PATH": os.environ["PATH"]},
    )
    password = data.nats_password.read_text()
    assert len(password) > 60
    assert f":{password}@127.0.0.1" in plan.nats_url
    config = data.nats / "nats.conf"
    assert password in config.read_text()
    for secret in (data.nats_password, data.grpc_token, config):
        assert secret.stat().st_mode & 0o777 == 0o600
    for spec in plan.specs[1:]:
        prefix = f"TUNELOOP_{spec.name.upper()}_"
        assert spec.environment[f"{prefix}NATS_URL"] == plan.nats_url
        assert spec.environment[f"{prefix}GRPC_TOKEN_FILE"] == str(data.grpc_token)
    assert open_data_dir(tmp_path / "data").nats_password.read_text() == password


def test_what_the_user_sets_wins_over_what_is_worked_out(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    settings = SupervisorSettings(data_dir=tmp_path, port=unused_tcp_port)
    environment = {"TUNELOOP_LEARNER_WEIGHTS_URI": "s3://bucket", "PATH": os.environ["PATH"]}
    plan = make_plan(
        settings,
        open_data_dir(tmp_path),
        model=tmp_path / "policy",
        reward_model=tmp_path / "reward",
        environment=environment,
    )
    by_name = {s.name: s.environment for s in plan.specs}
    assert by_name["learner"]["TUNELOOP_LEARNER_WEIGHTS_URI"] == "s3://bucket"
    assert by_name["reward"]["TUNELOOP_REWARD_WEIGHTS_URI"] == str(tmp_path / "weights")
    assert by_name["gateway"]["TUNELOOP_GATEWAY_PORT"] == str(unused_tcp_port)
    assert not plan.key_needed
