"""Fields of a row, each checked where it is read: type, presence, numbers that are numbers.

Every problem is an `InvalidRequest` that begins with the row's place.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.errors import InvalidRequest
from tuneloop.learner.data.table import Row, Table
from tuneloop.rollouts import ChatMessage

TRUE, FALSE = ("true", "1", "up", "yes"), ("false", "0", "down", "no")
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
        if self.row.get(self.name) is None:
            raise self.wrong("is missing" if self.name not in self.row else "is null")
        return self.row[self.name]

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
        return tuple(self._message(i, message) for i, message in enumerate(value))

    def _message(self, index: int, message: Any) -> ChatMessage:
        where = f"message {index + 1}"
        if not isinstance(message, dict):
            raise self.wrong(f"{where} is a {type(message).__name__}, not role and content")
        role, content = message.get("role"), text_of_parts(message.get("content"))
        if role == "developer":
            role = "system"  # chat templates know the old name
        if role not in ("system", "user", "assistant"):
            raise self.wrong(f"{where} has role {role!r}, not system, user or assistant")
        if not isinstance(content, str):
            raise self.wrong(f"{where} has no text in content")
        if not content.strip():
            raise self.wrong(f"{where} is empty")
        return ChatMessage(role=role, content=content)

    def number(self) -> float:
        """Return a finite number; text that spells one counts, as CSV has nothing else."""
        value = self.value
        try:
            number = float(value) if isinstance(value, int | float | str) else None
        except ValueError:
            number = None
        if number is None or isinstance(value, bool):
            raise self.wrong(f"is {value!r}, not a number")
        if not math.isfinite(number):
            raise self.wrong(f"is {number}, not a finite number")
        return number

    def flag(self) -> bool:
        """True or false, as a boolean, 1 or 0, or a word."""
        value = self.value
        word = str(value).strip().lower() if isinstance(value, str | bool | int) else ""
        if word not in TRUE + FALSE:
            raise self.wrong(f"is {value!r}, not true or false")
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


def text_of_parts(content: Any) -> Any:
    """Return the text of a list of text parts, as the API takes it; anything else unchanged."""
    if not isinstance(content, list) or not content:
        return content
    texts = list[str]()
    for part in content:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            return content
        texts.append(text)
    return "".join(texts)


@dataclass(frozen=True, slots=True)
class Fields:
    """A row's fields by name."""

    row: Row
    place: str

    def __getitem__(self, name: str) -> Field:
        return Field(row=self.row, place=self.place, name=name)

    def __contains__(self, name: str) -> bool:
        return self.row.get(name) not in (None, "")

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
