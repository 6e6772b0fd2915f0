"""What `benchmarks.loop` asks: vLLM's servers, the engine by itself, and `tuneloop up`.

Each is started once and asked in turn. All get the same model, the same threads and the same
settings of vLLM, and all but the first the same adapter.
"""

import asyncio
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.gateway_pace import grpc_chat
from benchmarks.hot_swap_versions import adapters
from benchmarks.load import LoadResult, load, load_with
from benchmarks.loop import counted, settle, vllm_server
from benchmarks.loop_stages import Stage
from tuneloop.generation.settings import GenerationSettings
from tuneloop.generation.swap.hot_swap import HEADROOM
from tuneloop.generation.vllm.engine import CPU_SCHEDULED_TOKENS, LORA_RANKS
from tuneloop.rpc.channel import connect
from tuneloop.supervisor.child import ServiceChild
from tuneloop.v1 import generation_pb2_grpc

WORKER = "benchmarks.loop_worker.LoraExtension"
POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What came of one load."""

    tokens: int
    seconds: float
    failed: int
    first_token_seconds_p50: float

    @classmethod
    def of(cls, result: LoadResult) -> "Seen":
        return cls(
            tokens=result.completion_tokens,
            seconds=result.seconds,
            failed=result.failed,
            first_token_seconds_p50=result.first_token_seconds_p50,
        )


@dataclass(slots=True, kw_only=True)
class Servers:
    """Those that are up."""

    services: dict[str, ServiceChild] = field(default_factory=dict)
    """All of tuneloop, by name."""
    urls: dict[str, str] = field(default_factory=dict)
    """Of HTTP servers, by name."""
    pids: dict[str, int] = field(default_factory=dict)
    """Of servers other than the service, by name."""
    engine: subprocess.Popen[str] | None = None

    def ask(self, stage: Stage, *, streams: int, requests: int, max_tokens: int) -> Seen:
        """Run one load through the parts that the stage has."""
        sizes = {"streams": streams, "requests": requests, "max_tokens": max_tokens}
        if stage.server == "engine":
            return self._ask_engine(sizes)
        if stage.protocol == "grpc":
            return Seen.of(asyncio.run(self._ask_generation(self.services[stage.server], sizes)))
        url = self.urls[stage.server]
        return Seen.of(asyncio.run(load(url, **sizes, train=stage.train, fields=stage.fields)))

    def _ask_engine(self, sizes: Mapping[str, int]) -> Seen:
        assert self.engine is not None
        assert self.engine.stdin is not None
        print(json.dumps(sizes), file=self.engine.stdin, flush=True)
        return Seen(**json.loads(next_line(self.engine)))

    async def _ask_generation(self, service: ServiceChild, sizes: Mapping[str, int]) -> LoadResult:
        port = service.run_state()["processes"]["generation"]["port"]
        token = (service.data_dir / "keys" / "grpc_token").read_text().strip()
        async with connect(f"127.0.0.1:{port}", token=token) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            return await load_with(functools.partial(grpc_chat, stub), **sizes)

    def cpu_seconds(self, stage: Stage) -> dict[str, float]:
        """Return what each part has used so far: of the stage's processes, and of the load."""
        service = self.services.get(stage.server)
        if service is None:
            found = engine_seconds(self.pids[stage.server])
        else:
            processes = service.run_state()["processes"]
            pids = {name: process["pid"] for name, process in processes.items()}
            found = engine_seconds(pids.pop("generation"))
            found |= {name: sum(engine_seconds(pid).values()) for name, pid in pids.items()}
        used = os.times()
        return found | {"load": used.user + used.system}

    @contextlib.contextmanager
    def paused(self, stage: Stage, names: Sequence[str]) -> Iterator[None]:
        """Stop some processes of the stage's service, and let them go on in the end."""
        groups = []
        if service := self.services.get(stage.server):
            processes = service.run_state()["processes"]
            # The supervisor gives each a group of its own.
            groups = [processes[name]["pid"] for name in names]
        try:
            for group in groups:
                os.killpg(group, signal.SIGSTOP)
            yield
        finally:
            for group in groups:
                os.killpg(group, signal.SIGCONT)

    def wait_for_consumers(self, stage: Stage, paused: Sequence[str] = ()) -> None:
        """Wait until reward and learner, unless paused, have taken in what came."""
        service = self.services.get(stage.server)
        if service is None:
            return
        if "reward" not in paused:
            settle(service)
        if "learner" not in paused:
            port = service.run_state()["processes"]["learner"]["metrics_port"]
            names = ("rollouts", "scores")
            before, now = -1.0, 0.0
            while before != now:
                time.sleep(POLL_SECONDS)
                before = now
                now = sum(counted(port, f"tuneloop_learner_{n}_consumed_total") for n in names)


