"""A file of judgements into a ledger, a piece at a time."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tuneloop.errors import TuneloopError
from tuneloop.learner.data.fields import Fields
from tuneloop.learner.data.table import Table
from tuneloop.learner.files import take_lock
from tuneloop.learner.intake.importer import Imported, ImportedRow, Importer, row_reader
from tuneloop.learner.offline.sources.ledger_rows import check_model, open_ledger
from tuneloop.learner.offline.versions import Versions

PIECE_ROWS = 256
PIECE_BYTES = 1 << 20

Add = Callable[[str, Sequence[ImportedRow]], Imported]


def seed(table: Table, kind: str, add: Add) -> Imported:
    """Add every row; raises `InvalidRequest` before the first where a row is wrong in its form.

    What stops it later (a text that does not fit the model, a service that goes away) leaves the
    pieces before it added; the same file again adds the rest.
    """
    read = row_reader(kind, table)
    for index, row in enumerate(table.rows):
        read(Fields(row, table.place(index)))
    added = known = 0
    try:
        for piece in pieces(table):
            done = add(kind, piece)
            added, known = added + done.added, known + done.known
    except TuneloopError as error:
        if added:
            error.message += f" ({added} rows before it were added)"
        raise
    return Imported(added=added, known=known)


def pieces(table: Table) -> Iterator[list[ImportedRow]]:
    """The rows in order, not too many bytes at a time; equal ones are counted."""
    seen: Counter[str] = Counter()
    piece: list[ImportedRow] = []
    size = 0
    for index, row in enumerate(table.rows):
        text = json.dumps(row, sort_keys=True, default=str)
        if piece and (len(piece) == PIECE_ROWS or size + len(text) > PIECE_BYTES):
            yield piece
            piece, size = [], 0
        # As JSON has it, here and over HTTP alike: times of a Parquet file become texts, and NaN,
        # which JSON has no word for, is no value.
        plain = json.loads(text, parse_constant=lambda _: None)
        piece.append(ImportedRow(place=table.place(index), row=plain, occurrence=seen[text]))
        seen[text] += 1
        size += len(text)
    if piece:
        yield piece


@contextmanager
def stopped_ledger(data_dir: Path, versions: Versions) -> Iterator[Add]:
    """Adds to the ledger of a data folder whose learner does not run.

    Raises `FailedPrecondition` where it does, and where the ledger belongs to another model.
    """
    root = data_dir.expanduser().absolute()
    model = versions.find("0").folder
    lock = take_lock(root / "learner")
    try:
        database = open_ledger(str(root))
        check_model(database, str(root), model)
        yield Importer(database, versions.policy, model).add
        database.close()
    finally:
        lock.close()
