"""Fields of a row, each checked where it is read: type, presence, numbers that are numbers.

Every problem is an `InvalidRequest` that begins with the row's place.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any

from tuneloop.errors import InvalidRequest
from tuneloop.learner.data.table import Row, Table
from tuneloop.learner.data.turns import read_tools, read_turns
from tuneloop.rollouts import ChatMessage, Tool

TRUE, FALSE = ("true", "up", "yes", 1.0), ("false", "down", "no", 0.0)
Text = str | tuple[ChatMessage, ...]
"""Plain text, or the turns of a conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A row's value under a column's name."""

    row: Row
    place: str
    name: str

    def wrong(self, problem: str) -> InvalidRequest:
        """Return the error to raise."""
        return InvalidRequest(f"{self.place}: {self.name} {problem}", param=self.name)

    @property
    def value(self) -> Any:
        """What stands there; raises where nothing does."""
        value = self.row.get(self.name)
        if is_missing(value):
            found = "null" if value is None else "empty" if value == "" else "missing (NaN)"
            raise self.wrong(f"is {found if self.name in self.row else 'missing'}")
        return value

    def text(self) -> Text:
        """Return a string that is not empty, or a conversation."""
        if isinstance(self.value, list):
            return self.messages()
        return self.string()

    def string(self) -> str:
        """Return a string that is not empty."""
        value = self.value
        if not isinstance(value, str):
            raise self.wrong(f"is a {type(value).__name__}, not text")
        if not value.strip():
            raise self.wrong("is empty")
        return value

    def messages(self) -> tuple[ChatMessage, ...]:
        """Return a conversation: `[{"role": …, "content": …}, …]`."""
        value = self.value
        if not isinstance(value, list) or not value:
            raise self.wrong("is not a list of messages" if value else "is empty")
        try:
            return read_turns(value)
        except ValueError as error:
            raise self.wrong(str(error)) from None

    def tools(self) -> tuple[Tool, ...]:
        """Return the functions that may be called, as a list or its JSON."""
        try:
            return read_tools(self.value)
        except ValueError as error:
            raise self.wrong(str(error)) from None

    def number(self) -> float:
        """Return a finite number; text that spells one counts, as CSV has nothing else."""
        value = self.value
        try:
            number = float(value) if isinstance(value, Real | Decimal | str) else None
        except (ValueError, OverflowError):
            number = None
        if number is None or isinstance(value, bool):
            raise self.wrong(f"is {shown(value)}, not a number")
        if not math.isfinite(number):
            raise self.wrong(f"is {number}, not a finite number")
        return number

    def flag(self) -> bool:
        """True or false, as a boolean, 1 or 0, or a word.

        A data frame that lacks some of a column's values writes the others as 1.0 and 0.0.
        """
        value = self.value
        word = value.strip().lower() if isinstance(value, str) else value
        if isinstance(word, Real | Decimal | str):
            with suppress(ValueError, OverflowError):
                word = float(word)
        if word not in TRUE + FALSE:
            raise self.wrong(f"is {shown(value)}, not true or false")
        return word in TRUE

    def texts(self) -> tuple[Text, ...]:
        """Return two or more texts, each a string or a conversation."""
        value = self.value
        if not isinstance(value, list) or len(value) < 2:
            raise self.wrong("is not a list of two or more")
        names = [f"{self.name}[{i}]" for i in range(len(value))]
        return tuple(
            Field(row={name: item}, place=self.place, name=name).text()
            for name, item in zip(names, value, strict=True)
        )


def is_missing(value: Any) -> bool:
    """Return whether a data frame says by this value that there is none: None, NaN, no text."""
    if isinstance(value, Real | Decimal):
        return not isinstance(value, int) and math.isnan(value)
    return value is None or value == ""


def shown(value: Any) -> str:
    """Return a value as a message shows it: no more than a line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


@dataclass(frozen=True, slots=True)
class Fields:
    """A row's fields by name."""

    row: Row
    place: str

    def __getitem__(self, name: str) -> Field:
        return Field(row=self.row, place=self.place, name=name)

    def __contains__(self, name: str) -> bool:
        return not is_missing(self.row.get(name))

    def wrong(self, problem: str) -> InvalidRequest:
        """Return the error to raise about the whole row."""
        return InvalidRequest(f"{self.place}: {problem}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One accepted set of columns, and how a row of it becomes samples."""

    columns: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def spelled(self) -> str:
        """For messages: `prompt, chosen, rejected [, margin]`."""
        return ", ".join(self.columns) + "".join(f" [, {name}]" for name in self.optional)


def choose_form(table: Table, forms: Sequence[Form], algorithm: str) -> Form:
    """Return the first form whose columns the table has; raises `InvalidRequest` with both."""
    columns = set(table.columns)
    for form in forms:
        if columns.issuperset(form.columns):
            return form
    accepted = "; or ".join(form.spelled for form in forms)
    raise InvalidRequest(
        f"{table.name}: {algorithm} learns from the columns {accepted}; "
        f"the data has {', '.join(table.columns) or 'none'}",
        param="data",
    )
