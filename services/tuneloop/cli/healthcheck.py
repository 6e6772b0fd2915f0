"""`tuneloop-healthcheck PROCESS`: the health check of a container; status 0 if the process serves.

It asks the gateway over HTTP whether a chat would be answered, and the others for their gRPC health
(`tuneloop.rpc.probe`), at the port that the environment gives the process.
"""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial

from tuneloop.cli.processes import needs
from tuneloop.errors import SettingsError
from tuneloop.supervisor.probes import Probe, answers_http

LOCAL = "127.0.0.1"
PROCESSES = ("gateway", "generation", "reward", "learner")
READY_PATH = "/readyz"


def main() -> None:
    """Exit with 0 if the process serves, 1 if not, 2 if the check cannot tell."""
    try:
        is_serving = asyncio.run(run_probe(probe_of(sys.argv[1:], os.environ)))
    except (SettingsError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from error
    raise SystemExit(0 if is_serving else 1)


async def run_probe(probe: Probe) -> bool:
    """Return what the probe says."""
    return await probe()


def probe_of(arguments: Sequence[str], environment: Mapping[str, str]) -> Probe:
    """Return the probe of the named process. Raises `SettingsError`."""
    if len(arguments) != 1 or arguments[0] not in PROCESSES:
        raise SettingsError(f"usage: tuneloop-healthcheck {'|'.join(PROCESSES)}", param="process")
    name = f"TUNELOOP_{arguments[0].upper()}_PORT"
    port = environment.get(name, "")
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise SettingsError(f"{name}={port!r}: must be the port it listens on", param=name)
    if arguments[0] == "gateway":
        return answers_http(LOCAL, int(port), READY_PATH)
    with needs("serve"):
        from tuneloop.rpc.probe import is_process_serving

    return partial(is_process_serving, arguments[0], int(port))
