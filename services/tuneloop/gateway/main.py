"""The gateway process."""

import gc
import signal
import socket

from tuneloop import audit, tracing
from tuneloop.errors import SettingsError
from tuneloop.gateway.settings import GatewaySettings
from tuneloop.redaction.redactor import RedactionSettings
from tuneloop.settings import load_or_exit
from tuneloop.telemetry import serve_metrics, start_logging


def main() -> None:
    """Read the settings, then serve until SIGTERM or SIGINT."""
    settings = load_or_exit(GatewaySettings)
    load_or_exit(RedactionSettings)
    logger = start_logging("gateway")
    tracing.start("gateway")

    import uvicorn

    from tuneloop.gateway.app import create_app

    if settings.audit_file is not None:
        try:
            audit.write_to(settings.audit_file)
        except SettingsError as error:
            raise SystemExit(f"TUNELOOP_GATEWAY_{error.message}") from error
    app = create_app(settings)

    class Server(uvicorn.Server):
        """Ends the event streams, so that draining waits for answers only."""

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.state.feed.close()
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        # Which proxies to believe is a setting: uvicorn believes every one on this machine.
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.drain_seconds),
        # Long streams hold connections; idle ones are closed after a while.
        timeout_keep_alive=30,
        backlog=2048,
    )
    if settings.metrics_port is not None:
        serve_metrics(settings.host, settings.metrics_port)
    logger.info("serving on http://%s:%d", settings.host, settings.port)
    # uvicorn drains on a signal and then raises it again: a requested stop is not a failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, exit_normally)
    # What is loaded now stays: scanning it in every collection would delay the streams.
    gc.freeze()
    # Requests create many objects and few cycles: collect them less often.
    gc.set_threshold(10_000, 10, 10)
    Server(config).run()


def exit_normally(*_: object) -> None:
    """End the process with status 0."""
    raise SystemExit(0)


if __name__ == "__main__":
    main()
