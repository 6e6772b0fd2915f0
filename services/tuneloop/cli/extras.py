"""Extras of the package, and what a command says where the packages of one are missing."""

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
