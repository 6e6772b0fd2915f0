"""What reaches the terminal, and what the log."""

import io
from pathlib import Path

import pytest

from tuneloop.supervisor import output as chatter
from tuneloop.supervisor.output import LogFile, Terminal


def test_a_progress_bar_leaves_its_last_state(tmp_path: Path) -> None:
    output = io.StringIO()
    log = LogFile("learner", tmp_path, Terminal(output), lambda _: True)
    log.feed(b"10%\r50%\r100%\nhalf a ")
    log.feed(b"line\n\xff\xfe")
    log.end()
    log.close()
    assert [line.partition("| ")[2] for line in output.getvalue().splitlines()] == [
        "100%",
        "half a line",
        "\ufffd\ufffd",
    ]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("(Worker pid=23462) WARNING 11-21 08:39:13 [cpu_worker.py:114] no tcmalloc", False),
        ("(EngineCore pid=1) ERROR 11-21 08:39:13 [core.py:1] out of memory", True),
        ("Loading safetensors checkpoint shards: 100% Completed | 1/1", False),
        ("2026-11-21T08:39:29.701Z WARNING the event bus closed the connection", True),
        ("Traceback (most recent call last):", True),
        ("ModuleNotFoundError: No module named 'x'", True),
        ("", False),
    ],
)
def test_the_terminal_shows_what_can_be_used(line: str, shown: bool) -> None:
    assert chatter.is_useful_line(line) is shown


def test_a_terminal_that_went_away_is_no_error() -> None:
    output = io.StringIO()
    terminal = Terminal(output)
    output.close()
    terminal.line("learner", "hello")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_terminal_that_cannot_be_written_loses_lines_and_nothing_else() -> None:
    full = io.TextIOWrapper(io.BufferedWriter(io.FileIO("/dev/full", "w")))
    terminal = Terminal(full)
    terminal.line("nats", "no room for this")
    terminal.line("nats", "nor for this")
    with pytest.raises(OSError, match="No space"):
        full.close()
