"""The supervisor over made-up processes: starts, restarts, prefixes, stops, leaves nothing."""

import asyncio
import io
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.ports import free_port
from support.supervised import PARENT, SLEEPER, make_supervisor, spec
from support.waiting import until, wait_until

from tuneloop import ports
from tuneloop.errors import FailedPrecondition, SettingsError, Unavailable
from tuneloop.supervisor.child import ServiceChild
from tuneloop.supervisor.output import Terminal
from tuneloop.supervisor.process import ProcessSpec, RestartPolicy

SCRIPT = Path(__file__).parents[1] / "support" / "supervised.py"
QUICK = RestartPolicy(first=0.01, longest=0.04, healthy_after=3600)


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
    wait_until(lambda: not any(runs(pid) for pid in pids))
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


def test_a_child_is_not_started_where_another_program_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(Unavailable, match=f"port {port} is taken"):
            ServiceChild(tmp_path / "data", port=port).start()
    assert not (tmp_path / "data").exists()


def test_services_that_start_at_once_choose_different_ports() -> None:
    """Each has chosen before any of the other's processes listens."""
    code = (
        "import sys\n"
        "from tuneloop.supervisor.plan import choose_ports\n"
        "print(*choose_ports('127.0.0.1', int(sys.argv[1]), {}).values(), flush=True)\n"
        "input()"
    )
    services = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(free_port())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    chosen = [service.stdout.readline().split() for service in services if service.stdout]
    for service in services:
        service.communicate("\n")
    assert all(chosen)
    ports = list(itertools.chain(*chosen))
    assert len(set(ports)) == len(ports)
