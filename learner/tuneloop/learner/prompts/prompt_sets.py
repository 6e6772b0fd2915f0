"""Prompts of the learner's own: some to learn from, some to evaluate versions on."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneloop.errors import SettingsError, TuneloopError
from tuneloop.learner.data.prompt_rows import PromptRow, prompt_rows
from tuneloop.learner.data.table import open_table
from tuneloop.learner.data.tokenize import PromptTokenizer
from tuneloop.learner.ledger.rows import prompt_sha256
from tuneloop.learner.settings import LearnerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """Both lists; no prompt is in both, and no eval prompt comes twice."""

    training: Sequence[PromptRow]
    evaluation: Sequence[PromptRow]


def load_prompts(settings: LearnerSettings) -> Prompts:
    """Read and tokenize the files of the settings; raises `SettingsError` naming the row."""
    if settings.prompts is None and settings.eval_prompts is None:
        return Prompts(training=(), evaluation=())
    tokens = tokens_of(settings)
    room = settings.prompt_max_tokens
    evaluation = {
        sha256_of(row): row for row in _read("eval_prompts", settings.eval_prompts, tokens, room)
    }
    training = [
        row
        for row in _read("prompts", settings.prompts, tokens, room)
        if sha256_of(row) not in evaluation
    ]
    if settings.prompts is not None and not training:
        raise SettingsError("prompts: every one of them is among eval_prompts", param="prompts")
    return Prompts(training=training, evaluation=list(evaluation.values()))


def tokens_of(settings: LearnerSettings) -> PromptTokenizer:
    """Makes prompts as users do: a conversation, if the model has a chat template."""
    return PromptTokenizer(settings.model, max_length=None, as_chat=None)


def _read(name: str, path: Path | None, tokens: PromptTokenizer, room: int) -> Sequence[PromptRow]:
    if path is None:
        return ()
    try:
        return prompt_rows(open_table(str(path)), tokens, room, reader=name)
    except TuneloopError as error:
        message = error.message.replace(", or leave such rows out with --set on_long=drop", "")
        raise SettingsError(f"{name}: {message}", param=name) from error


def sha256_of(row: PromptRow) -> str:
    """Return the hash that the ledger knows the prompt by."""
    return prompt_sha256(row.asked.token_ids)


def shuffled(count: int, seed: int, position: int) -> Iterator[tuple[int, int]]:
    """Yield (position, index) from `position` on, without end; each round has its own order."""
    while True:
        order = list(range(count))
        # Not cryptographic: a restart must continue where it was.
        random.Random(f"{seed}-{position // count}").shuffle(order)  # noqa: S311
        for index in order[position % count :]:
            yield position, index
            position += 1
