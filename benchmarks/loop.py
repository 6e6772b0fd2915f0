"""The loop and its price: from thumb to new weights serving, and throughput against vLLM itself.

    python -m benchmarks.loop [--rounds 5] [--model NAME] [--before FOLDER] [--quick]

Starts `tuneloop up`, vLLM's own OpenAI server without and with an adapter, and the engine by
itself, in one run on one machine, with the same model and the same settings of vLLM. Measures:

* seconds from the acknowledgement of the last of sixteen thumbs to the first moment at which the
  version that used it serves. The last such version is the adapter of all that follows;
* at 8 and at 32 concurrent streams, tokens/s and CPU seconds of every process, stage by stage
  (`loop_stages`): from vLLM's server to all of tuneloop. The stages take turns in each round,
  A B C, then C B A, so that drift of the machine cancels out.

With `--before`, a checkout of an earlier commit, all of that takes turns with the others; so
`--stages learner before` shows what a change costs.

Writes loop-<device>.json and .md into benchmarks/results/. A run that was cut short continues with
what is missing.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from benchmarks.loop_stages import BEFORE, STAGES, Load, Record, measure_missing, missing
from benchmarks.loop_table import stage_rows, table, throughput_rows
from tuneloop.generation.vllm.environment import prepare_environment
from tuneloop.models.resolve import resolve
from tuneloop.supervisor.child import ServiceChild

console = Console()
RESULTS = Path(__file__).parent / "results"
LOADS, QUICK = {8: 3, 32: 2}, {2: 2}
"""Streams, and the chats of each of them."""
FEEDBACK = 3
"""Versions that are waited for."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def device_name() -> str:
    """The GPU's name, or the processor's and its count of cores."""
    with contextlib.suppress(FileNotFoundError, subprocess.CalledProcessError):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.check_output(query, text=True).splitlines()[0].replace(" ", "-").lower()
    return f"cpu-{os.cpu_count()}-cores-{platform.machine()}"


@contextlib.contextmanager
def vllm_server(
    model: Path, log_path: Path, max_model_len: int, options: Sequence[str] = ()
) -> Iterator[tuple[str, int]]:
    """vLLM's own OpenAI server, its URL and process; its engine is as the generation service's."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "tuneloop", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--max-model-len", str(max_model_len), *options]
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1"}
    if not shutil.which("nvidia-smi"):
        command += ["--dtype", "float32", "--enforce-eager"]
        environment |= {"VLLM_CPU_KVCACHE_SPACE": "1"}
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        process.wait(timeout=60)


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Until `url` answers 200; raises `RuntimeError` when the process ends first."""
    while process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=5).status_code == httpx.codes.OK:
                return
        time.sleep(0.5)
    raise RuntimeError(f"the server ended with status {process.returncode}")


def settle(service: ServiceChild) -> None:
    """Until every process is up and scored what came: nothing left over may slow the next run."""
    while not all(p["ready"] for p in service.run_state()["processes"].values()):
        time.sleep(1)
    port = service.run_state()["processes"]["reward"]["metrics_port"]
    scored, seen = -1.0, 0.0
    while scored != seen:
        time.sleep(2)
        scored, seen = seen, counted(port, "tuneloop_reward_rollouts_total")


def counted(port: int, name: str) -> float:
    """A counter of the process whose metrics are at `port`, over all its labels, if it has any."""
    lines = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text.splitlines()
    named = (f"{name}{{", f"{name} ")
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(named))


async def feedback_to_serving(base_url: str, *, rounds: int, max_tokens: int = 64) -> list[float]:
    """Seconds from the last thumb's 202 to the version that used it serving."""
    seconds = []
    async with httpx.AsyncClient(base_url=base_url, timeout=300) as client:
        for number in range(rounds):
            numbers = range(number * 16, (number + 1) * 16)
            ids = await asyncio.gather(*(answer_id(client, n, max_tokens) for n in numbers))
            before = await serving_version(client)
            await asyncio.gather(*(thumb(client, i, up=n % 2 == 0) for n, i in enumerate(ids)))
            accepted = time.perf_counter()
            async with asyncio.timeout(600):
                while await serving_version(client) == before:
                    await asyncio.sleep(0.1)
            seconds.append(time.perf_counter() - accepted)
            console.print(f"feedback to serving, round {number + 1}: {seconds[-1]:.1f} s")
            await idle(client)
    return seconds


async def answer_id(client: httpx.AsyncClient, number: int, max_tokens: int = 64) -> str:
    body = {
        "model": "tuneloop",
        "messages": [{"role": "user", "content": f"Tell me something about the number {number}."}],
        "max_tokens": max_tokens,
    }
    response = await client.post("/v1/chat/completions", json=body)
    response.raise_for_status()
    return str(response.json()["id"])


async def thumb(client: httpx.AsyncClient, completion_id: str, *, up: bool) -> None:
    body = {
        "kind": "thumb",
        "completion_id": completion_id,
        "value": "up" if up else "down",
        "user": f"user-of-{completion_id}",
    }
    (await client.post("/v1/feedback", json=body)).raise_for_status()


