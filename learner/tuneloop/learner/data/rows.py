"""A table's rows as samples, by the algorithm."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tuneloop.errors import InvalidRequest
from tuneloop.learner.data import policy_rows, reward_rows
from tuneloop.learner.data.fields import Fields
from tuneloop.learner.data.prompt_rows import PromptRow, prompt_form, prompt_row
from tuneloop.learner.data.table import Table
from tuneloop.learner.data.tokenize import PromptTokenizer, TooLong
from tuneloop.learner.samples import Objective

OnLong = Literal["error", "drop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsData:
    """What a run learns from, and what its record says of it."""

    samples: Sequence[Any]
    """Samples of the objective, or `PromptRow`s."""
    sha256: str
    rows: int
    dropped: int
    """Rows left out as too long."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """For the run's record."""
        return {"data_sha256": self.sha256, "rows": self.rows, "dropped_rows": self.dropped}


def read_samples(
    objective: Objective, table: Table, tokens: PromptTokenizer, on_long: OnLong, reader: str = ""
) -> RowsData:
    """Return an objective's samples of a table; raises `InvalidRequest` naming the row.

    `reader` is what a message about the columns says they are for: the objective by default.
    """
    make = policy_rows.sample_maker(objective, table, tokens, reader or objective)
    return convert(table, make, on_long)


def read_texts(table: Table) -> RowsData:
    """Return the reward model's samples of a table; raises `InvalidRequest` naming the row."""
    return convert(table, reward_rows.sample_maker(table), "error")


def read_prompts(
    algorithm: str, table: Table, tokens: PromptTokenizer, *, room: int, on_long: OnLong
) -> RowsData:
    """Prompts with room for a completion of `room` tokens; raises `InvalidRequest`."""
    form = prompt_form(table, algorithm)

    def make(row: Fields) -> Sequence[PromptRow]:
        return [prompt_row(table, form, tokens, room, row)]

    return convert(table, make, on_long)


def convert(table: Table, make: Callable[[Fields], Sequence[Any]], on_long: OnLong) -> RowsData:
    """Return every row's samples, in order; rows that are too long raise or are left out."""
    samples: list[Any] = []
    dropped = 0
    for index, row in enumerate(table.rows):
        try:
            samples.extend(make(Fields(row, table.place(index))))
        except TooLong:
            if on_long == "error":
                raise
            dropped += 1
    if not samples:
        problem = "every row is too long for the model" if dropped else "no row has a sample"
        raise InvalidRequest(f"{table.name}: {problem}", param="data")
    return RowsData(samples=samples, sha256=table.sha256(), rows=len(table.rows), dropped=dropped)
