"""Which user of this machine is behind a connection over loopback.

A proxy that hides itself, such as nginx's `proxy_pass` over HTTP/1.1, looks like any program here;
but it runs as a user of its own. Linux lists the user of every TCP socket in `/proc/net/tcp`.
"""

import ipaddress
import os
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = 0
TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))

Endpoint = tuple[str, int | None]
"""A socket without a port has none: it is no TCP socket."""


def is_foreign(client: Endpoint, server: Endpoint) -> bool:
    """Return whether another user than this process's, or root, opened the connection.

    Root may do everything on the machine anyway, and forwards ports of virtual machines. False
    where the system does not tell.
    """
    user = user_of(client, server)
    return user is not None and user not in (os.getuid(), ROOT)


def user_of(client: Endpoint, server: Endpoint) -> int | None:
    """Return the user id of the socket at `client` of a connection to `server`; None if unknown."""
    wanted = {
        (here, there)
        for here in endpoints(*client)
        for there in endpoints(*server)
        if len(here) == len(there)
    }
    for table in TABLES:
        try:
            lines = table.read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            # Fields: number, local address, remote address, state, queues, timer, retries, user.
            fields = line.split()
            if (fields[1], fields[2]) in wanted:
                return int(fields[7])
    return None


def endpoints(host: str, port: int | None) -> Iterator[str]:
    """Yield how the tables write an endpoint: in IPv4, and as IPv6 sockets have it."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return
    if port is None:
        return
    mapped = getattr(address, "ipv4_mapped", None) or address
    if mapped.version == 4:
        yield f"{in_words(mapped.packed)}:{port:04X}"
        address = ipaddress.IPv6Address(f"::ffff:{mapped}")
    yield f"{in_words(address.packed)}:{port:04X}"


def in_words(packed: bytes) -> str:
    """Return an address as the kernel prints it: words of 32 bits in the machine's byte order."""
    words = (packed[i : i + 4] for i in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
