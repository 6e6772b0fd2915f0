"""The chat on a terminal: keys through prompt_toolkit's pipe, the screen as text."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from tuneloop.cli.chat.terminal import TerminalScreen
from tuneloop.cli.output import cell, printable
from tuneloop.client import Choice, Piece


@pytest.fixture
def keyboard() -> Iterator[Any]:
    with create_pipe_input() as pipe:
        yield pipe


@pytest.fixture
def screen(keyboard: Any) -> TerminalScreen:
    console = Console(file=io.StringIO(), force_terminal=True, width=40, height=8)
    return TerminalScreen(("/edit",), console=console, given=keyboard, output=DummyOutput())


def seen(screen: TerminalScreen) -> str:
    assert isinstance(screen.console.file, io.StringIO)
    return screen.console.file.getvalue()


def test_thumbs_are_one_key(keyboard: Any, screen: TerminalScreen) -> None:
    keyboard.send_text("+")
    assert screen.read_line(judging=True) == "/up"
    keyboard.send_text("-")
    assert screen.read_line(judging=True) == "/down"


def test_the_same_keys_are_letters_elsewhere(keyboard: Any, screen: TerminalScreen) -> None:
    keyboard.send_text("-5 + 3\r")
    assert screen.read_line(judging=False) == "-5 + 3"
    keyboard.send_text("5 + 3 - 1\r")
    assert screen.read_line(judging=True) == "5 + 3 - 1"


def test_the_end_of_the_conversation(keyboard: Any, screen: TerminalScreen) -> None:
    keyboard.send_text("\x04")
    with pytest.raises(EOFError):
        screen.read_line(judging=True)
    keyboard.send_text("\x03")
    with pytest.raises(KeyboardInterrupt):
        screen.read_line(judging=True)


def test_editing(keyboard: Any, screen: TerminalScreen) -> None:
    keyboard.send_text(" indeed\x1b\r")
    assert screen.edit_text("Paris") == "Paris indeed"
    keyboard.send_text("\x1b\r")
    assert screen.edit_text("Paris") is None
    keyboard.send_text("x\x03")
    assert screen.edit_text("Paris") is None


def test_one_key_chooses(keyboard: Any, screen: TerminalScreen) -> None:
    keys = {"1": "the first", "2": "the second", "0": "neither"}
    keyboard.send_text("x2")
    assert screen.ask_choice("Which?", keys) == "2"
    keyboard.send_text("\r")
    assert screen.ask_choice("Which?", keys) == "0"


def test_a_thought_is_dim_and_stays_above_the_answer(screen: TerminalScreen) -> None:
    pieces = [
        Piece(text="", reasoning="let me "),
        Piece(text="", reasoning="see"),
        Piece(text="42"),
    ]
    screen.show(pieces)  # type: ignore[arg-type]
    last_page = seen(screen).rsplit("\x1b[2K", 1)[-1]
    assert last_page.index("\x1b[2mlet me see") < last_page.index("42")


def test_an_answer_ends_as_markdown(screen: TerminalScreen) -> None:
    pieces = [Piece(text=text) for text in ("- on", "e\n- **two**", "\n" * 20, "end")]
    screen.show(pieces)  # type: ignore[arg-type]
    last_page = seen(screen).rsplit("\x1b[2K", 1)[-1]
    assert "• \x1b[0mone" in last_page
    assert "**" not in last_page


def test_a_long_answer_never_scrolls_the_part_that_is_written_over(screen: TerminalScreen) -> None:
    lines = screen.tail("word " * 200).renderables
    assert len(lines) == 6
    assert len(screen.tail("").renderables) <= 1


def test_an_interrupted_answer_stays(screen: TerminalScreen) -> None:
    def pieces() -> Iterator[Piece]:
        yield Piece(text="half of it")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        screen.show(pieces())  # type: ignore[arg-type]
    assert "half of it" in seen(screen).rsplit("\x1b[2K", 1)[-1]


def test_models_and_users_cannot_steer_the_terminal(screen: TerminalScreen) -> None:
    assert printable("a\x1b]0;title\x07\tb\nc\x9bd") == "a�]0;title�\tb\nc�d"
    assert cell("two\nlines\x1b[31m") == "two lines�[31m"
    screen.show([Piece(text="\x1b[5mblink")])  # type: ignore[arg-type]
    choice: Choice[Any] = Choice(
        id="a",
        text="\x1b[5mblink",
        policy_version=3,
        finish_reason="stop",
        judge=None,  # type: ignore[arg-type]
    )
    screen.show_both(choice, choice)
    screen.note("\x1b[5mblink")
    assert "\x1b[5m" not in seen(screen)
    assert "1 · version 3" in seen(screen)
