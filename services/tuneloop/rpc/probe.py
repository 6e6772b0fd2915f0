"""The gRPC health check, and `python -m tuneloop.rpc.probe generation`: whether a process serves.

The command is for probes of Kubernetes and compose, which do not speak TLS: exit status 0 if the
health check says SERVING. It reads the port and TLS from that process's settings, and shows the
process's own certificate where client certificates are required.
"""

import asyncio
import sys

import grpc
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from tuneloop.errors import SettingsError
from tuneloop.ports import GRPC_PORTS
from tuneloop.rpc.channel import connect
from tuneloop.rpc.settings import RpcSettings
from tuneloop.rpc.tls import Tls

TIMEOUT_SECONDS = 2.0
LOCAL_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104
"""Where to reach a process of this machine that listens on every address."""


async def is_serving(
    channel: grpc.aio.Channel, service: str = "", seconds: float = TIMEOUT_SECONDS
) -> bool:
    """Return whether `service` (empty: the whole server) says SERVING within `seconds`."""
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=service)
    try:
        response = await stub.Check(request, timeout=seconds)
    except grpc.aio.AioRpcError:
        return False
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


async def is_serving_at(
    address: str,
    tls: Tls | None = None,
    *,
    name: str | None = None,
    seconds: float = TIMEOUT_SECONDS,
) -> bool:
    """Return whether the server at `host:port` says SERVING; see `connect` for `name`."""
    channel = connect(address, tls, name=name)
    try:
        return await is_serving(channel, seconds=seconds)
    finally:
        await channel.close()


class ProbeSettings(RpcSettings):
    """The part of a process's settings that says how to reach it."""

    model_config = SettingsConfigDict(extra="ignore")

    host: str = Field("127.0.0.1", description="address it listens on")
    port: int = Field(0, description="gRPC port; 0: the process's usual one")


def load_settings(process: str) -> ProbeSettings:
    """Read them from the environment. Raises `ValueError`."""
    # An argument of pydantic-settings that type checkers do not see.
    return ProbeSettings(_env_prefix=f"TUNELOOP_{process.upper()}_")  # type: ignore[call-arg]


async def is_process_serving(process: str, port: int = 0) -> bool:
    """Return whether a process of this machine serves, on `port` or on that of its settings.

    Raises `SettingsError`, `ValueError`.
    """
    settings = load_settings(process)
    host = LOCAL_ADDRESS.get(settings.host, settings.host)
    address = f"{host}:{port or settings.port or GRPC_PORTS[process]}"
    tls = settings.grpc_tls
    if tls is None:
        return await is_serving_at(address)
    if tls.ca is None:
        # It requires no client certificate, so expect the certificate of its own settings.
        tls = Tls(ca=tls.cert)
    return await is_serving_at(address, tls, name=name_in(tls))


def name_in(tls: Tls) -> str | None:
    """Return the first DNS name of the certificate."""
    certificate = x509.load_pem_x509_certificates(tls.cert or tls.ca or b"")[0]
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return None
    return next(iter(names.value.get_values_for_type(x509.DNSName)), None)


def main() -> None:
    """Exit with 0 if the process serves, 1 if not, 2 if the probe cannot tell."""
    process = sys.argv[1] if len(sys.argv) == 2 else ""
    if process not in GRPC_PORTS:
        sys.stderr.write(f"which process? one of {', '.join(GRPC_PORTS)}\n")
        raise SystemExit(2)
    try:
        serving = asyncio.run(is_process_serving(process))
    except (SettingsError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from error
    raise SystemExit(0 if serving else 1)


if __name__ == "__main__":
    main()
