"""The stages of the loop: what is measured in which order, and the figures made of it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from benchmarks import loop
from benchmarks.loop_servers import Seen, Servers, engine_seconds
from benchmarks.loop_stages import (
    BARE,
    BEFORE,
    STAGES,
    WHOLE,
    Load,
    Measure,
    Record,
    measure_missing,
    missing,
)
from benchmarks.loop_table import stage_rows, table, throughput_rows

LOADS = [Load(streams=8, chats=1, max_tokens=4), Load(streams=32, chats=1, max_tokens=4)]
HEAD = {"model": "tiny"}


class FakeServers:
    """Ten tokens a second from all, and a CPU second for each call."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.clock = 0.0

    def ask(self, stage: Any, *, streams: int, requests: int, max_tokens: int) -> Seen:
        self.asked.append(stage.name)
        tokens = requests * max_tokens
        return Seen(tokens=tokens, seconds=tokens / 10, failed=0, first_token_seconds_p50=0.1)

    def cpu_seconds(self, stage: Any) -> dict[str, float]:
        self.clock += 1
        return {"worker": self.clock, "load": self.clock}

    def wait_for_consumers(self, stage: Any, paused: Any = ()) -> None:
        pass

    @contextmanager
    def paused(self, stage: Any, names: Any) -> Iterator[None]:
        yield


def measured(stage: str, number: int, seconds: float, cpu: float, after: float = 0.0) -> Measure:
    return Measure(
        round=number,
        stage=stage,
        streams=8,
        tokens=500,
        requests=10,
        seconds=seconds,
        failed=0,
        first_token_seconds_p50=0.1,
        cpu_seconds={"worker": cpu, "load": 0.5},
        cpu_seconds_after={"worker": after, "load": 0.0},
    )


def test_stages_take_turns_and_a_run_that_was_cut_short_continues(tmp_path: Path) -> None:
    record = Record(tmp_path / "results" / "loop.json", HEAD)
    stages = STAGES[:2]
    todo = missing(record, stages, LOADS[:1], 2)
    assert [(n, s.name) for n, _, s in todo] == [
        (0, BARE),
        (0, "adapter"),
        (1, "adapter"),
        (1, BARE),
    ]
    servers: Any = FakeServers()
    measure_missing(servers, record, todo[:3], print)
    again = Record(record.path, HEAD)
    again.load()
    assert again.measures == record.measures
    assert [(n, s.name) for n, _, s in missing(again, stages, LOADS[:1], 2)] == [(1, BARE)]
    other = Record(record.path, {"model": "another"})
    other.load()
    assert not other.measures
    # Each was warmed up once.
    assert servers.asked == [BARE, BARE, "adapter", "adapter", "adapter"]


def test_cpu_seconds_are_by_process_and_hold_what_was_left_to_do() -> None:
    one = measured("scoring", 0, seconds=5.0, cpu=2.0, after=1.0)
    assert one.tokens_per_second == 100
    assert one.cpu_seconds_per_1000_tokens == {"worker": 6.0, "load": 1.0}


def test_ratios_are_of_the_same_round() -> None:
    measures = [
        measured(BARE, 0, seconds=5.0, cpu=1.0),
        measured(WHOLE, 0, seconds=10.0, cpu=2.0),
        measured(BARE, 1, seconds=10.0, cpu=1.0),
        measured(WHOLE, 1, seconds=12.5, cpu=2.0),
        # It has no pair.
        measured(WHOLE, 2, seconds=1.0, cpu=2.0),
        measured(BEFORE, 0, seconds=8.0, cpu=1.5),
        measured(BEFORE, 1, seconds=10.0, cpu=1.5),
    ]
    [row] = throughput_rows(measures)
    assert row["ratio_median"] == pytest.approx(0.65)
    assert (row["ratio_min"], row["ratio_max"]) == (0.5, 0.8)
    assert (row["tuneloop_tokens_per_second"], row["vllm_tokens_per_second"]) == (45, 75)
    bare, whole, before = stage_rows(measures)
    # 0.8 in both rounds; 5 CPU seconds per 1,000 tokens where it was 4.
    assert whole["ratio_to_before"]["value"] == pytest.approx(0.8)
    assert whole["cpu_ratio_to_before"]["value"] == pytest.approx(1.25)
    assert bare["ratio_to_vllm"]["value"] == 1
    assert whole["ratio_to_vllm"]["value"] == pytest.approx(0.65)
    assert whole["ratio_to_vllm_with_logprobs"] is None
    assert whole["cpu_seconds_per_1000_tokens"]["all"]["value"] == 5
    assert whole["tokens_per_request"] == 50
    result = {"model": "m", "device": "d", "measured_time": "now", "stages": [bare, whole, before]}
    text = table(json.loads(json.dumps(result | {"feedback_to_serving_seconds": [20.0, 30.0]})))
    assert "| 1. vLLM's own server | 75 [50, 100] | 1.000 [1.000, 1.000] |  | 2.00 |" in text
    assert "| 9. + learner |" in text
    assert "| 10. the commit before, all of it |" in text
    assert "the commit before: 0.800 [0.800, 0.800] of its tokens/s, 1.250 [1.250, 1.250]" in text
    assert "median 25.0 s, longest 30.0 s" in text


def test_processes_are_told_apart_by_their_depth() -> None:
    spin = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"
    inner = f"{spin}print('spun', flush=True); time.sleep(60)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    process = subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "spun\n"
        # Of the test, `outer` is the front end's child and `inner` its worker.
        found = engine_seconds(process.pid)
        assert found["scheduler"] >= 0.3
        assert found["front end"] < found["scheduler"]
        assert found["worker"] == 0
    finally:
        for child in psutil.Process(process.pid).children():
            child.kill()
        process.wait()
        process.stdout.close()


def test_paused_processes_go_on_in_the_end() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], process_group=0)

    class Service:
        def run_state(self) -> Any:
            return {"processes": {"learner": {"pid": child.pid}}}

    [stage] = [stage for stage in STAGES if stage.name == WHOLE]
    servers = Servers(services={stage.server: cast(Any, Service())})
    try:
        with servers.paused(stage, ("learner",)):
            deadline = time.monotonic() + 10
            while psutil.Process(child.pid).status() != psutil.STATUS_STOPPED:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        assert psutil.Process(child.pid).status() != psutil.STATUS_STOPPED
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(1800)
def test_every_stage_runs(tmp_path: Path) -> None:
    assert loop.main(["--quick", "--results", str(tmp_path)]) == 0
    [path] = tmp_path.glob("loop-*-quick.json")
    done = json.loads(path.read_text())
    assert [row["stage"] for row in done["stages"]] == [stage.name for stage in STAGES[:-1]]
    assert all(row["failed"] == 0 for row in done["stages"])
    assert done["feedback_to_serving_seconds"]
    assert [row["streams"] for row in done["throughput"]] == [2]
    assert path.with_suffix(".md").is_file()
