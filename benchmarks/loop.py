"""The loop and its price: from thumb to new weights serving, and throughput against vLLM itself.

    python -m benchmarks.loop [--rounds 4] [--model smollm2-135m-instruct]

Starts `tuneloop up` and vLLM's own OpenAI server on the same model with the same engine settings,
in one run on one machine. Measures in turn (A B A B …), so that drift of the machine cancels out:

* tokens/s at 8 and at 32 concurrent streams through each, and the ratio pair by pair;
* seconds from the acknowledgement of the last of sixteen thumbs to the first moment at which the
  version that used it serves.

Writes benchmarks/results/loop-<device>.json and prints a table.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.load import LoadResult, load
from tuneloop.generation.vllm.environment import prepare_environment
from tuneloop.models.resolve import resolve
from tuneloop.supervisor.child import ServiceChild

console = Console()
RESULTS = Path(__file__).parent / "results"


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
def vllm_server(model: Path, log_path: Path, max_model_len: int) -> Iterator[str]:
    """vLLM's own OpenAI server with the settings the generation service gives its engine."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "tuneloop", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--max-model-len", str(max_model_len)]
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
        yield f"http://127.0.0.1:{port}"
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


def throughput(
    service: ServiceChild, theirs: str, *, rounds: int, max_tokens: int
) -> list[dict[str, Any]]:
    """Pairs of runs at 8 and 32 streams, in turn."""
    ours = service.url
    rows = []
    for streams in (8, 32):
        for base_url in (ours, theirs):
            asyncio.run(load(base_url, streams=streams, requests=streams, max_tokens=16))
        pairs: list[tuple[LoadResult, LoadResult]] = []
        for number in range(rounds):
            order = (ours, theirs) if number % 2 == 0 else (theirs, ours)
            seen = {}
            for base_url in order:
                settle(service)
                seen[base_url] = asyncio.run(
                    load(base_url, streams=streams, requests=2 * streams, max_tokens=max_tokens)
                )
            pairs.append((seen[ours], seen[theirs]))
            console.print(
                f"{streams} streams: tuneloop {seen[ours].tokens_per_second:.1f} tok/s, "
                f"vLLM's server {seen[theirs].tokens_per_second:.1f} tok/s"
            )
        rows.append(throughput_row(streams, pairs))
    return rows


def throughput_row(streams: int, pairs: list[tuple[LoadResult, LoadResult]]) -> dict[str, Any]:
    """Medians over the pairs, and the ratio pair by pair."""
    ratios = sorted(a.tokens_per_second / b.tokens_per_second for a, b in pairs)
    return {
        "streams": streams,
        "tuneloop_tokens_per_second": statistics.median(a.tokens_per_second for a, _ in pairs),
        "vllm_tokens_per_second": statistics.median(b.tokens_per_second for _, b in pairs),
        "ratio_median": statistics.median(ratios),
        "ratio_min": ratios[0],
        "ratio_max": ratios[-1],
        "tuneloop_first_token_seconds_p50": statistics.median(
            a.first_token_seconds_p50 for a, _ in pairs
        ),
        "vllm_first_token_seconds_p50": statistics.median(
            b.first_token_seconds_p50 for _, b in pairs
        ),
        "failed": sum(a.failed + b.failed for a, b in pairs),
    }


async def feedback_to_serving(base_url: str, *, rounds: int) -> list[float]:
    """Seconds from the last thumb's 202 to the version that used it serving."""
    seconds = []
    async with httpx.AsyncClient(base_url=base_url, timeout=300) as client:
        for number in range(rounds):
            ids = await asyncio.gather(*(answer_id(client, number * 16 + i) for i in range(16)))
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


async def answer_id(client: httpx.AsyncClient, seed: int) -> str:
    body = {
        "model": "tuneloop",
        "messages": [{"role": "user", "content": f"Tell me something about the number {seed}."}],
        "max_tokens": 64,
        "seed": seed,
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


def report(result: dict[str, Any]) -> None:
    """The figures as tables."""
    rates = Table(title=f"Throughput, {result['model']}, {result['device']}")
    columns = ("streams", "tuneloop tok/s", "vLLM's server tok/s", "ratio", "min – max", "failed")
    for column in columns:
        rates.add_column(column, justify="right")
    for row in result["throughput"]:
        rates.add_row(
            str(row["streams"]),
            f"{row['tuneloop_tokens_per_second']:.1f}",
            f"{row['vllm_tokens_per_second']:.1f}",
            f"{row['ratio_median']:.3f}",
            f"{row['ratio_min']:.3f} – {row['ratio_max']:.3f}",
            str(row["failed"]),
        )
    console.print(rates)
    seconds = result["feedback_to_serving_seconds"]
    console.print(
        f"16 thumbs accepted to the version that used them serving: "
        f"median {statistics.median(seconds):.1f} s, longest {max(seconds):.1f} s"
    )


def main() -> int:
    """Run everything and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--max-model-len", type=int, default=2048)
    arguments = parser.parse_args()
    # Threads and OpenMP library: the same for both servers, since both inherit them.
    prepare_environment(threads=0)
    cache_dir = Path(os.environ.get("TUNELOOP_CACHE_DIR", Path.home() / ".cache" / "tuneloop"))
    model = resolve(arguments.model, cache_dir)
    settings = {
        "TUNELOOP_GENERATION_MAX_MODEL_LEN": str(arguments.max_model_len),
        "TUNELOOP_LEARNER_POLICY_GRADIENT": "off",
    }
    with tempfile.TemporaryDirectory() as scratch:
        data_dir = Path(scratch) / "data"
        service = ServiceChild(
            data_dir, port=free_port(), arguments=["--model", str(model)], environment=settings
        )
        with service:
            service.wait_until_ready()
            log_path = Path(scratch) / "vllm.log"
            with vllm_server(model, log_path, arguments.max_model_len) as theirs:
                rows = throughput(
                    service, theirs, rounds=arguments.rounds, max_tokens=arguments.max_tokens
                )
            seconds = asyncio.run(feedback_to_serving(service.url, rounds=arguments.rounds))
    figures = {"throughput": rows, "feedback_to_serving_seconds": seconds}
    report(write_result("loop", arguments.model, figures))
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