async def policies(client: httpx.AsyncClient) -> dict[str, Any]:
    response = await client.get("/v1/policies")
    response.raise_for_status()
    return dict(response.json())


async def serving_version(client: httpx.AsyncClient) -> int:
    return int((await policies(client))["policy_version"])


async def idle(client: httpx.AsyncClient) -> None:
    """Until the learner has nothing left to do, so that rounds do not overlap."""
    async with asyncio.timeout(600):
        while True:
            response = await client.get("/v1/learner")
            response.raise_for_status()
            if response.json()["state"] == "waiting":
                return
            await asyncio.sleep(0.5)


def service_child(
    data_dir: Path, model: Path, settings: Mapping[str, str], checkout: Path | None
) -> ServiceChild:
    """Return all of tuneloop, of this checkout or of another one."""
    environment = dict(settings)
    if checkout is not None:
        folders = ("proto", "services", "learner")
        environment["PYTHONPATH"] = os.pathsep.join(str(checkout.resolve() / f) for f in folders)
    return ServiceChild(
        data_dir, port=free_port(), arguments=["--model", str(model)], environment=environment
    )


def measure_stages(
    record: Record, options: argparse.Namespace, loads: Sequence[Load], scratch: Path
) -> None:
    """Start what the missing measures need, and make them."""
    from benchmarks.loop_servers import Servers, make_adapter, other_servers, served_adapter

    stages = [stage for stage in STAGES if stage.name in options.stages]
    todo = missing(record, stages, loads, options.rounds)
    names = sorted({stage.server for _, _, stage in todo})
    cache_dir = Path(os.environ.get("TUNELOOP_CACHE_DIR", Path.home() / ".cache" / "tuneloop"))
    model = resolve(options.model, cache_dir)
    settings = {
        "TUNELOOP_GENERATION_MAX_MODEL_LEN": str(options.max_model_len),
        "TUNELOOP_LEARNER_POLICY_GRADIENT": "off",
        "TUNELOOP_LEARNER_RELEASE": "off",
    }
    servers = Servers()
    with contextlib.ExitStack() as stack:
        for name in names:
            if name in ("service", BEFORE):
                checkout = options.before if name == BEFORE else None
                child = service_child(scratch / name, model, settings, checkout)
                servers.services[name] = service = stack.enter_context(child)
                service.wait_until_ready()
                settle(service)
                # Where they were measured before, a version is needed all the same.
                rounds = 1
                if name == "service":
                    rounds = max(1, min(FEEDBACK, options.rounds) - len(record.feedback_seconds))
                seconds = asyncio.run(feedback_to_serving(service.url, rounds=rounds))
                if name == "service":
                    record.feedback_seconds += seconds
                    record.save()
                servers.urls[name] = service.url
        if "service" in names:
            adapter = served_adapter(servers.services["service"])
        else:
            adapter = make_adapter(model, scratch / "adapter")
        length = options.max_model_len
        stack.enter_context(other_servers(names, servers, model, adapter, scratch, length))
        measure_missing(servers, record, todo, console.print)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--max-model-len", type=int, default=2048)
    every = [stage.name for stage in STAGES]
    parser.add_argument("--stages", nargs="+", choices=every, default=every)
    parser.add_argument("--streams", type=int, nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--before", type=Path, help="checkout of an earlier commit, to compare")
    parser.add_argument("--quick", action="store_true", help="one short round, for a look")
    parser.add_argument("--again", action="store_true", help="do not continue an earlier run")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    options = parser.parse_args(arguments)
    if options.before is None:
        options.stages = [name for name in options.stages if name != BEFORE]
    chats = {streams: LOADS[streams] for streams in options.streams}
    if options.quick:
        options.rounds, options.max_tokens, chats = 1, 8, QUICK
    loads = [Load(streams=n, chats=c, max_tokens=options.max_tokens) for n, c in chats.items()]
    # Leave nothing running behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # Threads and OpenMP library: the same for all servers, since all inherit them.
    prepare_environment(threads=0)
    path = options.results / f"loop-{device_name()}{'-quick' if options.quick else ''}.json"
    head = {name: getattr(options, name) for name in ("model", "max_tokens", "max_model_len")}
    record = Record(path.with_suffix(".unfinished.json"), head)
    if not options.again:
        record.load()
    with tempfile.TemporaryDirectory() as scratch:
        measure_stages(record, options, loads, Path(scratch))
    figures = {
        "throughput": throughput_rows(record.measures),
        "feedback_to_serving_seconds": record.feedback_seconds,
        "stages": stage_rows(record.measures),
    }
    result = write_result("loop", options.model, figures, path)
    path.with_suffix(".md").write_text(table(result))
    record.path.unlink(missing_ok=True)
    console.print(table(result))
    return 0


def write_result(
    benchmark: str, model: str, figures: dict[str, Any], path: Path | None = None
) -> dict[str, Any]:
    """Write the figures, with device, model and time, to `path`; absent: among the results."""
    result = {
        "device": device_name(),
        "model": model,
        "measured_time": datetime.now(UTC).isoformat(timespec="seconds"),
        **figures,
    }
    path = path or RESULTS / f"{benchmark}-{result['device']}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    console.print(f"written to {path}")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
