"""TCP ports: whether one is free, and which to take; and which addresses are this machine's."""

import asyncio
import errno
import fcntl
import ipaddress
import logging
import os
import socket
import tempfile
import time
from pathlib import Path

from tuneloop.errors import SettingsError

logger = logging.getLogger("tuneloop.ports")

GRPC_PORTS = {"generation": 15051, "reward": 15052, "learner": 15053}
"""Below 32768, from which Linux takes the ports of outgoing connections."""
METRICS_PORTS = {"generation": 9101, "reward": 9102, "learner": 9103}
RELEASE_SECONDS = 75.0
"""The kernel keeps a connection's port for a minute after its end (TIME_WAIT)."""

_reserved: dict[int, int] = {}
"""Open lock files, by port."""
RELEASE_INTERVAL = 0.25


def local_address(process: str) -> str:
    """Return where a process of this machine serves gRPC, unless it is told otherwise."""
    return f"127.0.0.1:{GRPC_PORTS[process]}"


async def wait_until_released(host: str, port: int) -> None:
    """Wait while an outgoing connection holds a port, or a closed one still does.

    Linux takes ports from 32768 up for outgoing connections, including one that a service listened
    on until a moment ago. Returns at once if another program listens on the port, and after
    `RELEASE_SECONDS` in any case: binding will report what is wrong.
    """
    deadline = time.monotonic() + RELEASE_SECONDS
    said = False
    while time.monotonic() < deadline and is_held(host, port):
        if await asyncio.to_thread(is_listened_on, host, port):
            return
        if not said:
            logger.warning("port %d is held by a connection; waiting until it is free", port)
            said = True
        await asyncio.sleep(RELEASE_INTERVAL)


def is_free(host: str, port: int) -> bool:
    """Return whether this process could listen on `host:port` now."""
    return binding_error(host, port) is None


def is_held(host: str, port: int) -> bool:
    """Return whether another process has the port, at an address of this machine."""
    error = binding_error(host, port)
    return error is not None and error.errno == errno.EADDRINUSE


def binding_error(host: str, port: int) -> OSError | None:
    """Return the error of binding as a server does, or None if it works."""
    with socket.socket(family_of(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None


def is_listened_on(host: str, port: int) -> bool:
    """Return whether a connection is accepted. Raises `socket.gaierror` for an unknown host."""
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM
    ):
        with socket.socket(family, kind, protocol) as probe:
            probe.settimeout(2)
            if probe.connect_ex(address) == 0:
                return True
    return False


def take_port(host: str, preferred: int, taken: set[int]) -> int:
    """Return `preferred` if it is free, else any free port, and add it to `taken`."""
    port = preferred
    while port in taken or not (is_free(host, port) and reserve(port)):
        with socket.socket(family_of(host)) as probe:
            probe.bind((host, 0))
            port = int(probe.getsockname()[1])
    taken.add(port)
    return port


def reserve(port: int) -> bool:
    """Reserve a port until this process ends; return False if another service has reserved it.

    Seconds pass between the choice of a port and the moment a process listens on it, and another
    service may start meanwhile.
    """
    if port in _reserved:
        return True
    path = Path(tempfile.gettempdir()) / f"tuneloop-port-{port}.lock"
    try:
        lock = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError:
        return True  # Another user's: only listening shows whether the port is taken.
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return False
    _reserved[port] = lock
    return True


def require_free(host: str, port: int) -> None:
    """Raise `SettingsError` saying what to do if the gateway's port is taken."""
    if is_free(host, port):
        return
    try:
        taken = is_listened_on(host, port)
    except socket.gaierror as error:
        raise SettingsError(f"host {host!r}: {error.strerror}", param="host") from error
    if not taken:
        raise SettingsError(
            f"cannot listen on {host}:{port}: not an address of this machine, a privileged port, "
            "or one that another program holds; choose another with --host and --port",
            param="port",
        )
    raise SettingsError(
        f"port {port} on {host} is taken by another program; stop that one, or choose another "
        f"port: tuneloop up --port {port + 1}",
        param="port",
    )


def family_of(host: str) -> socket.AddressFamily:
    """Return IPv6 for literal IPv6 addresses, else IPv4."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
