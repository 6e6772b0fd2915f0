"""The supervisor over made-up processes: starts, restarts, prefixes, stops, leaves nothing."""

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.supervised import PARENT, SLEEPER, make_supervisor, spec

from tuneloop import ports
from tuneloop.errors import FailedPrecondition, SettingsError
from tuneloop.policies import WeightsKind
from tuneloop.supervisor import nats
from tuneloop.supervisor import output as chatter
from tuneloop.supervisor.data_dir import check_model, open_data_dir
from tuneloop.supervisor.output import LogFile, Terminal
from tuneloop.supervisor.plan import choose_ports, make_plan
from tuneloop.supervisor.process import ProcessSpec, RestartPolicy
from tuneloop.supervisor.settings import SupervisorSettings

SCRIPT = Path(__file__).parents[2] / "support" / "supervised.py"
QUICK = RestartPolicy(first=0.01, longest=0.04, healthy_after=3600)


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    async with asyncio.timeout(seconds):
        while not (value := condition()):
            await asyncio.sleep(0.01)
    return value


def until_now(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)
    return value


def state(data_dir: Path) -> dict[str, Any]:
    path = data_dir / "run.json"
    return json.loads(path.read_text()) if path.exists() else {}


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@asynccontextmanager
async def supervised(
    data_dir: Path, *specs: ProcessSpec, stop_seconds: float = 5.0, restarts: RestartPolicy = QUICK
) -> AsyncIterator[io.StringIO]:
    """A running supervisor; what it wrote to the terminal so far."""
    output = io.StringIO()
    supervisor = make_supervisor(
        data_dir, specs, terminal=Terminal(output), stop_seconds=stop_seconds, restarts=restarts
    )
    task = asyncio.create_task(supervisor.run())
    try:
        await until(lambda: state(data_dir) or task.done())
        yield output
    finally:
        if not task.done():
            os.kill(os.getpid(), signal.SIGTERM)
        await task


async def test_output_is_prefixed_on_the_terminal_and_whole_in_the_log(tmp_path: Path) -> None:
    code = "import sys; print('hello'); print('oops', file=sys.stderr, flush=True);" + SLEEPER
    async with supervised(tmp_path, spec("learner", code), spec("nats", SLEEPER)) as output:
        await until(lambda: "learner    | oops" in output.getvalue())
        await until(lambda: "nats       | up" in output.getvalue())
        assert "learner    | hello" in output.getvalue()
    logged = (tmp_path / "logs" / "learner.log").read_text().splitlines()
    assert sorted(logged) == ["hello", "oops", "up"]


async def test_a_process_that_dies_is_started_again_ever_more_slowly(tmp_path: Path) -> None:
    async with supervised(tmp_path, spec("reward", "raise SystemExit(3)")) as output:
        await until(lambda: state(tmp_path)["processes"]["reward"]["restarts"] >= 4)
        said = [line for line in output.getvalue().splitlines() if "starting it again" in line]
    assert "ended with status 3" in said[0]
    assert [line.split()[-2] for line in said[:4]] == ["0.01", "0.02", "0.04", "0.04"]


async def test_a_process_that_was_healthy_begins_again_with_the_first_pause(
    tmp_path: Path,
) -> None:
    healthy = RestartPolicy(first=0.01, longest=0.04, healthy_after=0.0)
    flaky = spec("reward", "import time; time.sleep(0.3)")
    async with supervised(tmp_path, flaky, restarts=healthy) as output:
        await until(lambda: output.getvalue().count("starting it again in 0.01 s") >= 3)
        assert "0.02 s" not in output.getvalue()


async def test_killing_a_parent_ends_its_children_too(tmp_path: Path) -> None:
    async with supervised(tmp_path, spec("generation", PARENT)) as output:
        await until(lambda: "child" in output.getvalue())
        child = int(output.getvalue().split("child ")[1].split()[0])
        pid = state(tmp_path)["processes"]["generation"]["pid"]
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not runs(child))
        await until(lambda: state(tmp_path)["processes"]["generation"]["pid"] not in (pid, None))
    assert "was ended by SIGKILL" in output.getvalue()


