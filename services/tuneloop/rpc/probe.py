"""Whether a process of this machine serves: `python -m tuneloop.rpc.probe generation`.

For probes of Kubernetes and of compose, which speak no TLS: exit status 0 where the gRPC health
check says SERVING. Reads the port and TLS from that process's settings. Where it demands client
certificates the process's own is shown.
"""

import asyncio
import sys

from cryptography import x509
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from tuneloop.errors import SettingsError
from tuneloop.rpc.channel import connect, is_serving
from tuneloop.rpc.settings import RpcSettings
from tuneloop.rpc.tls import Tls

PORTS = {"generation": 15051, "reward": 15052, "learner": 15053}
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104


class ProbeSettings(RpcSettings):
    """What is needed of a process's settings."""

    model_config = SettingsConfigDict(extra="ignore")

    host: str = Field("127.0.0.1", description="address it listens on")
    port: int = Field(0, description="gRPC port; 0: the process's usual one")


def main() -> None:
    """Exit with 0 where it serves, else with 1."""
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if name not in PORTS:
        sys.stderr.write(f"which process? one of {', '.join(PORTS)}\n")
        raise SystemExit(2)
    try:
        found = settings_of(name)
        serving = asyncio.run(serves(found, found.port or PORTS[name]))
    except (SettingsError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from error
    raise SystemExit(0 if serving else 1)


def settings_of(process: str) -> ProbeSettings:
    """From the environment; raises `ValueError`."""
    # An argument of pydantic-settings that type checkers do not see.
    return ProbeSettings(_env_prefix=f"TUNELOOP_{process.upper()}_")  # type: ignore[call-arg]


async def serves(settings: ProbeSettings, port: int) -> bool:
    """Ask it, by the name in its certificate."""
    host = EVERY_ADDRESS.get(settings.host, settings.host)
    tls = settings.grpc_tls
    if tls is not None and tls.ca is None:
        # It asks for no certificate; whether its own is the one of the settings can be told.
        tls = Tls(ca=tls.cert)
    channel = connect(f"{host}:{port}", tls, name=None if tls is None else name_in(tls))
    try:
        return await is_serving(channel)
    finally:
        await channel.close()


def name_in(tls: Tls) -> str | None:
    """The first DNS name of the certificate."""
    certificate = x509.load_pem_x509_certificates(tls.cert or tls.ca or b"")[0]
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return None
    return next(iter(names.value.get_values_for_type(x509.DNSName)), None)


if __name__ == "__main__":
    main()
