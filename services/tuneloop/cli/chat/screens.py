"""The screen of a conversation: its interface, and a plain one for pipes."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import typer

if TYPE_CHECKING:
    from tuneloop.client import Choice, Receipt, Stream


class Screen(Protocol):
    """Reads lines and keys, shows answers."""

    def read_line(self, *, judging: bool) -> str:
        """Read the user's next line; with `judging` one key may be a thumb.

        Raises `EOFError` or `KeyboardInterrupt` if the user quits.
        """

    def edit_text(self, text: str) -> str | None:
        """Return `text` as the user edited it, or None if it is unchanged."""

    def ask_choice(self, question: str, keys: Mapping[str, str]) -> str:
        """Return one of `keys`, given with their meanings; the last if the user does not choose."""

    def show(self, stream: "Stream") -> None:
        """Show the answer as it streams, and the thought before it, apart."""

    def show_both(self, first: "Choice[Receipt]", second: "Choice[Receipt]") -> None:
        """Show two answers to one question."""

    def note(self, text: str) -> None:
        """Show a message of the program."""


class PlainScreen:
    """Lines in, text out; notes go to standard error."""

    def read_line(self, *, judging: bool) -> str:
        """Read the next line of standard input."""
        return input()

    def edit_text(self, text: str) -> str | None:
        """Return the next line, if it is not empty."""
        return input().strip() or None

    def ask_choice(self, question: str, keys: Mapping[str, str]) -> str:
        """Return the next line, if it is one of the keys."""
        self.note(question + " " + ", ".join(f"{key}: {name}" for key, name in keys.items()))
        given = input().strip()
        return given if given in keys else list(keys)[-1]

    def show(self, stream: "Stream") -> None:
        """Print the pieces as they arrive; a thought goes to standard error, as notes do."""
        thinks = False
        for piece in stream:
            if piece.reasoning:
                typer.secho(piece.reasoning, dim=True, err=True, nl=False)
                thinks = True
            if piece.text and thinks:
                typer.echo(err=True)
                thinks = False
            sys.stdout.write(piece.text)
            sys.stdout.flush()
        typer.echo()

    def show_both(self, first: "Choice[Receipt]", second: "Choice[Receipt]") -> None:
        """Print one after the other."""
        for number, answer in enumerate((first, second), start=1):
            typer.echo(f"{number} (version {answer.policy_version}): {answer.text}")

    def note(self, text: str) -> None:
        """Print to standard error."""
        typer.secho(text, dim=True, err=True)
