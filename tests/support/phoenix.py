"""A real Arize Phoenix, which collects OpenTelemetry's spans, in an environment of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from support.e2e_client import wait_until
from support.ports import free_port

VERSION = "20.26.1"
FOLDER = Path(__file__).parents[2] / "build" / f"phoenix-{VERSION}"


def install() -> Path:
    """Install it where that was not done; return its folder."""
    done = FOLDER / "installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", FOLDER], check=True)
        pip = [FOLDER / "bin" / "python", "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, f"arize-phoenix=={VERSION}"], check=True)
        done.touch()
    return FOLDER


@dataclass(frozen=True)
class Phoenix:
    """The running program; spans are sent to its `url`."""

    url: str

    def spans(self, project: str) -> list[dict[str, Any]]:
        """Read all spans that it keeps of a project, page by page, the newest first."""
        spans: list[dict[str, Any]] = []
        cursor = None
        while True:
            query = {"limit": "100"} | ({"cursor": cursor} if cursor else {})
            page = httpx.get(f"{self.url}/v1/projects/{project}/spans", params=query, timeout=30)
            page.raise_for_status()
            spans += page.json()["data"]
            cursor = page.json()["next_cursor"]
            if cursor is None:
                return spans


@contextmanager
def running(data_dir: Path) -> Iterator[Phoenix]:
    """Start it on free ports, with no network to use; it is ready there."""
    folder, port = install(), free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(data_dir),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(free_port()),
        "PHOENIX_WORKING_DIR": str(data_dir),
        "PHOENIX_TELEMETRY_ENABLED": "false",
        "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
        "PHOENIX_DISABLE_AGENT_ASSISTANT": "true",
    }
    with (data_dir / "phoenix.log").open("ab") as output:
        process = subprocess.Popen(
            [folder / "bin" / "phoenix", "serve"],
            env=environment,
            cwd=data_dir,
            stdout=output,
            stderr=output,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: httpx.get(f"{url}/readyz", timeout=5).is_success, "Phoenix is ready")
        yield Phoenix(url)
    finally:
        process.terminate()
        process.wait(timeout=30)
