"""`tuneloop up` as a child process: for the demo, benchmarks, notebooks and end-to-end tests."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from tuneloop.errors import Unavailable


class ServiceChild:
    """Starts the whole service on entering a `with` block and stops it cleanly on leaving."""

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir
        self._port = port
        self.url = f"http://127.0.0.1:{port}"
        self.log_path = data_dir / "up.log"
        binary = str(Path(sys.executable).with_name("tuneloop"))
        self._command = [binary, "up", "--data-dir", str(data_dir), "--port", str(port), *arguments]
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "ServiceChild":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start; returns at once. Raises as `require_port`."""
        self.require_port()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log
            )

    def require_port(self) -> None:
        """Raise `Unavailable` if another program has the port.

        `tuneloop up` says so too, but later: until then the other's answers would pass for its own.
        """
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                raise Unavailable(f"port {self._port} is taken by another program; stop that one")

    def stop(self) -> int | None:
        """Stop as Ctrl-C would; return the exit status, or None if it was not running."""
        if self._process is None:
            return None
        self._process.send_signal(signal.SIGINT)
        try:
            return self._process.wait(timeout=60)
        finally:
            self._process.kill()
            self._process = None

    def wait_until_ready(self, seconds: float = 300) -> None:
        """Wait until a chat would be answered. Raises `Unavailable` with the end of the log."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._running():
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.25)
        tail = self.log_path.read_text(errors="replace")[-4000:]
        raise Unavailable(f"the service is not ready; the end of {self.log_path}:\n{tail}")

    def run_state(self) -> dict[str, Any]:
        """Return the state of the processes, ids, ports and addresses, from `run.json`."""
        state: dict[str, Any] = json.loads((self.data_dir / "run.json").read_text())
        return state

    def _running(self) -> bool:
        return self._process is not None and self._process.poll() is None
