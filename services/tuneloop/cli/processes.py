"""Commands that need more than the base install: what is missing, and starting the processes."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """End the program with a line that names `extra` where a package cannot be imported."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("tuneloop"):
            raise
        raise SystemExit(f"tuneloop: {missing_package(error, extra)}") from error


def missing_package(error: ModuleNotFoundError, extra: str) -> str:
    """Return which package a command needs, and how to install it."""
    return f'this command needs the package {error.name}: pip install "tuneloop[{extra}]"'


def gateway() -> None:
    """Run the HTTP edge alone; settings: TUNELOOP_GATEWAY_…."""
    with needs("serve"):
        from tuneloop.gateway.main import main

        main()


def generation() -> None:
    """Run the generation service alone; settings: TUNELOOP_GENERATION_…."""
    with needs("generation"):
        from tuneloop.generation.main import main

        main()


def reward() -> None:
    """Run the reward service alone; settings: TUNELOOP_REWARD_…."""
    with needs("reward"):
        from tuneloop.reward.main import main

        main()


def learner() -> None:
    """Run the learner alone; settings: TUNELOOP_LEARNER_…."""
    with needs("learner"):
        from tuneloop.learner.main import main

        main()
