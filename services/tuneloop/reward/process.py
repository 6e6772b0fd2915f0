"""The reward process: runs scorers, consumer, gRPC server and hot swap until stopped."""

import asyncio
import contextlib
import logging
import signal
from concurrent.futures import ThreadPoolExecutor

import torch

from tuneloop import host
from tuneloop.bus import Bus
from tuneloop.bus.jetstream import JetStreamBus
from tuneloop.errors import SettingsError
from tuneloop.reward.build import build
from tuneloop.reward.consumer import RolloutConsumer
from tuneloop.reward.scorers.reward_model import RewardModelScorer
from tuneloop.reward.scoring import Scoring
from tuneloop.reward.servicer import RewardServicer
from tuneloop.reward.settings import RewardSettings
from tuneloop.reward.swap import RewardModelSwap, RewardSwapOptions
from tuneloop.rpc.server import Server
from tuneloop.telemetry import serve_metrics
from tuneloop.v1 import reward_pb2_grpc
from tuneloop.weights.shapes import base_model_sha256

logger = logging.getLogger("tuneloop.reward")

SERVICE = "tuneloop.v1.RewardService"
HEALTH_SECONDS = 1.0
"""Between two checks whether a scorer hangs."""


def load_scoring(settings: RewardSettings) -> Scoring:
    """Import the functions and load the base reward model.

    Raises `SettingsError` for functions and weights that are wrong, `CorruptData` for the model.
    """
    if settings.model is None and not settings.functions and not settings.judge_url:
        names = ("MODEL", "FUNCTIONS", "JUDGE_URL")
        raise SettingsError("set " + " or ".join(f"TUNELOOP_REWARD_{name}" for name in names))
    try:
        return build(
            functions=settings.functions,
            reward_model=settings.model,
            judge=settings.judge(),
            weights=settings.weights,
            max_length=settings.max_length,
            device=settings.device,
            normalize=settings.normalize,
            function_timeout=settings.function_timeout_seconds,
        )
    except SettingsError as error:
        name = f"TUNELOOP_REWARD_{str(error.param).upper()}"
        raise SettingsError(f"{name}: {error.message}", param=error.param) from error


def make_swap(
    settings: RewardSettings, bus: Bus, scoring: Scoring, base: RewardModelScorer
) -> RewardModelSwap:
    """Return the swap of the reward model. Raises `SettingsError` without a key to verify with."""
    assert settings.model is not None
    options = RewardSwapOptions(
        policy=settings.policy,
        base_model_sha256=base_model_sha256(settings.model),
        min_labels=settings.min_labels,
        min_accuracy=settings.min_accuracy,
    )
    return RewardModelSwap(
        bus=bus, store=settings.open_store(), scoring=scoring, base=base, options=options
    )


async def run(settings: RewardSettings) -> None:
    """Serve until SIGTERM or SIGINT. Raises `SettingsError` if the settings cannot work."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    scoring = load_scoring(settings)
    bus = await JetStreamBus.connect(
        settings.nats_url,
        name="tuneloop-reward",
        access=settings.nats_access,
        replicas=settings.nats_replicas,
    )
    server = Server(
        host=settings.host,
        port=settings.port,
        tls=settings.grpc_tls,
        peers=settings.grpc_peers,
        token=settings.grpc_token,
        drain_seconds=settings.drain_seconds,
    )
    # One thread scores: torch itself uses `threads`, and functions need not be thread-safe.
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scoring")
    consumer = RolloutConsumer(
        bus=bus,
        scoring=scoring,
        executor=executor,
        batch_size=settings.batch_size,
        batch_wait_seconds=settings.batch_wait_seconds,
    )
    tasks = []
    if scoring.reward_model is not None:
        hot_swap = make_swap(settings, bus, scoring, scoring.reward_model)
        await hot_swap.activate_stable()
        tasks.append(asyncio.create_task(hot_swap.run(), name="hot swap"))
    server.add(
        reward_pb2_grpc.add_RewardServiceServicer_to_server, RewardServicer(scoring, executor)
    )
    await server.start()
    serve_metrics(settings.host, settings.metrics_port)
    host.watch_folder("weights_cache", settings.weights_cache_dir)
    consuming = asyncio.create_task(consumer.run(), name="consumer")
    await server.set_serving(True)
    tasks.append(asyncio.create_task(report_health(server, scoring), name="health"))
    try:
        await until_stopped(stop, [consuming, *tasks])
        consumer.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.drain_seconds):
                await consuming
    finally:
        for task in (consuming, *tasks):
            task.cancel()
        await server.stop()
        await bus.close()
        # Python waits for the scoring thread at exit.
        scoring.close()
        executor.shutdown(wait=False, cancel_futures=True)


async def report_health(server: Server, scoring: Scoring) -> None:
    """Report the service, not the server, as NOT_SERVING while a scorer hangs.

    A restart of the process would help; whether it is worth one is the operator's decision.
    """
    healthy = True
    while True:
        await asyncio.sleep(HEALTH_SECONDS)
        if healthy == bool(scoring.hanging):
            healthy = not healthy
            await server.set_serving(healthy, SERVICE)


async def until_stopped(stop: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
    """Wait for `stop`; a task that ends before it is a failure of the process."""
    stopped = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    for task in tasks:
        if task in done:
            task.result()
            raise RuntimeError(f"the task {task.get_name()!r} ended")
