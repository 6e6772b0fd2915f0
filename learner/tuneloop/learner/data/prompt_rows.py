"""Rows to prompts, for algorithms that sample their own completions.

Alpaca's rows have an `instruction`, and an `input` that may be empty: a user's message, with a
blank line between them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuneloop.learner.data.fields import Fields, Form, Text, choose_form
from tuneloop.learner.data.table import Table
from tuneloop.learner.data.tokenize import PromptTokenizer, PromptTokens, TooLong
from tuneloop.rollouts import ChatMessage

FORMS = (
    Form(columns=("prompt",)),
    Form(columns=("messages",)),
    Form(columns=("conversations",)),
    Form(columns=("instruction",), optional=("input",)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRow:
    """A prompt and whatever else its row says, for the reward function."""

    place: str
    asked: PromptTokens
    columns: Mapping[str, Any]
    """Every other column."""


def read_prompt(row: Fields, form: Form) -> Text:
    """Return the prompt of a row: its column `prompt`, or the instruction with its input."""
    if form.columns[0] != "instruction":
        return row["prompt"].text()
    parts = [row["instruction"].string()]
    if "input" in row:
        parts.append(row["input"].string())
    return (ChatMessage(role="user", content="\n\n".join(parts)),)


def prompt_row(
    table: Table, form: Form, tokens: PromptTokenizer, room: int, row: Fields
) -> PromptRow:
    """Return one prompt with room for `room` tokens of completion; raises `TooLong`."""
    name = form.columns[0]
    if name in ("messages", "conversations"):
        messages = row[name].messages()
        if messages[-1].role == "assistant":
            raise row.wrong(f"{name} ends with the assistant's turn: there is nothing to answer")
        asked = tokens.asked(messages, row)
    else:
        asked = tokens.asked(read_prompt(row, form), row)
    length = len(asked.token_ids)
    if length + room > tokens.max_length:
        what = f"{length} tokens in the prompt and {room} for the completion"
        raise TooLong(row, what, tokens.max_length)
    columns = {c: row.row.get(c) for c in table.columns if c != name}
    return PromptRow(place=row.place, asked=asked, columns=columns)


def prompt_rows(
    table: Table, tokens: PromptTokenizer, room: int, *, reader: str
) -> list[PromptRow]:
    """Return the prompts of a table for `reader`, as `prompt_row`; raises `InvalidRequest`."""
    form = prompt_form(table, reader)
    return [
        prompt_row(table, form, tokens, room, Fields(row, table.place(index)))
        for index, row in enumerate(table.rows)
    ]


def prompt_form(table: Table, algorithm: str) -> Form:
    """Where the prompts stand; raises `InvalidRequest` when nowhere."""
    return choose_form(table, FORMS, algorithm)
