"""The data folder: its layout, its keys, and that only one supervisor uses it at a time."""

import contextlib
import fcntl
import json
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from tuneloop.errors import FailedPrecondition, SettingsError
from tuneloop.files import write_file
from tuneloop.gateway.keys.store import FILE_NAME
from tuneloop.policies import WeightsKind
from tuneloop.weights.shapes import base_model_sha256
from tuneloop.weights.signing import write_key_pair

LOCK_WAIT_SECONDS = 5.0
SECRET_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class DataDir:
    """Paths under the data folder; all absolute."""

    root: Path

    @property
    def nats(self) -> Path:
        """JetStream's files and configuration."""
        return self.root / "nats"

    @property
    def keys(self) -> Path:
        """Signing keys and the gateway's secret; readable by the owner only."""
        return self.root / "keys"

    @property
    def private_key(self) -> Path:
        """Signs manifests."""
        return self.keys / "manifest_private.pem"

    @property
    def public_key(self) -> Path:
        """Verifies manifests."""
        return self.keys / "manifest_public.pem"

    @property
    def gateway_secret(self) -> Path:
        """Signs completion ids."""
        return self.keys / "gateway_secret"

    @property
    def nats_password(self) -> Path:
        """Opens the nats-server to the processes, and to no other user of the machine."""
        return self.keys / "nats_password"

    @property
    def grpc_token(self) -> Path:
        """The same for gRPC among the processes."""
        return self.keys / "grpc_token"

    @property
    def api_keys(self) -> Path:
        """Hashes of the keys that `tuneloop keys` created."""
        return self.keys / FILE_NAME

    @property
    def weights(self) -> Path:
        """The weight store."""
        return self.root / "weights"

    @property
    def weights_cache(self) -> Path:
        """Verified copies of versions."""
        return self.root / "weights-cache"

    @property
    def learner(self) -> Path:
        """Ledger and checkpoints."""
        return self.root / "learner"

    @property
    def logs(self) -> Path:
        """One log per process."""
        return self.root / "logs"

    @property
    def run_file(self) -> Path:
        """The running processes: ids, ports, addresses."""
        return self.root / "run.json"

    @property
    def model_file(self) -> Path:
        """The model that everything here belongs to."""
        return self.root / "model.json"


def open_data_dir(path: Path) -> DataDir:
    """Create missing folders and keys. Raises `SettingsError` if that fails."""
    data = DataDir(root=path.expanduser().absolute())
    with contextlib.suppress(OSError):  # A mounted folder may belong to somebody else.
        data.root.chmod(0o700)
    try:
        for folder in (data.nats, data.weights, data.weights_cache, data.learner, data.logs):
            folder.mkdir(parents=True, exist_ok=True)
        data.keys.mkdir(mode=0o700, exist_ok=True)
        write_key_pair(data.keys)
        for secret in (data.gateway_secret, data.nats_password, data.grpc_token):
            if not secret.exists():
                write_file(secret, secrets.token_hex(SECRET_BYTES).encode(), mode=0o600)
    except OSError as error:
        raise SettingsError(f"data folder {data.root}: {error}", param="data_dir") from error
    return data


def lock(path: Path) -> int:
    """Lock the data folder for this process; return the descriptor that holds the lock.

    The lock ends with the last process that has the descriptor: the supervisor and its reaper,
    which outlives it only to kill the processes it left behind. Raises `FailedPrecondition`.
    """
    root = path.expanduser().absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise SettingsError(f"data folder {root}: {error}", param="data_dir") from error
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = int(os.pread(descriptor, 32, 0) or 0)
            # Wait only if the holder is already gone and its processes are being killed.
            if is_alive(holder) or time.monotonic() > deadline:
                os.close(descriptor)
                raise FailedPrecondition(
                    f"tuneloop is already running on {root} (process {holder}); stop it, or "
                    "choose another folder with --data-dir",
                    param="data_dir",
                ) from None
            time.sleep(0.1)
        else:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            return descriptor


def is_alive(pid: int) -> bool:
    """Return whether a process with this id runs."""
    if not pid:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def check_model(data: DataDir, *, folder: Path, name: str, weights: WeightsKind) -> None:
    """Refuse a folder whose versions and samples belong to another model or kind of weights.

    Raises `FailedPrecondition`. In a new folder it records the model.
    """
    found = {"name": name, "sha256": base_model_sha256(folder), "weights": weights.value}
    if not data.model_file.exists():
        write_file(data.model_file, json.dumps(found, indent=2).encode() + b"\n")
        return
    known = json.loads(data.model_file.read_text())
    for key in ("sha256", "weights"):
        if known[key] != found[key]:
            raise FailedPrecondition(
                f"{data.root} holds what {known['name']} ({known['weights']} weights) learned, "
                f"which does not fit {name} ({weights.value} weights): choose another folder with "
                "--data-dir, or the model that this one belongs to with --model and --weights",
                param="data_dir",
            )
