"""`--data` to samples: a table's rows by the algorithm, or what the ledger holds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tuneloop.errors import InvalidRequest
from tuneloop.learner.offline import policy_rows, reward_rows
from tuneloop.learner.offline.fields import Fields
from tuneloop.learner.offline.prompt_rows import PromptRow, prompt_form, prompt_row
from tuneloop.learner.offline.table import Table, open_table
from tuneloop.learner.offline.tokens import Tokens, TooLong

OnLong = Literal["error", "drop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
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


def read_samples(algorithm: str, reference: str, tokens: Tokens, on_long: OnLong) -> Data:
    """The policy's samples of a file or dataset; raises `InvalidRequest` naming the row."""
    table = open_table(reference)
    return convert(table, policy_rows.sample_maker(algorithm, table, tokens), on_long)


def read_texts(reference: str) -> Data:
    """The reward model's samples of a file or dataset; raises `InvalidRequest` naming the row."""
    table = open_table(reference)
    return convert(table, reward_rows.sample_maker(table), "error")


def read_prompts(
    algorithm: str, reference: str, tokens: Tokens, *, room: int, on_long: OnLong
) -> Data:
    """Prompts with room for a completion of `room` tokens; raises `InvalidRequest`."""
    table = open_table(reference)
    form = prompt_form(table, algorithm)

    def make(row: Fields) -> Sequence[PromptRow]:
        return [prompt_row(table, form, tokens, room, row)]

    return convert(table, make, on_long)


def convert(table: Table, make: Callable[[Fields], Sequence[Any]], on_long: OnLong) -> Data:
    """Every row's samples, in order; rows that are too long end it all, or are left out."""
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
        raise InvalidRequest(f"{table.name}: every row is too long for the model", param="data")
    return Data(samples=samples, sha256=table.sha256(), rows=len(table.rows), dropped=dropped)


def is_ledger(reference: str) -> bool:
    """Whether the data is a ledger: `ledger:PATH`."""
    return reference.startswith("ledger:")


def ledger_file(reference: str) -> Path:
    """The database of `ledger:PATH`: a file, a data folder of `tuneloop up`, or the learner's."""
    path = Path(reference.removeprefix("ledger:")).expanduser()
    candidates = (path, path / "learner" / "ledger.db", path / "ledger.db")
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise InvalidRequest(f"{reference}: no ledger there (looked for ledger.db)", param="data")
