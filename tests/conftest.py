"""Fixtures shared by all suites: tiny models, a real nats-server, free ports."""

import gc
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from support.ports import free_port
from support.tiny_models import make_policy, make_reward_model

if TYPE_CHECKING:
    from support.postgres_server import Postgres

    from tuneloop.bus.jetstream import JetStreamBus

# Where files of tests run side by side each takes one core: threads of torch that wait for a core
# spin, and tiny models take ten times as long.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples each time, and none fails because the machine was busy; `make test-all` looks
# for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("exploring", deadline=None)
settings.load_profile("repeatable")


# First, as markers select tests when its own turn comes.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the files with whole services or vLLM: `make test` runs them one after another.

    Where only slow tests of a file have vLLM, only these are marked.
    """
    engines = [item for item in items if item.get_closest_marker("vllm")]
    files = {item.path for item in engines if not item.get_closest_marker("slow")}
    for item in items:
        if item in engines or item.path in files or item.path.parent.name in ("clients", "e2e"):
            item.add_marker("services")


def pytest_collection_finish() -> None:
    """Leave what thousands of tests keep to themselves out of every later garbage collection."""
    gc.freeze()


@pytest.fixture(scope="module")
def free_port_of_module() -> int:
    return free_port()


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random 2-layer Llama with tokenizer and chat template."""
    return make_policy(tmp_path_factory.mktemp("models") / "tiny-policy")


@pytest.fixture(scope="session")
def tiny_reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random 2-layer BERT backbone with tokenizer."""
    return make_reward_model(tmp_path_factory.mktemp("models") / "tiny-reward")


@dataclass
class NatsServer:
    """A real nats-server with JetStream; `kill` and `start` keep its data and port."""

    data_dir: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        config = self.data_dir / "nats.conf"
        store = json.dumps(str(self.data_dir / "jetstream"))
        # Not written through to the disk as in service: a busy disk would fail tests at random, and
        # kill -9 takes nothing from a file that was written.
        config.write_text(f"jetstream {{ store_dir: {store} }}\n")
        binary = Path(sys.executable).with_name("nats-server")
        command = [str(binary), "-a", "127.0.0.1", "-p", str(self.port), "-c", str(config)]
        log = (self.data_dir / "nats.log").open("ab")
        self.process = subprocess.Popen(command, stdout=log, stderr=log)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise RuntimeError((self.data_dir / "nats.log").read_text())

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    data_dir = tmp_path / "nats"
    data_dir.mkdir()
    server = NatsServer(data_dir=data_dir, port=free_port())
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def bus(nats_server: NatsServer) -> "AsyncIterator[JetStreamBus]":
    """A connection of the test's own."""
    from tuneloop.bus.jetstream import JetStreamBus

    connected = await JetStreamBus.connect(nats_server.url, name="test")
    yield connected
    await connected.close()


@pytest.fixture(scope="session")
def postgres() -> "Iterator[Postgres]":
    """A real Postgres, for all tests of a session that ask for it."""
    from support.postgres_server import running_postgres

    with running_postgres() as server:
        yield server