def engine_seconds(pid: int) -> dict[str, float]:
    """Return the CPU seconds of a process, of its children and of theirs.

    Of one that runs vLLM these are its front end, its scheduler and its worker.
    """
    front = psutil.Process(pid)
    children = front.children()
    below = [one for one in front.children(recursive=True) if one not in children]
    parts = {"front end": [front], "scheduler": children, "worker": below}
    return {name: sum(map(used_seconds, part)) for name, part in parts.items()}


def used_seconds(process: psutil.Process) -> float:
    """Return the CPU seconds of a process; none of one that has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def next_line(process: subprocess.Popen[str]) -> str:
    """Return the next line of its output; raises `RuntimeError` where there is none."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args!r} ended with status {process.wait()}")
    return line


def server_options() -> list[str]:
    """Return what the generation service sets that vLLM's server does not by itself."""
    options = ["--disable-log-stats", "--generation-config", "vllm"]
    options += ["--logprobs-mode", "processed_logprobs"]
    if not Path("/dev/nvidia0").exists():
        options += ["--max-num-batched-tokens", str(CPU_SCHEDULED_TOKENS)]
    return options


def adapter_options(adapter: Path) -> list[str]:
    """Return the options of a server that has the adapter beside the model."""
    defaults = {name: info.default for name, info in GenerationSettings.model_fields.items()}
    slots = str(defaults["max_live_versions"] + HEADROOM)
    rank = next(rank for rank in LORA_RANKS if rank >= defaults["max_lora_rank"])
    options = ["--enable-lora", "--max-loras", slots, "--max-cpu-loras", slots]
    options += ["--max-lora-rank", str(rank), "--lora-modules", f"adapter={adapter}"]
    return [*options, "--worker-extension-cls", WORKER]


@contextlib.contextmanager
def engine_process(
    model: Path, adapter: Path, max_model_len: int, log_path: Path
) -> Iterator[subprocess.Popen[str]]:
    """Run `benchmarks.loop_engine` until the block ends; it is ready when this returns."""
    command = [sys.executable, "-m", "benchmarks.loop_engine", "--model", str(model)]
    command += ["--adapter", str(adapter), "--max-model-len", str(max_model_len)]
    with log_path.open("wb") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        next_line(child)
        yield child
    finally:
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        child.wait(timeout=60)


def make_adapter(model: Path, folder: Path) -> Path:
    """Make an adapter as the learner's versions are, a little off the model."""
    [made] = adapters(model, folder, 1)
    return made


def served_adapter(service: ServiceChild) -> Path:
    """Return the adapter that serves, in the service's weight store."""
    answer = httpx.get(f"{service.url}/v1/policies", timeout=30).raise_for_status()
    version = int(answer.json()["policy_version"])
    return service.data_dir / "weights" / "tuneloop" / f"{version:08d}"


@contextlib.contextmanager
def other_servers(
    names: Sequence[str], servers: Servers, model: Path, adapter: Path, scratch: Path, length: int
) -> Iterator[None]:
    """Start those of vLLM's servers and the engine that are named, beside the service."""
    options: dict[str, Any] = {"vllm": [], "vllm with adapter": adapter_options(adapter)}
    with contextlib.ExitStack() as stack:
        for name in names:
            log = scratch / f"{name}.log"
            if name == "engine":
                engine = stack.enter_context(engine_process(model, adapter, length, log))
                servers.engine, servers.pids[name] = engine, engine.pid
            elif name in options:
                own = [*server_options(), *options[name]]
                url, pid = stack.enter_context(vllm_server(model, log, length, own))
                servers.urls[name], servers.pids[name] = url, pid
        yield
