"""Writes the output of the processes: prefixed lines on the terminal, and a log file for each."""

import contextlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

COLOURS = {
    "nats": "\033[90m",
    "generation": "\033[36m",
    "reward": "\033[33m",
    "learner": "\033[35m",
    "gateway": "\033[32m",
    "tuneloop": "\033[1m",
}


RESET = "\033[0m"
NAME_WIDTH = 10
MAX_LOG_BYTES = 20 * 1024 * 1024


class Terminal:
    """Writes whole lines, each with the aligned name of the process it comes from."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream: TextIO | None = sys.stdout if stream is None else stream
        self._coloured = self._stream.isatty()

    def line(self, name: str, text: str) -> None:
        """Write one line."""
        prefix = f"{name:<{NAME_WIDTH}}"
        if self._coloured:
            prefix = f"{COLOURS.get(name, '')}{prefix}{RESET}"
        self._write(f"{prefix} | {text}\n")

    def plain(self, text: str) -> None:
        """Write the supervisor's own lines, without a prefix."""
        self._write(f"{text}\n")

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (BrokenPipeError, ValueError):
            # The reader of standard output is gone; the log files continue.
            self._stream = None
        except OSError:
            # Standard output is a file on a full disk: the line is lost, the service continues.
            return


class LogFile:
    """Splits a process's output into lines for its log file and the terminal."""

    def __init__(
        self, name: str, folder: Path, terminal: Terminal, is_shown: Callable[[str], bool]
    ) -> None:
        self._name = name
        self._terminal = terminal
        self._shown = is_shown
        self._partial = b""
        path = folder / f"{name}.log"
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > MAX_LOG_BYTES:
                path.replace(folder / f"{name}.log.1")
        self._file = path.open("ab", buffering=0)

    def feed(self, data: bytes) -> None:
        """Take output of the process, and pass on whole lines."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > 64 * 1024:
            lines.append(self._partial)
            self._partial = b""
        for line in lines:
            self._pass_on(line)

    def end(self) -> None:
        """Pass on an unfinished last line."""
        if self._partial:
            self._pass_on(self._partial)
            self._partial = b""

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _pass_on(self, line: bytes) -> None:
        # A progress bar redraws its line with carriage returns: only its last state is kept.
        line = line.rstrip(b"\r").rsplit(b"\r", 1)[-1]
        with contextlib.suppress(OSError):  # a full disk must not stop the service
            self._file.write(line + b"\n")
        text = line.decode(errors="replace")
        if self._shown(text):
            self._terminal.line(self._name, text)


CHATTER = re.compile(
    r"""
    ^\(\w[\w-]*\ pid=\d+\)\ (?:DEBUG|INFO|WARNING)   # vLLM's processes; their errors are shown
    | ^Loading\ safetensors\ checkpoint\ shards
    | Triton\ is\ (?:not\ )?installed
    | ^\[W\d+\ .*\ \w+\.cpp:\d+\]\ Warning           # PyTorch's C++
    | (?:Future|Deprecation|User)Warning:
    """,
    re.VERBOSE,
)


def is_useful_line(line: str) -> bool:
    """Return whether a line of a service belongs on the terminal."""
    return bool(line.strip()) and CHATTER.search(line) is None
