"""The learner's process: read the settings, then run until a signal stops it."""

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tuneloop import host, tracing
from tuneloop.errors import FailedPrecondition, SettingsError, TuneloopError
from tuneloop.host import lower_priority
from tuneloop.learner.files import take_lock
from tuneloop.learner.settings import LearnerSettings
from tuneloop.settings import load_or_exit
from tuneloop.telemetry import serve_metrics, start_logging

if TYPE_CHECKING:
    from tuneloop.learner.app.learner import Learner

logger = logging.getLogger("tuneloop.learner")


def main() -> None:
    """Run until SIGTERM or SIGINT; under torchrun the other ranks follow the first."""
    settings = load_or_exit(LearnerSettings)
    start_logging("learner")
    tracing.start("learner")
    # Serving has priority if both share a machine.
    lower_priority(os.getpid(), settings.niceness)
    if os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0":
        follow_first_rank()
        return
    try:
        check_settings(settings)
        lock = take_lock(settings.data_dir)
    except TuneloopError as error:
        sys.stderr.write(f"{error.message}\n")
        raise SystemExit(2 if isinstance(error, SettingsError) else 1) from error
    try:
        status = asyncio.run(serve(settings))
    except TuneloopError as error:
        logger.error("cannot start: %s", error.message)
        status = 2 if isinstance(error, SettingsError) else 1
    lock.close()
    tracing.stop()
    logging.shutdown()
    # The trainer's thread may be in the middle of an uncommitted step: an ordinary exit
    # would tear down torch under it.
    os._exit(status)


def follow_first_rank() -> None:
    """Train with the first rank, which has the ledger, the bus and the port, until it ends."""
    from tuneloop.learner.followers import follow
    from tuneloop.learner.models.world import join

    follow(join())


def check_settings(settings: LearnerSettings) -> None:
    """Raise `SettingsError` for what can be checked before anything heavy is loaded."""
    settings.trainer()
    settings.reward_trainer()
    check_reward_metric(settings)
    for name in ("model", "reward_model"):
        folder: Path | None = getattr(settings, name)
        if folder is not None and not (folder / "config.json").is_file():
            raise SettingsError(f"TUNELOOP_LEARNER_{name.upper()}: no model in {folder}")


def check_reward_metric(settings: LearnerSettings) -> None:
    """Raise `SettingsError` where a metric is the reward and nothing would learn from it."""
    if not settings.reward_metric:
        return
    name = "TUNELOOP_LEARNER_REWARD_METRIC"
    if settings.weight_of(settings.scored_objective) == 0:
        raise SettingsError(
            f"{name}: {settings.reward_metric!r} would teach nothing, as policy gradients are off; "
            "see TUNELOOP_LEARNER_POLICY_GRADIENT and TUNELOOP_LEARNER_OBJECTIVE_WEIGHTS"
        )
    if settings.prompts is not None:
        raise SettingsError(
            f"{name}: answers to TUNELOOP_LEARNER_PROMPTS are scored, not measured: "
            "nothing would learn from them; unset one of the two"
        )


async def serve(settings: LearnerSettings) -> int:
    """Start everything, wait for the end, commit what was trained; return the exit status."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    serve_metrics(settings.host, settings.metrics_port)
    host.watch_folder("data", settings.data_dir)
    # This imports SQLAlchemy, grpc and, once models are loaded, torch.
    from tuneloop.learner.app.learner import assemble

    starting = asyncio.create_task(assemble(settings))
    stop = asyncio.create_task(stopping.wait())
    await asyncio.wait({starting, stop}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        return 0
    learner = starting.result()
    work = asyncio.create_task(learner.run())
    await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
    failed = work.done()
    if failed:
        log_failure(work.exception())
    else:
        await stop_learner(learner, work, settings.drain_seconds)
    await learner.close()
    return 1 if failed else 0


def log_failure(problem: BaseException | None) -> None:
    """Say why the learner ends: in a line if it was refused, with all that is known if it broke."""
    cause = problem
    while isinstance(cause, ExceptionGroup):
        cause = cause.exceptions[0]
    if isinstance(cause, FailedPrecondition):
        logger.error("the learner ends; committed work is kept: %s", cause)
    else:
        logger.error("the learner failed; committed work is kept", exc_info=problem)


async def stop_learner(learner: "Learner", work: asyncio.Task[None], seconds: float) -> None:
    """Stop intake, let the step in progress end within `seconds`, and commit."""
    logger.info("stopping")
    work.cancel()
    await asyncio.wait({work})
    try:
        async with asyncio.timeout(seconds):
            await learner.loop.drain()
            await learner.dismiss()
    except TimeoutError:
        logger.info("a step was cut off; its samples will be used after the next start")
