"""Rows of an export as files that pandas and `datasets` load: JSON lines, or Parquet."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from tuneloop.errors import FailedPrecondition, SettingsError
from tuneloop.files import sync
from tuneloop.learner.data.table import missing_package
from tuneloop.learner.files import PARTIAL

Pages = Iterable[Sequence[str]]
"""JSON objects, some at a time."""

provenance = {
    "feedback_id": "string",
    "policy_version": "int64",
    "accepted_time": "string",
    "tags": "strings",
}
thought = {"reasoning_text": "string"}
columns_of_kind: Mapping[str, Mapping[str, str]] = {
    "pairs": {
        "prompt": "text",
        "chosen": "answer",
        "rejected": "answer",
        "kind": "string",
        **thought,
        "rejected_reasoning_text": "string",
        **provenance,
    },
    "thumbs": {"prompt": "text", "completion": "answer", "label": "bool", **thought, **provenance},
    "demonstrations": {"prompt": "text", "completion": "answer", **thought, **provenance},
    "metrics": {
        "prompt": "text",
        "completion": "answer",
        "name": "string",
        "value": "double",
        "type": "string",
        **thought,
        **provenance,
    },
    "rollouts": {
        "prompt": "text",
        "completion": "answer",
        **thought,
        "reward": "double",
        "reward_model_version": "int64",
        "policy_version": "int64",
        "oldest_policy_version": "int64",
        "finish_reason": "string",
        "completion_id": "string",
        "finished_time": "string",
        "tags": "strings",
    },
}
"""Types by column; `text` and `answer` are strings or conversations, `strings` lists of strings."""


def write_rows(pages: Pages, kind: str, form: str, output: Path | None) -> int:
    """Write rows to a file, which appears whole or not at all, or to standard output.

    How many there were. Raises `SettingsError` where `form` needs a file or a package that is not
    there, `FailedPrecondition` where the file cannot be written, and what reading `pages` raises.
    """
    if output is None:
        if form != "jsonl":
            raise SettingsError(f"{form} is not for a terminal: name a file with --output")
        return write_lines(pages, sys.stdout)
    with replacing(output.expanduser().absolute()) as partial:
        if form == "parquet":
            return write_parquet(pages, kind, partial)
        with partial.open("w", encoding="utf-8") as file:
            return write_lines(pages, file)


@contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """A file beside `output` that takes its place at the end, or is removed after a failure."""
    partial = output.with_name(output.name + PARTIAL)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        sync(partial)
        partial.rename(output)
        sync(output.parent)
    except OSError as error:
        raise FailedPrecondition(f"{output}: {error}", param="output") from error
    finally:
        partial.unlink(missing_ok=True)


def write_lines(pages: Pages, file: TextIO) -> int:
    """Write one JSON object a line."""
    count = 0
    for rows in pages:
        file.writelines(f"{row}\n" for row in rows)
        count += len(rows)
    return count


def write_parquet(pages: Pages, kind: str, path: Path) -> int:
    """Write a Parquet file; its columns have their types also where all values of one are null."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise missing_package("pyarrow", "parquet") from error

    message = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])

    def schema(first: Mapping[str, Any]) -> Any:
        conversational = isinstance(first.get("prompt"), list)
        text = pyarrow.list_(message) if conversational else pyarrow.string()
        types = {
            "text": text,
            "answer": text,
            "string": pyarrow.string(),
            "bool": pyarrow.bool_(),
            "double": pyarrow.float64(),
            "int64": pyarrow.int64(),
            "strings": pyarrow.list_(pyarrow.string()),
        }
        return pyarrow.schema([(n, types[t]) for n, t in columns_of_kind[kind].items()])

    count = 0
    writer = None
    try:
        for page in pages:
            rows = [json.loads(row) for row in page]
            if writer is None:
                writer = pyarrow.parquet.ParquetWriter(path, schema(rows[0]))
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=writer.schema))
            count += len(rows)
        if writer is None:
            writer = pyarrow.parquet.ParquetWriter(path, schema({}))
    finally:
        if writer is not None:
            writer.close()
    return count