@pytest.mark.parametrize("failure", [RuntimeError("no"), asyncio.CancelledError(), None])
async def test_a_probe_that_fails_or_hangs_is_tried_again(
    tmp_path: Path, failure: BaseException | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuneloop.supervisor.process.PROBE_LIMIT_SECONDS", 0.2)
    probed: list[int] = []

    async def probe() -> bool:
        probed.append(1)
        if len(probed) == 1 and failure is not None:
            raise failure
        if len(probed) == 1:
            await asyncio.Event().wait()
        return True

    async with supervised(tmp_path, replace(spec("reward", SLEEPER), probe=probe)):
        await until(lambda: state(tmp_path)["processes"]["reward"]["ready"])
    assert len(probed) == 2


async def test_processes_share_a_session_and_are_as_nice_as_asked(tmp_path: Path) -> None:
    nice = replace(spec("reward", SLEEPER), niceness=7)
    async with supervised(tmp_path, nice):
        pid = await until(lambda: state(tmp_path)["processes"]["reward"]["pid"])
        assert os.getpgid(pid) == pid
        assert os.getsid(pid) == os.getsid(0)
        assert os.getpriority(os.PRIO_PROCESS, pid) == 7


async def test_stages_start_in_order_and_stop_in_reverse(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time;"
        "signal.signal(signal.SIGTERM, lambda *_: (print('end', flush=True), sys.exit(0)));"
        "print('begin', flush=True); time.sleep(3600)"
    )
    specs = [spec("nats", code), spec("learner", code, stage=1), spec("reward", code, stage=2)]
    async with supervised(tmp_path, *specs) as output:
        await until(lambda: output.getvalue().count("begin") == 3)
    lines = [line for line in output.getvalue().splitlines() if not line.startswith("tuneloop")]
    words = [tuple(line.replace("|", " ").split()) for line in lines]
    assert sorted(words[:3]) == sorted((name, "begin") for name in ("nats", "learner", "reward"))
    assert words[3:] == [("reward", "end"), ("learner", "end"), ("nats", "end")]
    assert not (tmp_path / "run.json").exists()


async def test_what_will_not_stop_is_killed(tmp_path: Path) -> None:
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEPER
    async with supervised(tmp_path, spec("learner", code), stop_seconds=0.3) as output:
        await until(lambda: "| up" in output.getvalue())
        pid = state(tmp_path)["processes"]["learner"]["pid"]
    assert not runs(pid)
    assert "did not stop within 0.3 s" in output.getvalue()


async def test_refused_settings_stop_everything(tmp_path: Path) -> None:
    specs = [spec("nats", SLEEPER), spec("learner", "raise SystemExit(2)", stage=1)]
    supervisor = make_supervisor(tmp_path, specs, terminal=Terminal(io.StringIO()))
    with pytest.raises(FailedPrecondition, match="learner refused its settings"):
        await supervisor.run()


async def test_a_missing_program_stops_everything(tmp_path: Path) -> None:
    missing = ProcessSpec(
        name="nats",
        command=("/nonexistent/nats-server",),
        environment={},
        probe=spec("x", "").probe,
        stage=0,
        port=1,
    )
    supervisor = make_supervisor(tmp_path, [missing], terminal=Terminal(io.StringIO()))
    with pytest.raises(FailedPrecondition, match="cannot start nats"):
        await supervisor.run()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A supervisor in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.wait()


def all_pids(running: subprocess.Popen[str], data_dir: Path) -> list[int]:
    """The processes of the supervisor and their children, once all run."""
    assert running.stdout is not None
    children: list[int] = []
    while len(children) < 2:
        line = running.stdout.readline()
        assert line, "the supervisor ended"
        if "| child " in line:
            children.append(int(line.split()[-1]))
    parents = [p["pid"] for p in state(data_dir)["processes"].values()]
    assert all(runs(pid) for pid in children + parents)
    return children + parents


def test_a_killed_supervisor_leaves_no_process_behind(
    running: subprocess.Popen[str], tmp_path: Path
) -> None:
    pids = all_pids(running, tmp_path)
    running.kill()
    until_now(lambda: not any(runs(pid) for pid in pids))
    # And the data folder is free again as soon as they are gone.
    again = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    pids = all_pids(again, tmp_path)
    again.terminate()
    assert again.wait(timeout=20) == 0
    assert not any(runs(pid) for pid in pids)


def test_a_second_supervisor_on_the_same_data_is_refused(
    running: subprocess.Popen[str], tmp_path: Path
) -> None:
    all_pids(running, tmp_path)
    second = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert second.returncode == 1
    assert f"already running on {tmp_path} (process {running.pid}" in second.stderr
    assert "--data-dir" in second.stderr


def test_a_taken_port_is_refused_with_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SettingsError) as refused:
            ports.require_free("127.0.0.1", port)
        assert f"port {port} on 127.0.0.1 is taken" in refused.value.message
        assert f"--port {port + 1}" in refused.value.message
        taken: set[int] = set()
        assert ports.take_port("127.0.0.1", port, taken) != port


