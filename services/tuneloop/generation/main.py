"""The generation process: loads the settings, then runs engine, routing and gRPC until stopped."""

import asyncio
import gc
import logging
import os
import signal
from typing import Any

from tuneloop import host, tracing
from tuneloop.errors import SettingsError, TuneloopError
from tuneloop.generation.settings import GenerationSettings
from tuneloop.settings import load_or_exit
from tuneloop.telemetry import serve_metrics, start_logging

logger = logging.getLogger("tuneloop.generation")


def main() -> None:
    """Run until SIGTERM or SIGINT; exit with status 1 if the engine died."""
    settings = load_or_exit(GenerationSettings)
    start_logging("generation")
    tracing.start("generation")

    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            status = runner.run(serve(settings))
    except TuneloopError as error:
        logger.error("cannot start: %s", error.message)
        status = 1
    tracing.stop()
    logging.shutdown()
    # Everything is closed by now; at a normal exit vLLM's and Triton's modules print errors.
    os._exit(status)


async def serve(settings: GenerationSettings) -> int:
    """Start everything in order, wait for the end, drain; return the exit status."""
    stop = asyncio.create_task(stop_signal())
    if not (settings.model / "config.json").exists():
        raise SettingsError(f"TUNELOOP_GENERATION_MODEL: no model in {settings.model}")
    serve_metrics(settings.host, settings.metrics_port)
    host.watch_folder("weights_cache", settings.weights_cache_dir)

    from tuneloop.bus.jetstream import JetStreamBus
    from tuneloop.generation.service import make_replica

    bus = await JetStreamBus.connect(
        settings.nats_url,
        name="tuneloop-generation",
        access=settings.nats_access,
        replicas=settings.nats_replicas,
    )
    replica = make_replica(settings, bus)
    starting = asyncio.create_task(replica.start())
    await asyncio.wait({starting, stop}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        # An engine cannot be stopped while it starts; its processes end with this one.
        logger.info("stopped while starting")
        os._exit(0)
    starting.result()
    # What is loaded now stays loaded: garbage collection of it would only delay the streams.
    gc.freeze()
    running = {stop, *replica.background_tasks()}
    done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    status = 0 if stop in done else report(done)
    await replica.stop()
    await bus.close()
    return status


async def stop_signal() -> None:
    """Return at the first SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await stopping.wait()


def report(done: set[asyncio.Task[Any]]) -> int:
    """Log why the process cannot continue; return its exit status."""
    for task in done:
        error = task.exception()
        logger.error("%s ended: %s", task.get_name(), task.result() if error is None else error)
    return 1


if __name__ == "__main__":
    main()
