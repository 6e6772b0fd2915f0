"""The HTTP application: its routes and its middleware."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from tuneloop import tracing
from tuneloop.bus import Bus
from tuneloop.bus.jetstream import JetStreamBus
from tuneloop.gateway.context import open_gateway
from tuneloop.gateway.edge.authentication import Authentication
from tuneloop.gateway.edge.edge import CLIENT_WENT_AWAY, BodyLimit, Edge, exposed_headers
from tuneloop.gateway.edge.idempotency import Idempotency
from tuneloop.gateway.edge.tracing import Traced
from tuneloop.gateway.errors import install_error_handlers
from tuneloop.gateway.events import feed
from tuneloop.gateway.feedback import browse, routes, signals
from tuneloop.gateway.keys.ring import KeyRing
from tuneloop.gateway.open_webui import ratings
from tuneloop.gateway.openai import routes as openai
from tuneloop.gateway.openapi import install_openapi
from tuneloop.gateway.routes import (
    data,
    health,
    learner,
    lineage,
    messages,
    models,
    page,
    policies,
    responses,
    scoring,
    sessions,
    usage,
    users,
)
from tuneloop.gateway.settings import GatewaySettings

routers = (
    page.router,
    openai.router,
    messages.router,
    responses.router,
    models.router,
    routes.router,
    browse.router,
    signals.router,
    ratings.router,
    data.router,
    scoring.router,
    policies.router,
    learner.router,
    feed.router,
    users.router,
    sessions.router,
    lineage.router,
    usage.router,
    health.router,
)


def create_app(settings: GatewaySettings, bus: Bus | None = None) -> FastAPI:
    """Return the application. Without `bus` it connects to `settings.nats_url` when it starts."""
    ring = KeyRing(settings.key, settings.keys_file)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        used = bus or await JetStreamBus.connect(
            settings.nats_url,
            name="gateway",
            access=settings.nats_access,
            replicas=settings.nats_replicas,
            wait=0.5,
        )
        gateway = await open_gateway(settings, used)
        app.state.gateway = gateway
        app.state.feed = feed.Feed(gateway)
        stopping = asyncio.Event()
        counting = asyncio.create_task(gateway.store_usage(ring.book, stopping))
        watching = asyncio.create_task(gateway.watch())
        try:
            yield
        finally:
            stopping.set()
            watching.cancel()
            await counting
            await gateway.close()
            if bus is None:
                await used.close()

    app = FastAPI(
        title="tuneloop",
        version=version("tuneloop"),
        # The interactive pages load scripts from elsewhere; the schema itself is served.
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        middleware=[
            *([Middleware(Traced)] if tracing.is_on() else []),
            Middleware(Edge),
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST", "DELETE"],
                # Only the named sites may call, and no cookie is read: their clients may send any
                # header (`x-stainless-…`, `idempotency-key`).
                allow_headers=["*"],
                expose_headers=exposed_headers,
            ),
            Middleware(Authentication, settings=settings, ring=ring),
            Middleware(BodyLimit, max_bytes=settings.max_body_bytes),
            Middleware(Idempotency, settings=settings),
        ],
    )
    for router in routers:
        app.include_router(router)
    page.mount_assets(app)
    install_error_handlers(app)
    app.add_exception_handler(ClientDisconnect, answer_disconnected)
    install_openapi(app)
    return app


async def answer_disconnected(_: Request, __: Exception) -> Response:
    """Return a status for the log and the metrics; the client has disconnected."""
    return Response(status_code=CLIENT_WENT_AWAY)
