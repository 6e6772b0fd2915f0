"""Output of commands: JSON for programs, aligned columns for people."""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from tuneloop.api.feedback import Effect, FeedbackItem

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 10_000
"""The width without a terminal, so that nothing is cut."""

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that control a terminal; tab and line feed are harmless."""


def print_json(document: object) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


def console() -> "Console":
    """Return the console of standard output, as wide as the terminal if it is one."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; the last column gets the remaining width."""
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
    # Strip the padding: one long value would make every line as long.
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def print_fields(document: Mapping[str, Any]) -> None:
    """Print one `name: value` a line."""
    for name, value in document.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        typer.echo(f"{name}: {printable(text)}")


def cell(value: Any) -> str:
    """Return a value on one line, or an empty string for None."""
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(printable(text).split())


def printable(text: str) -> str:
    """Replace characters that control a terminal in a text that users wrote."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


TEXT_NAMES = {
    "answer": "this answer",
    "edit": "your better answer",
    "chosen": "the better one",
    "rejected": "the other one",
}


def effects_in_words(effects: Sequence[Effect]) -> str:
    """Return what the newest version that learned from feedback changed; empty without one."""
    if not effects:
        return ""
    version = effects[-1]["policy_version"]
    its = [effect for effect in effects if effect["policy_version"] == version]
    edited = any(effect["text"] == "edit" for effect in its)
    names = TEXT_NAMES | ({"answer": "what the model wrote"} if edited else {})
    parts = [
        f"{names.get(effect['text'], effect['text'])} is now {likelier(effect['times_as_likely'])}"
        for effect in its
    ]
    return f"Version {version} learned from it: {', '.join(parts)}."


def likelier(times: float) -> str:
    """Return a ratio of probabilities in words."""
    if times >= 1000:
        return "over 1,000 times as likely"
    if times < 0.001:
        return "less than 0.001 times as likely"
    if abs(times - 1) < 0.005:
        return "as likely as before"
    return f"{times:.3g} times as likely"


def feedback_row(item: FeedbackItem) -> tuple[Any, ...]:
    """Return a line of the list."""
    return (
        item["accepted_time"][:19],
        item["kind"],
        item["status"],
        item["policy_version"],
        item["id"],
        judgement(item),
    )


def judgement(item: FeedbackItem) -> str:
    """Return the judgement in a few words."""
    match item["kind"]:
        case "comparison":
            return f"{item['chosen']} over {', '.join(item['rejected'])}"
        case "ranking":
            return " over ".join(item["ranking"])
        case "demonstration" | "comment":
            return cell(item["text"])
        case "metric":
            return f"{item['name']} {json.dumps(item['value'])}"
        case _:
            return cell(item["value"])
