"""TCP ports: whether one is free, and which to take."""

import socket

from tuneloop.errors import SettingsError


def is_free(host: str, port: int) -> bool:
    """Whether this process could listen on `host:port` now."""
    with socket.socket(family_of(host)) as probe:
        # As servers do: a port in TIME_WAIT is free, one that is listened on is not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def take(host: str, preferred: int, taken: set[int]) -> int:
    """`preferred` if it is free, else any free port; the answer is added to `taken`."""
    port = preferred
    while port in taken or not is_free(host, port):
        with socket.socket(family_of(host)) as probe:
            probe.bind((host, 0))
            port = int(probe.getsockname()[1])
    taken.add(port)
    return port


def require_free(host: str, port: int) -> None:
    """Raise `SettingsError` that says what to do when the gateway's port is taken."""
    if is_free(host, port):
        return
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise SettingsError(f"host {host!r}: {error.strerror}", param="host") from error
    for family, kind, protocol, _, address in addresses:
        with socket.socket(family, kind, protocol) as probe:
            probe.settimeout(2)
            if probe.connect_ex(address) == 0:
                break
    else:
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
    """IPv6 for literal IPv6 addresses, else IPv4."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET
