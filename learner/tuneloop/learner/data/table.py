"""Rows to learn from, wherever they lie: a file, a folder of `datasets`, a dataset of the hub.

Every row knows its place, so that an error names it as its author would look for it.
"""

import csv
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.errors import InvalidRequest, NotFound, SettingsError, Unavailable
from tuneloop.text.lines import decode_text

Row = Mapping[str, Any]

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
MAX_FIELD = 16 * 2**20
"""Characters in a field of a CSV file."""
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows, and what to call them."""

    name: str
    """As the user named it."""
    rows: Sequence[Row]
    lines: Sequence[int] | None = None
    """The line each row begins on, where the file has lines; else rows are counted from 1."""

    @property
    def columns(self) -> list[str]:
        """Every column that some row has, in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def place(self, index: int) -> str:
        """Where a row is: `pairs.jsonl, line 3`."""
        if self.lines is not None:
            return f"{self.name}, line {self.lines[index]}"
        return f"{self.name}, row {index + 1}"

    def sha256(self) -> str:
        """Hash of the content: what a resumed run checks."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(json.dumps(row, sort_keys=True, default=repr).encode() + b"\n")
        return digest.hexdigest()


def open_table(reference: str) -> Table:
    """Read a file (.jsonl, .json, .parquet, .csv), a `save_to_disk` folder or a hub dataset.

    `name:split` picks a split of a dataset; without it the split is `train`, or the only one.

    Raises:
        NotFound: there is no such file, dataset or split.
        InvalidRequest: it cannot be read, or has no rows; the message says where.

    """
    path = Path(reference).expanduser()
    if path.is_file():
        table = read_file(path, reference)
    else:
        table = Table(name=reference, rows=read_dataset(reference))
    if not table.rows:
        raise InvalidRequest(f"{reference}: no rows", param="data")
    return table


def read_file(path: Path, name: str) -> Table:
    """Read one file by its suffix; raises `InvalidRequest`."""
    readers = {
        ".jsonl": read_jsonl,
        ".json": read_json,
        ".parquet": read_parquet,
        ".csv": read_csv,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InvalidRequest(f"{name}: not one of {', '.join(SUFFIXES)}", param="data")
    if path.stat().st_size == 0:
        raise InvalidRequest(f"{name}: the file is empty", param="data")
    try:
        return reader(path, name)
    except UnicodeDecodeError as error:
        # The reader may have decoded a piece of the file only: the error's own place is in that.
        try:
            decode_text(path.read_bytes())
        except ValueError as with_line:
            raise InvalidRequest(f"{name}, {with_line}", param="data") from error
        raise


def read_jsonl(path: Path, name: str) -> Table:
    """Read one JSON object a line; blank lines are skipped."""
    rows: list[Row] = []
    lines: list[int] = []
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InvalidRequest(f"{name}, line {number}: not JSON: {error}") from error
            rows.append(checked_row(row, f"{name}, line {number}"))
            lines.append(number)
    return Table(name=name, rows=rows, lines=lines)


def read_json(path: Path, name: str) -> Table:
    """Read a JSON list of objects."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name}: not JSON: {error}") from error
    if not isinstance(document, list):
        raise InvalidRequest(f"{name}: not a JSON list of objects (for one a line: .jsonl)")
    rows = [checked_row(row, f"{name}, row {i}") for i, row in enumerate(document, start=1)]
    return Table(name=name, rows=rows)


def read_csv(path: Path, name: str) -> Table:
    """Comma-separated text with a header; a first column without a name is pandas' index."""
    csv.field_size_limit(MAX_FIELD)
    rows: list[Row] = []
    lines: list[int] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader: csv.DictReader[Any] = csv.DictReader(file, strict=True)
        line = 2
        try:
            for row in reader:
                if None in row or None in row.values():
                    names = ", ".join(reader.fieldnames or ())
                    raise InvalidRequest(f"{name}, line {line}: fields do not match {names}")
                rows.append({column: value for column, value in row.items() if column})
                lines.append(line)
                line = reader.line_num + 1
        except csv.Error as error:
            raise InvalidRequest(f"{name}, line {line}: not CSV: {error}") from error
    return Table(name=name, rows=rows, lines=lines)


def read_parquet(path: Path, name: str) -> Table:
    """Read a Parquet file."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise missing_package("pyarrow", name) from error

    try:
        return Table(name=name, rows=pyarrow.parquet.read_table(path).to_pylist())
    except (pyarrow.ArrowException, OSError) as error:
        raise InvalidRequest(f"{name}: cannot be read as Parquet: {error}") from error


def read_dataset(reference: str) -> Sequence[Row]:
    """Read the rows of a `save_to_disk` folder or a hub dataset, one split of it."""
    name, split = reference, None
    if not Path(reference).expanduser().exists() and ":" in reference:
        name, _, split = reference.rpartition(":")
    folder = Path(name).expanduser()
    # A path like data/pairs.jsonl has the form of an id; the hub would be asked for half a minute.
    is_id = HUB_ID.fullmatch(name) is not None and folder.suffix.lower() not in SUFFIXES
    if not folder.is_dir() and not is_id:
        raise NotFound(
            f"{reference}: no such file or folder, nor the id of a dataset (owner/name)",
            param="data",
        )
    try:
        import datasets
    except ImportError as error:
        raise missing_package("datasets", reference) from error

    try:
        if folder.is_dir():
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(name)
    except FileNotFoundError as error:
        what = "not a folder of `save_to_disk`" if folder.is_dir() else "no such dataset"
        raise NotFound(f"{reference}: {what}: {error}", param="data") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise Unavailable(f"{reference}: cannot be loaded: {error}", param="data") from error
    if isinstance(loaded, datasets.DatasetDict):
        loaded = choose_split(loaded, split, reference)
    elif split is not None:
        raise NotFound(f"{reference}: this dataset has no splits", param="data")
    rows: list[Row] = loaded.to_list()
    return rows


def choose_split(splits: Mapping[str, Any], split: str | None, reference: str) -> Any:
    """Return the named split, else `train`, else the only one; raises `NotFound`."""
    wanted = split or ("train" if "train" in splits or len(splits) != 1 else next(iter(splits)))
    if wanted not in splits:
        known = ", ".join(splits)
        raise NotFound(f"{reference}: no split {wanted!r}, only {known}", param="data")
    return splits[wanted]


def checked_row(row: Any, place: str) -> Row:
    """`row`, if it is an object with columns, all of whose texts have a UTF-8 form.

    JSON can spell half of a surrogate pair.
    """
    if not isinstance(row, dict):
        raise InvalidRequest(f"{place}: a {type(row).__name__}, not an object with columns")
    for column, value in row.items():
        try:
            json.dumps([column, value], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            name = column.encode(errors="replace").decode()
            raise InvalidRequest(f"{place}: {name} is not valid Unicode", param=name) from None
    return row


def missing_package(package: str, name: str) -> SettingsError:
    """Return the error to raise when an optional package is not installed."""
    return SettingsError(f'{name} needs the package {package}: pip install "tuneloop[learner]"')
