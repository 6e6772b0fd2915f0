"""Entry point of the reward process."""

import asyncio
import os
import sys

from tuneloop import tracing
from tuneloop.errors import TuneloopError
from tuneloop.reward.settings import RewardSettings
from tuneloop.settings import load_or_exit
from tuneloop.telemetry import start_logging


def main() -> None:
    """Score until SIGTERM or SIGINT."""
    settings = load_or_exit(RewardSettings)
    logger = start_logging("reward")
    tracing.start("reward")
    # Reward functions are also searched for in the working directory, as with `python -m`.
    sys.path.append(os.getcwd())
    from tuneloop.reward.process import run

    try:
        asyncio.run(run(settings))
    except TuneloopError as error:
        logger.error("%s", error.message)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
