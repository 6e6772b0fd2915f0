"""The items of an ability suite: read, checked, and counted.

A suite is JSON lines. A row is one item, in one of two forms:

    prompt, choices, answer [, reference] [, accept] [, kind]
    prompt, reference [, accept] [, kind]

`prompt` is a question or a conversation. `answer` is the index or the text of the right choice.
`reference` is the right answer as a model would say it, or a list of phrasings. `accept` lists the
words of which one must be in a right sampled answer; an empty list says that the item is not for
sampling. Without it, they are the right choice or the phrasings, unless the question has them in
it: a model that repeats the question knows nothing.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path

from tuneloop.errors import InvalidRequest
from tuneloop.learner.data.fields import Field, Fields, Text
from tuneloop.learner.data.table import Table, open_table

BUILTIN = "builtin"
"""The name of the suite that is shipped."""
MOST_ITEMS = 2000
MOST_CHOICES = 8
LONGEST_PROMPT = 8000
"""Characters, of all its turns together."""
LONGEST_ANSWER = 1000
"""Characters in a choice, a phrasing or an accepted word."""
SCORING = 3
"""The way in which items are scored. It is part of their ids, so that values of two ways, such as
those that a data folder kept from an older tuneloop, are never compared: raise it with each change.
"""
COLUMNS = {"prompt", "choices", "answer", "reference", "accept", "kind"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AbilityItem:
    """A question with a right answer."""

    kind: str
    prompt: Text
    choices: tuple[str, ...]
    """The right one first; empty where wrong answers are not given."""
    references: tuple[str, ...]
    """The right answer in one or more phrasings."""
    accept: tuple[str, ...]
    """A sampled answer with one of them is right; empty for items that are not sampled."""

    @property
    def id(self) -> str:
        """Hash of the content and the way of scoring: the same item is the same in every suite."""
        content = json.dumps({**asdict(self), "kind": "", "scoring": SCORING}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def candidates(self) -> tuple[tuple[str, ...], ...]:
        """Return the texts that are ranked, of each choice its phrasings, the right choice first.

        They are the phrasings of the right answer with each choice in its place: "The capital of
        Norway is Oslo." and "Oslo.", "The capital of Norway is Bergen." and "Bergen.". Where none
        has the right choice in it, they are the choices as they are.
        """
        frames = [frame for text in self.references if (frame := frame_around(text, self.choices))]
        if not frames:
            return tuple((choice,) for choice in self.choices)
        return tuple(tuple(texts) for texts in zip(*frames, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class AbilitySuite:
    """Items, in order."""

    items: tuple[AbilityItem, ...]

    @property
    def sha256(self) -> str:
        """Hash of all items, whatever their order."""
        return hashlib.sha256("\n".join(sorted(i.id for i in self.items)).encode()).hexdigest()

    def part(self, count: int) -> "AbilitySuite":
        """Return `count` items, or all if there are fewer: evenly spaced, so of every kind."""
        total = len(self.items)
        if count >= total:
            return self
        return AbilitySuite(items=tuple(self.items[i * total // count] for i in range(count)))


def frame_around(text: str, choices: Sequence[str]) -> tuple[str, ...]:
    """Return the phrasing with each choice in the place of the right one, the first.

    A choice that begins the phrasing may be capitalized there. Empty where it is not in it.
    """
    for spell in (str, capitalized):
        before, found, after = text.rpartition(spell(choices[0])) if choices else ("", "", "")
        if found:
            return tuple(f"{before}{spell(choice)}{after}" for choice in choices)
    return ()


def capitalized(text: str) -> str:
    """Return the text with its first letter large, the others as they are."""
    return text[:1].upper() + text[1:]


def load_suite(references: Sequence[str] = (BUILTIN,)) -> AbilitySuite:
    """Load the suites of these names together: `builtin`, or files of JSON lines.

    Raises:
        NotFound: a file does not exist.
        InvalidRequest: a row is wrong, or there are too many; the message says where.

    """
    found: dict[str, str] = {}
    items: list[AbilityItem] = []
    for reference in references:
        table = open_table(str(builtin_file()) if reference == BUILTIN else reference)
        if reference == BUILTIN:
            table = replace(table, name=BUILTIN)
        for index in range(len(table.rows)):
            item = read_item(table, index)
            place = table.place(index)
            if item.id in found:
                raise InvalidRequest(f"{place}: the same item as {found[item.id]}", param="prompt")
            found[item.id] = place
            items.append(item)
    if not items:
        raise InvalidRequest("an ability suite needs at least one item", param="abilities")
    if len(items) > MOST_ITEMS:
        raise InvalidRequest(
            f"{len(items)} items in the ability suite, more than {MOST_ITEMS}: every version is "
            "asked all of them",
            param="abilities",
        )
    return AbilitySuite(items=tuple(items))


def builtin_file() -> Path:
    """Return the shipped suite."""
    return Path(str(files("tuneloop.learner.abilities") / "builtin.jsonl"))


def read_item(table: Table, index: int) -> AbilityItem:
    """Return the item of a row; raises `InvalidRequest` that begins with the row's place."""
    row = Fields(table.rows[index], table.place(index))
    unknown = sorted(name for name, value in row.row.items() if value is not None)
    unknown = [name for name in unknown if name not in COLUMNS]
    if unknown:
        known = ", ".join(sorted(COLUMNS))
        raise row.wrong(f"unknown column {unknown[0]}; an item has {known}")
    prompt = row["prompt"].text()
    check_prompt(prompt, row["prompt"])
    choices = read_choices(row) if "choices" in row else ()
    if "answer" in row and not choices:
        raise row.wrong("answer names a choice, and there are no choices")
    references = read_texts(row["reference"]) if "reference" in row else choices[:1]
    if not references:
        raise row.wrong("an item needs choices and answer, or a reference")
    asked = prompt if isinstance(prompt, str) else prompt[-1].content
    accept = tuple(text for text in choices[:1] or references if not is_right(asked, [text]))
    if row.row.get("accept") is not None:
        accept = read_texts(row["accept"]) if row.row["accept"] else ()
    kind = row["kind"].string() if "kind" in row else "other"
    return AbilityItem(
        kind=kind, prompt=prompt, choices=choices, references=references, accept=accept
    )


