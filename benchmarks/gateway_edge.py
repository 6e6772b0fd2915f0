"""The gateway by itself: its process, a nats-server that syncs every message, paced generation."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.loop import free_port
from tuneloop.supervisor import nats

SECRET = "a secret for benchmarks only"
FIRST_SECONDS, PACE_SECONDS = 0.05, 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """Where its parts listen."""

    url: str
    generation_address: str
    nats_url: str
    secret: bytes
    """What the gateway signs completion ids with."""


@contextlib.contextmanager
def process(
    command: Sequence[str], environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the block ends; its log goes to ours."""
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, **(environment or {})}
    )
    try:
        yield child
    finally:
        child.terminate()
        child.wait(timeout=30)


@contextlib.contextmanager
def edge() -> Iterator[Edge]:
    """Start the three processes, and stop them in the end."""
    nats_port, port = free_port(), free_port()
    paced = [sys.executable, "-m", "benchmarks.paced_generation"]
    paced += ["--first", str(FIRST_SECONDS), "--pace", str(PACE_SECONDS)]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = nats.write_config(folder, port=nats_port)
        log = str(folder / "nats.log")
        stack.enter_context(
            process([str(nats.find_binary(None)), "--config", str(config), "--log", log])
        )
        generation = stack.enter_context(process(paced))
        assert generation.stdout is not None
        address = f"127.0.0.1:{int(generation.stdout.readline())}"
        environment = {
            "TUNELOOP_GATEWAY_PORT": str(port),
            "TUNELOOP_GATEWAY_SECRET": SECRET,
            "TUNELOOP_GATEWAY_GENERATION_ADDRESS": address,
            "TUNELOOP_GATEWAY_NATS_URL": f"nats://127.0.0.1:{nats_port}",
            "TUNELOOP_LOG_LEVEL": "WARNING",
        }
        gateway = [sys.executable, "-c", "from tuneloop.gateway.main import main; main()"]
        stack.enter_context(process(gateway, environment))
        ready = Edge(
            url=f"http://127.0.0.1:{port}",
            generation_address=address,
            nats_url=environment["TUNELOOP_GATEWAY_NATS_URL"],
            secret=SECRET.encode(),
        )
        wait_until_ready(ready.url)
        yield ready


def wait_until_ready(url: str, seconds: float = 60) -> None:
    """Until the gateway reaches generation and the bus; raises `TimeoutError`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz").json().get("feedback") == "accepted":
                return
        time.sleep(0.1)
    raise TimeoutError(f"the gateway at {url} is not ready")
