"""What commands print: JSON for programs, aligned columns for people."""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 10_000
"""Columns where nobody looks at a screen: nothing is cut that a program reads."""

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters with which a text could steer the terminal; tab and line feed cannot."""


def print_json(document: object) -> None:
    """One JSON document."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


def console() -> "Console":
    """Of standard output, as wide as a screen only where it is one."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows under their heads; the last column takes the room that is left."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        last = column == columns[-1]
        table.add_column(column, no_wrap=True, overflow="ellipsis" if last else "fold")
    for row in rows:
        table.add_row(*(Text(cell(value)) for value in row))
    screen = console()
    with screen.capture() as captured:
        screen.print(table)
    # Without the padding: one long value would make every line as long.
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def print_fields(document: Mapping[str, Any]) -> None:
    """One `name: value` a line."""
    for name, value in document.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        typer.echo(f"{name}: {printable(text)}")


def cell(value: Any) -> str:
    """A value on one line; nothing where there is none."""
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(printable(text).split())


def printable(text: str) -> str:
    """`text`, which somebody else wrote, without characters that steer the terminal."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
