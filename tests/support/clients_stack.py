"""The real gateway over HTTP in front of the real generation service, each a process of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from conftest import NatsServer
from support.engine_helpers import Versions
from support.ports import free_port

ENDPOINTS = ("/v1/chat/completions", "/v1/completions")
STARTED_WITHIN = 600.0


@dataclass(frozen=True, kw_only=True)
class ClientStack:
    """Where the two processes listen."""

    url: str
    """Of the gateway; the OpenAI endpoints are under `/v1`."""
    generation_address: str
    """host:port of gRPC."""
    nats: NatsServer


@contextmanager
def running_stack(model: Path, root: Path, engine: str) -> Iterator[ClientStack]:
    """Both processes and the NATS server that they need; `root` gets their logs."""
    nats = NatsServer(data_dir=root, port=free_port())
    nats.start()
    versions = Versions(root, model)
    generation_port, gateway_port = free_port(), free_port()
    generation = {
        "PORT": generation_port,
        "METRICS_PORT": free_port(),
        "MODEL": model,
        "ENGINE": engine,
        "TOOL_PARSER": "hermes",
        "NATS_URL": nats.url,
        "WEIGHTS_URI": versions.uri,
        "WEIGHTS_CACHE_DIR": versions.cache_dir,
        "VERIFY_KEY_FILE": versions.verify_key_file,
        "THREADS": 1,
        "KV_CACHE_GIB": 0.1,
        "DRAIN_SECONDS": 0.5,
    }
    gateway = {
        "PORT": gateway_port,
        "GENERATION_ADDRESS": f"127.0.0.1:{generation_port}",
        "NATS_URL": nats.url,
        "SECRET": "a secret for tests only",
        "DEFAULT_MAX_TOKENS": 400,
    }
    processes = [
        start("generation", generation, root),
        start("gateway", gateway, root),
    ]
    url = f"http://127.0.0.1:{gateway_port}"
    try:
        wait_until_it_answers(url, processes, root)
        address = f"127.0.0.1:{generation_port}"
        yield ClientStack(url=url, generation_address=address, nats=nats)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)
        nats.kill()


def start(name: str, settings: dict[str, object], root: Path) -> subprocess.Popen[bytes]:
    values = {f"TUNELOOP_{name.upper()}_{key}": str(value) for key, value in settings.items()}
    return subprocess.Popen(
        [sys.executable, "-m", f"tuneloop.{name}.main"],
        env=os.environ | values,
        stderr=(root / f"{name}.log").open("wb"),
    )


def wait_until_it_answers(url: str, processes: list[subprocess.Popen[bytes]], root: Path) -> None:
    deadline = time.monotonic() + STARTED_WITHIN
    while time.monotonic() < deadline:
        ended = [p for p in processes if p.poll() is not None]
        assert not ended, "".join(log.read_text() for log in root.glob("*.log"))
        try:
            if httpx.get(f"{url}/v1/models", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise TimeoutError("".join(log.read_text() for log in root.glob("*.log")))