def test_ports_the_user_sets_are_kept(unused_tcp_port_factory: Callable[[], int]) -> None:
    gateway, learner = unused_tcp_port_factory(), unused_tcp_port_factory()
    chosen = choose_ports("127.0.0.1", gateway, {"TUNELOOP_LEARNER_PORT": str(learner)})
    assert chosen["learner"] == learner
    assert len({gateway, *chosen.values()}) == 9
    with pytest.raises(SettingsError, match="TUNELOOP_REWARD_METRICS_PORT='x'"):
        choose_ports("127.0.0.1", gateway, {"TUNELOOP_REWARD_METRICS_PORT": "x"})


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


def test_another_model_on_the_same_data_is_refused(
    tmp_path: Path, tiny_policy: Path, tiny_reward_model: Path
) -> None:
    data = open_data_dir(tmp_path)
    for _ in range(2):
        check_model(data, folder=tiny_policy, name="tiny", weights=WeightsKind.LORA)
    with pytest.raises(FailedPrecondition, match="does not fit other"):
        check_model(data, folder=tiny_reward_model, name="other", weights=WeightsKind.LORA)
    with pytest.raises(FailedPrecondition, match="full weights"):
        check_model(data, folder=tiny_policy, name="tiny", weights=WeightsKind.FULL)


def test_secrets_are_made_once_and_for_the_owner_only(tmp_path: Path) -> None:
    data = open_data_dir(tmp_path)
    secret = data.gateway_secret.read_text()
    assert len(secret) == 64
    assert open_data_dir(tmp_path).gateway_secret.read_text() == secret
    assert data.gateway_secret.stat().st_mode & 0o077 == 0
    assert data.private_key.stat().st_mode & 0o077 == 0


def test_a_missing_nats_server_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no program at .*nothing"):
        nats.find_binary(tmp_path / "nothing")


def test_a_progress_bar_leaves_its_last_state(tmp_path: Path) -> None:
    output = io.StringIO()
    log = LogFile("learner", tmp_path, Terminal(output), lambda _: True)
    log.feed(b"10%\r50%\r100%\nhalf a ")
    log.feed(b"line\n\xff\xfe")
    log.end()
    log.close()
    assert [line.partition("| ")[2] for line in output.getvalue().splitlines()] == [
        "100%",
        "half a line",
        "\ufffd\ufffd",
    ]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("(Worker pid=23462) WARNING 11-21 08:39:13 [cpu_worker.py:114] no tcmalloc", False),
        ("(EngineCore pid=1) ERROR 11-21 08:39:13 [core.py:1] out of memory", True),
        ("Loading safetensors checkpoint shards: 100% Completed | 1/1", False),
        ("2026-11-21T08:39:29.701Z WARNING the event bus closed the connection", True),
        ("Traceback (most recent call last):", True),
        ("ModuleNotFoundError: No module named 'x'", True),
        ("", False),
    ],
)
def test_the_terminal_shows_what_can_be_used(line: str, shown: bool) -> None:
    assert chatter.is_useful_line(line) is shown


def test_a_terminal_that_went_away_is_no_error() -> None:
    output = io.StringIO()
    terminal = Terminal(output)
    output.close()
    terminal.line("learner", "hello")
