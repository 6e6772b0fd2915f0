"""`tuneloop-healthcheck PROCESS`: status 0 while the process beside it serves, for containers.

The gateway is asked over HTTP whether a chat would be answered; the others for their gRPC health,
with their own TLS (`tuneloop.rpc.probe`). The port is the one the process was given in the
environment.
"""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial

from tuneloop.errors import SettingsError
from tuneloop.rpc import probe
from tuneloop.supervisor.probes import Probe, answers_http

LOCAL = "127.0.0.1"
PROCESSES = ("gateway", "generation", "reward", "learner")
READY_PATH = "/readyz"


def main() -> None:
    """Exit with 0 when it serves, 1 when it does not, 2 when it is not known how to ask."""
    try:
        serves = asyncio.run(ask(probe_of(sys.argv[1:], os.environ)))
    except (SettingsError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from error
    raise SystemExit(0 if serves else 1)


async def ask(asking: Probe) -> bool:
    """What the probe says."""
    return await asking()


def probe_of(arguments: Sequence[str], environment: Mapping[str, str]) -> Probe:
    """How to ask the process that is named. Raises `SettingsError`, `ValueError`."""
    if len(arguments) != 1 or arguments[0] not in PROCESSES:
        raise SettingsError(f"usage: tuneloop-healthcheck {'|'.join(PROCESSES)}", param="process")
    name = f"TUNELOOP_{arguments[0].upper()}_PORT"
    port = environment.get(name, "")
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise SettingsError(f"{name}={port!r}: must be the port it listens on", param=name)
    if arguments[0] == "gateway":
        return answers_http(LOCAL, int(port), READY_PATH)
    return partial(probe.serves, probe.settings_of(arguments[0]), int(port))
