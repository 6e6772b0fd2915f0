"""nats-server with a configuration of one's own, and certificates made on the spot."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import trustme


@dataclass
class Server:
    """A nats-server; `kill` is kill -9."""

    config: Path
    port: int
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        binary = Path(sys.executable).with_name("nats-server")
        log = self.config.with_suffix(".log").open("ab")
        self.process = subprocess.Popen(
            [str(binary), "-c", str(self.config)],
            stdout=log,
            stderr=log,
            env={**os.environ, **self.environment},
        )

    def wait(self) -> None:
        """Until it accepts connections."""
        for _ in range(400):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise RuntimeError(self.config.with_suffix(".log").read_text())

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """PEM files."""

    ca: Path
    cert: Path
    key: Path


def make_certificate(authority: trustme.CA, folder: Path, *names: str) -> Certificate:
    """A certificate for hosts and addresses, and the authority's own."""
    folder.mkdir(parents=True, exist_ok=True)
    issued = authority.issue_cert(*names)
    made = Certificate(ca=folder / "ca.crt", cert=folder / "tls.crt", key=folder / "tls.key")
    authority.cert_pem.write_to_path(str(made.ca))
    issued.private_key_pem.write_to_path(str(made.key))
    made.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return made
