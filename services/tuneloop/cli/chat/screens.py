"""Where a conversation takes place: what it needs of a terminal, and the plainest one."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import typer

if TYPE_CHECKING:
    from tuneloop.client import Choice, Receipt, Stream


class Screen(Protocol):
    """Reads lines and keys, shows answers."""

    def line(self, *, judging: bool) -> str:
        """The next line of the user's; with `judging` one key may stand for a thumb.

        Raises `EOFError` and `KeyboardInterrupt` where the user has had enough.
        """

    def edited(self, text: str) -> str | None:
        """`text` after the user changed it; None where it was left alone."""

    def choice(self, question: str, keys: Mapping[str, str]) -> str:
        """One of `keys`, which have meanings; the last where the user will not choose."""

    def show(self, stream: "Stream") -> None:
        """The answer as it comes."""

    def show_both(self, first: "Choice[Receipt]", second: "Choice[Receipt]") -> None:
        """Two answers to one question."""

    def note(self, text: str) -> None:
        """A remark of the program's."""


class PlainScreen:
    """Lines in, text out; notes go to standard error."""

    def line(self, *, judging: bool) -> str:
        """The next line of standard input."""
        return input()

    def edited(self, text: str) -> str | None:
        """The next line, where it is not empty."""
        return input().strip() or None

    def choice(self, question: str, keys: Mapping[str, str]) -> str:
        """The next line, where it is one of the keys."""
        self.note(question + " " + ", ".join(f"{key}: {name}" for key, name in keys.items()))
        given = input().strip()
        return given if given in keys else list(keys)[-1]

    def show(self, stream: "Stream") -> None:
        """The pieces as they come."""
        for piece in stream:
            sys.stdout.write(piece.text)
            sys.stdout.flush()
        typer.echo()

    def show_both(self, first: "Choice[Receipt]", second: "Choice[Receipt]") -> None:
        """One after the other."""
        for number, answer in enumerate((first, second), start=1):
            typer.echo(f"{number} (version {answer.policy_version}): {answer.text}")

    def note(self, text: str) -> None:
        """On standard error."""
        typer.secho(text, dim=True, err=True)
