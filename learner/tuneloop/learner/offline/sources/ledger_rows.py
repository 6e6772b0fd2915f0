"""The feedback a service has collected, as data to train on: `--data ledger:DATA_DIR`.

Everything that may be learned from and is still the user's last word is read, used online before or
not; the ledger's accounting is left as it is. A ledger on Postgres is named by its URL.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import select

from tuneloop.errors import FailedPrecondition, InvalidRequest
from tuneloop.learner.data.fields import Fields
from tuneloop.learner.data.prompt_rows import PromptRow
from tuneloop.learner.data.rows import OnLong, RowsData
from tuneloop.learner.data.tokenize import EditTokenizer, PromptTokens, TooLong
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.queue.build_samples import Builder, problem_of
from tuneloop.learner.ledger.queue.ready import COLUMNS, LAST_WORD, ready_samples
from tuneloop.learner.ledger.rows import unpack_ids
from tuneloop.learner.ledger.schema import held_out, rollouts, samples
from tuneloop.learner.samples import Objective
from tuneloop.rollouts import ChatMessage, RolloutSource, prompt_as_text
from tuneloop.weights.shapes import base_model_sha256

PREFIX = "ledger:"


def is_ledger(reference: str) -> bool:
    """Return whether `--data` names a ledger."""
    return reference.startswith(PREFIX)


def open_ledger(reference: str) -> Database:
    """Open the ledger of a data folder of `tuneloop up`, a ledger's file, or one on Postgres.

    Raises `InvalidRequest` where there is none.
    """
    place = reference.removeprefix(PREFIX)
    if "://" in place:
        return Database(place)
    path = Path(place).expanduser()
    for candidate in (path, path / "learner" / "ledger.db", path / "ledger.db"):
        if candidate.is_file():
            return Database.at(candidate)
    raise InvalidRequest(f"{reference}: no ledger there (looked for ledger.db)", param="data")


def read_ledger(objective: Objective, reference: str, model: Path) -> RowsData:
    """Return every sample of an objective, oldest first.

    Raises `InvalidRequest` where there is none, `FailedPrecondition` where the policy's samples are
    the tokens of another model.
    """
    database = open_ledger(reference)
    if objective is not Objective.REWARD_MODEL:
        check_model(database, reference, model)
    query = ready_samples(*COLUMNS).where(samples.c.objective == objective, LAST_WORD)
    query = query.order_by(samples.c.accepted_time, samples.c.sample_id)
    edit_tokens = None if objective is Objective.REWARD_MODEL else EditTokenizer(model)
    with database.read() as connection:
        builder = Builder(connection, edit_tokens)
        rows = connection.execute(query).all()
        found: list[Any] = []
        for row in rows:
            if problem_of(row) is None:
                # A comment that cannot be a hint.
                with suppress(InvalidRequest):
                    found.append(builder.build(row))
    database.close()
    return as_data(found, reference, f"no feedback for {objective}")


def read_ledger_prompts(
    reference: str, model: Path, *, max_length: int, on_long: OnLong
) -> RowsData:
    """Return every prompt that users asked, once, oldest first, without those held out.

    `max_length` is what the model has for a prompt. Raises as `read_ledger`, and `TooLong`.
    """
    database = open_ledger(reference)
    check_model(database, reference, model)
    query = (
        select(rollouts)
        .where(
            rollouts.c.source != RolloutSource.EVAL.value,
            rollouts.c.prompt_sha256.not_in(select(held_out.c.prompt_sha256)),
        )
        .order_by(rollouts.c.finished_time, rollouts.c.completion_id)
    )
    prompts: dict[tuple[int, ...], PromptRow] = {}
    dropped = 0
    with database.read() as connection:
        for row in connection.execute(query):
            ids = unpack_ids(row.prompt_tokens)
            if ids in prompts:
                continue
            place = f"{reference}, prompt of {row.completion_id}"
            if len(ids) > max_length:
                if on_long == "error":
                    raise TooLong(Fields({}, place), f"{len(ids)} tokens in the prompt", max_length)
                dropped += 1
                continue
            prompts[ids] = prompt_of(row, ids, place)
    database.close()
    return as_data(list(prompts.values()), reference, "no prompts", dropped=dropped)


def prompt_of(row: Any, ids: tuple[int, ...], place: str) -> PromptRow:
    """Return a rollout's prompt."""
    messages = tuple(ChatMessage(role=r, content=c) for r, c in json.loads(row.messages))
    asked = PromptTokens(
        text=prompt_as_text(messages, row.prompt_text),
        messages=messages,
        rendered=row.prompt_text,
        token_ids=ids,
    )
    return PromptRow(place=place, asked=asked, columns=json.loads(row.columns))


def check_model(database: Database, reference: str, model: Path) -> None:
    """Raise `FailedPrecondition` unless the ledger's token ids are this model's."""
    known = database.fact("base model")
    if known is not None and known != base_model_sha256(model):
        raise FailedPrecondition(
            f"{reference}: its tokens are those of another model than --model; give the one that "
            "the service ran with, or a version that grew from it",
            param="model",
        )


def as_data(found: Sequence[Any], reference: str, none: str, *, dropped: int = 0) -> RowsData:
    """Samples with a hash of what they are; raises `InvalidRequest` where there are none."""
    if not found:
        raise InvalidRequest(f"{reference}: {none} in this ledger", param="data")
    digest = hashlib.sha256("\n".join(map(repr, found)).encode()).hexdigest()
    return RowsData(samples=found, sha256=digest, rows=len(found) + dropped, dropped=dropped)
