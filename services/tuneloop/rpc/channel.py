"""Channels to the services."""

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import grpc

from tuneloop.rpc.access import AUTHORIZATION, BEARER
from tuneloop.rpc.settings import RpcSettings
from tuneloop.rpc.tls import Tls
from tuneloop.rpc.tracing import client_interceptors

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
SERVICE_CONFIG = json.dumps(
    {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}
)
"""Calls go to the serving replicas in turn. A replica that is about to stop first reports that it
is not serving (see `tuneloop.rpc.server`), so that no call reaches it."""
SESSION_HEADER = "tuneloop-session"
SESSION_SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [
            {"ring_hash_experimental": {"requestHashHeader": SESSION_HEADER}},
            {"round_robin": {}},
        ],
        "healthCheckConfig": {"serviceName": ""},
    }
)
"""Calls go to the serving replica that comes first on a ring of hashes from that of their session
(gRFC A42), so that a replica that leaves or comes moves its own sessions and no others. A release
of gRPC without such rings takes replicas in turn."""
RING_HASH_VARIABLE = "GRPC_EXPERIMENTAL_RING_HASH_SET_REQUEST_HASH_KEY"
"""Without it gRPC takes hashes from an xDS control plane only, and not from a header (gRFC A76)."""
RECONNECT_SECONDS = 3.0
"""How long a channel takes to notice that a peer is back: the longest back-off plus its jitter."""


OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A peer that vanished silently is noticed after half a minute, not after hours.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # gRPC 1.85 waits so long for the answer to a ping: a minute by default, whatever is said above.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.service_config", SERVICE_CONFIG),
    # Without a retry policy only calls that no server has seen are retried. Anything else is the
    # caller's decision, as a generation sent twice is two rollouts.
    ("grpc.enable_retries", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    # Despite its name, how long connecting may take: a busy peer answers slowly.
    ("grpc.min_reconnect_backoff_ms", 10_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


def connect(
    address: str,
    tls: Tls | None = None,
    *,
    name: str | None = None,
    token: str = "",
    by_session: bool = False,
) -> grpc.aio.Channel:
    """Open a channel to `host:port` (or any gRPC target, such as `dns:///name:port` for replicas).

    With `tls` the server must have a certificate for that host, or for `name`. Every call carries
    the `token`, if there is one. Calls go to the replicas in turn; `by_session` sends those with
    the same `session_metadata` to the same one.

    Returns at once; calls fail with UNAVAILABLE until a server listens. Call it inside a running
    event loop.
    """
    changed: dict[str, int | str] = {}
    if name is not None:
        changed["grpc.ssl_target_name_override"] = name
    if by_session:
        os.environ[RING_HASH_VARIABLE] = "true"
        changed["grpc.service_config"] = SESSION_SERVICE_CONFIG
    options = tuple((dict(OPTIONS) | changed).items())
    interceptors = [*client_interceptors(), *(token_interceptors(token) if token else ())]
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options, interceptors=interceptors)
    return grpc.aio.secure_channel(
        address, tls.channel_credentials(), options=options, interceptors=interceptors
    )


def connect_to(
    settings: RpcSettings, address: str, *, by_session: bool = False
) -> grpc.aio.Channel:
    """Open a channel as a process's settings say. Raises `SettingsError`."""
    return connect(address, settings.grpc_tls, token=settings.grpc_token, by_session=by_session)


def session_metadata(session_id: str) -> tuple[tuple[str, str], ...]:
    """Return what a call of a session carries: a digest, as an id may be any text."""
    digest = hashlib.blake2b(session_id.encode(errors="surrogatepass"), digest_size=16)
    return ((SESSION_HEADER, digest.hexdigest()),)


def may_have_replicas(address: str) -> bool:
    """Return whether a target may stand for several servers."""
    return address.startswith("dns:") or "," in address


class UnaryCalls(grpc.aio.UnaryUnaryClientInterceptor):
    """Adds a token to calls that return one answer."""

    def __init__(self, token: str) -> None:
        self.token = token

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        """Call with the token."""
        return await continuation(with_token(details, self.token), request)


class StreamedCalls(grpc.aio.UnaryStreamClientInterceptor):
    """Adds a token to calls that return a stream."""

    def __init__(self, token: str) -> None:
        self.token = token

    async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        """Call with the token."""
        return await continuation(with_token(details, self.token), request)


def token_interceptors(token: str) -> Sequence[grpc.aio.ClientInterceptor]:
    """Return the interceptors with which a channel sends a token.

    gRPC's own credentials for that work with TLS only.
    """
    return (UnaryCalls(token), StreamedCalls(token))


def with_token(details: Any, token: str) -> Any:
    """Return the details of a call with a token in its metadata."""
    metadata = grpc.aio.Metadata(*(details.metadata or ()))
    metadata.add(AUTHORIZATION, f"{BEARER}{token}")
    return details._replace(metadata=metadata)


async def wait_until_connected(channel: grpc.aio.Channel) -> None:
    """Wait for a connection that was lost and may be back in a moment.

    Until then calls fail at once, although the peer may be serving. Returns after
    `RECONNECT_SECONDS` in any case: the call will report what is wrong.
    """
    if channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY:
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(RECONNECT_SECONDS):
            await channel.channel_ready()