def check_prompt(prompt: Text, field: Field) -> None:
    """Raise `InvalidRequest` for a prompt that is too long or has nothing to answer."""
    length = len(prompt) if isinstance(prompt, str) else sum(len(m.content) for m in prompt)
    if length > LONGEST_PROMPT:
        raise field.wrong(f"has {length} characters, more than {LONGEST_PROMPT}")
    if not isinstance(prompt, str) and prompt[-1].role == "assistant":
        raise field.wrong("ends with the assistant's turn: there is nothing to answer")


def read_choices(row: Fields) -> tuple[str, ...]:
    """Return the choices of a row, the right one first."""
    choices = read_texts(row["choices"])
    if not 2 <= len(choices) <= MOST_CHOICES:
        raise row["choices"].wrong(f"has {len(choices)} texts, not 2 to {MOST_CHOICES}")
    if len({choice.strip() for choice in choices}) < len(choices):
        raise row["choices"].wrong("has a text twice")
    right = right_choice(row["answer"], choices)
    return (choices[right], *(c for i, c in enumerate(choices) if i != right))


def right_choice(answer: Field, choices: Sequence[str]) -> int:
    """Return the index of the right choice, which `answer` gives as an index or a text."""
    value = answer.value
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < len(choices):
            raise answer.wrong(f"is {value}; the choices are 0 to {len(choices) - 1}")
        return value
    if value not in choices:
        raise answer.wrong(f"is {value!r}, which is none of the choices")
    return choices.index(value)


def read_texts(field: Field) -> tuple[str, ...]:
    """Return one text or a list of them; raises `InvalidRequest` for an empty or a long one."""
    values = field.value if isinstance(field.value, list) else [field.value]
    texts = []
    for value in values:
        one = Field(row={field.name: value}, place=field.place, name=field.name)
        text = one.string()
        if len(text) > LONGEST_ANSWER:
            raise one.wrong(f"has {len(text)} characters, more than {LONGEST_ANSWER}")
        texts.append(text)
    return tuple(texts)


def is_right(answer: str, accept: Sequence[str]) -> bool:
    """Return whether the answer has one of the accepted texts in it, as whole words."""
    words = spelled(answer)
    return any(f" {spelled(text)} " in f" {words} " for text in accept)


def spelled(text: str) -> str:
    """Return the words of a text in lower case, with one space between them."""
    plain = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    return " ".join(re.findall(r"[\w']+|[^\w\s.,;:!?\"()*]", plain))
