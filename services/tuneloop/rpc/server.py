"""A gRPC server with health, error statuses, metrics and graceful shutdown.

On loopback it has reflection too, for tools such as grpcurl.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from tuneloop.errors import SettingsError
from tuneloop.ports import is_loopback, wait_until_released
from tuneloop.rpc.access import AccessControl, Peers
from tuneloop.rpc.channel import MAX_MESSAGE_BYTES
from tuneloop.rpc.interceptors import ErrorInterceptor
from tuneloop.rpc.tls import Tls
from tuneloop.rpc.tracing import server_interceptors

logger = logging.getLogger("tuneloop.rpc")

CONNECTION_AGE_SECONDS = 300.0
"""After this a client is asked to reconnect: it resolves its target's name again, and finds
replicas that were added since. Calls in flight finish on the old connection."""
NOTICE_SECONDS = 0.25
"""Between reporting NOT_SERVING and refusing calls: clients must have noticed, and the calls that
they had sent must have arrived."""


class Health(health_aio.HealthServicer):  # type: ignore[misc]
    """The health service, which counts its watchers."""

    def __init__(self) -> None:
        super().__init__()
        self.watchers = 0

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        """Report every change, until the client disconnects."""
        self.watchers += 1
        try:
            await super().Watch(request, context)
        finally:
            self.watchers -= 1


class Server:
    """Add services, `start`, `set_serving(True)` when ready, `stop` to drain."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        tls: Tls | None = None,
        peers: Peers | None = None,
        token: str = "",
        drain_seconds: float = 10.0,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        connection_age_seconds: float = CONNECTION_AGE_SECONDS,
    ) -> None:
        """`peers` are the names of clients' certificates, where `tls` demands one.

        With a `token` every call must have it.
        """
        self._host = host
        self._wanted_port = port
        self._tls = tls
        self._drain_seconds = drain_seconds
        self._names: list[str] = []
        self._health = Health()
        certified = tls is not None and tls.ca is not None
        access = AccessControl(token=token, certified=certified, peers=peers)
        self._server = grpc.aio.server(
            interceptors=[*server_interceptors(), ErrorInterceptor(access)],
            options=[
                ("grpc.max_send_message_length", max_message_bytes),
                ("grpc.max_receive_message_length", max_message_bytes),
                # Two processes on one port must be an error, not a lottery between them.
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.http2.ping_timeout_ms", 20_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.http2.max_ping_strikes", 0),
                ("grpc.max_connection_age_ms", int(connection_age_seconds * 1000)),
            ],
        )
        self.port = 0
        """The port bound, once started."""

    def add(self, register: Callable[[Any, grpc.aio.Server], None], servicer: Any) -> None:
        """Add a servicer with the `add_…Servicer_to_server` function of its stub."""
        register(servicer, self._server)
        names = {
            base.__name__.removesuffix("Servicer")
            for base in type(servicer).__mro__
            if base.__module__.startswith("tuneloop.v1.") and base.__name__.endswith("Servicer")
        }
        self._names += [f"tuneloop.v1.{name}" for name in sorted(names)]

    async def start(self) -> int:
        """Listen, while health checks still report NOT_SERVING; return the port.

        Raises `SettingsError` if the port is taken or the host is not this machine's.
        """
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if is_loopback(self._host):
            health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
            names = (*self._names, health_name, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        await self.set_serving(False)
        address = f"{self._host}:{self._wanted_port}"
        if self._wanted_port:
            await wait_until_released(self._host.strip("[]"), self._wanted_port)
        try:
            self.port = self._bind(address)
        except RuntimeError as error:
            raise SettingsError(
                f"cannot listen on {address}: is it taken?", param="port"
            ) from error
        await self._server.start()
        logger.info("gRPC on %s:%d: %s", self._host, self.port, ", ".join(self._names))
        return self.port

    def _bind(self, address: str) -> int:
        if self._tls is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, self._tls.server_credentials())

    async def set_serving(self, serving: bool, service: str | None = None) -> None:
        """Set what health checks report for `service`, or for the server and all its services."""
        status = health_pb2.HealthCheckResponse
        for name in ("", *self._names) if service is None else (service,):
            await self._health.set(name, status.SERVING if serving else status.NOT_SERVING)

    async def stop(self) -> None:
        """Send clients elsewhere, give calls in flight `drain_seconds` to end, then cancel them."""
        await self._health.enter_graceful_shutdown()
        if self._health.watchers:
            await asyncio.sleep(NOTICE_SECONDS)
        await self._server.stop(self._drain_seconds)
