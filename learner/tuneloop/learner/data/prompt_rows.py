"""Rows to prompts, for algorithms that sample their own completions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuneloop.learner.data.fields import Fields, Form, choose_form
from tuneloop.learner.data.table import Table
from tuneloop.learner.data.tokenize import PromptTokenizer, PromptTokens, TooLong

FORMS = (Form(columns=("prompt",)), Form(columns=("messages",)))


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRow:
    """A prompt and whatever else its row says, for the reward function."""

    place: str
    asked: PromptTokens
    columns: Mapping[str, Any]
    """Every other column."""


def prompt_row(
    table: Table, form: Form, tokens: PromptTokenizer, room: int, row: Fields
) -> PromptRow:
    """Return one prompt with room for `room` tokens of completion; raises `TooLong`."""
    name = form.columns[0]
    if name == "messages":
        messages = row["messages"].messages()
        if messages[-1].role == "assistant":
            raise row.wrong("messages ends with the assistant's turn: there is nothing to answer")
        asked = tokens.asked(messages, row)
    else:
        asked = tokens.asked(row["prompt"].text(), row)
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
