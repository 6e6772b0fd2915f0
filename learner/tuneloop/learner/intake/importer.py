"""Import judgements of texts that this service did not write.

A row becomes rollouts without versions and without a sampler's log-probs, and the feedback on them:
KTO, DPO, SFT and the reward model learn from it; PPO and GRPO never do. Metrics are kept, and count
for no version. Ids are hashes of the content, so importing a row twice adds nothing.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuneloop.errors import InvalidRequest
from tuneloop.feedback import (
    MAX_NUMBER,
    METRIC_NAME,
    Comparison,
    Demonstration,
    Feedback,
    Judgement,
    Metric,
    Thumb,
)
from tuneloop.host import steady_time
from tuneloop.learner.data.fields import Fields, Form, Text, choose_form
from tuneloop.learner.data.policy_rows import (
    ANSWERED,
    INSTRUCTED,
    INSTRUCTED_LABELLED,
    LABELLED,
    read_completion,
)
from tuneloop.learner.data.preferences import PAIRED, check_answer, preferences
from tuneloop.learner.data.prompt_rows import read_prompt
from tuneloop.learner.data.table import Table
from tuneloop.learner.data.tokenize import PromptTokenizer, TooLong, completion_text
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.rows import compact
from tuneloop.rollouts import (
    FinishReason,
    PolicyVersionSpan,
    Rollout,
    RolloutSource,
    SamplingParameters,
)

IMPORT = "import"
"""Tenant of imported rows, and the prefix of their ids."""
NO_VERSION = -1

forms_of_kind = {
    "pairs": PAIRED,
    "thumbs": (LABELLED, INSTRUCTED_LABELLED),
    "demonstrations": (ANSWERED, INSTRUCTED),
    "metrics": (Form(columns=("prompt", "completion", "name", "value"), optional=("type",)),),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedRow:
    """A row of a file."""

    place: str
    """Where it is in the file, for messages."""
    row: dict[str, Any]
    occurrence: int = 0
    """How many equal rows come before it in its file: several people may agree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """How many rows were added or known."""

    added: int
    known: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RowJudgement:
    """The judgement of a row."""

    prompt: Text
    answers: tuple[Text, ...]
    """The chosen one first."""
    label: bool | None = None
    """Whether the answer is desirable."""
    metric: Metric | None = None


Reader = Callable[[Fields], RowJudgement]


def row_reader(kind: str, table: Table) -> Reader:
    """Return a reader of rows of a kind; raises `InvalidRequest` for another kind or columns.

    The reader raises `InvalidRequest` naming the row that is wrong.
    """
    if kind not in forms_of_kind:
        raise InvalidRequest(f"kind: one of {', '.join(forms_of_kind)}", param="kind")
    form = choose_form(table, forms_of_kind[kind], kind)

    def pair(row: Fields) -> RowJudgement:
        [found] = preferences(row, form)
        return RowJudgement(prompt=found.prompt, answers=(found.chosen, found.rejected))

    def answer(row: Fields) -> RowJudgement:
        return RowJudgement(
            prompt=read_prompt(row, form),
            answers=(read_completion(row, form),),
            label=row["label"].flag() if kind == "thumbs" else None,
            metric=read_metric(row) if kind == "metrics" else None,
        )

    def checked(row: Fields) -> RowJudgement:
        said = pair(row) if kind == "pairs" else answer(row)
        for text in said.answers:
            check_answer(text, "the completion", row)
        return said

    return checked


def read_metric(row: Fields) -> Metric:
    """Return the metric of a row: a boolean where its value or its `type` says so."""
    name = row["name"].string()
    if METRIC_NAME.fullmatch(name) is None:
        raise row["name"].wrong(f"is {name!r}, not a letter and then letters, digits, _, . or -")
    value = row["value"].value
    boolean = isinstance(value, bool) or str(value).strip().lower() in ("true", "false")
    if "type" in row:
        if row["type"].string() not in ("boolean", "number"):
            raise row["type"].wrong(f"is {row['type'].value!r}, not boolean or number")
        boolean = row["type"].value == "boolean"
    if boolean:
        return Metric(name=name, value=row["value"].flag())
    number = row["value"].number()
    if not abs(number) < MAX_NUMBER:
        raise row["value"].wrong(f"is {number:g}, not between -1e9 and 1e9")
    return Metric(name=name, value=number)


class Importer:
    """Adds rows to a ledger, tokenized for its policy."""

    def __init__(
        self,
        database: Database,
        policy: str,
        model: Path,
        *,
        clock: Callable[[], float] = steady_time,
    ) -> None:
        self._database = database
        self._policy = policy
        self._model = model
        self._clock = clock
        self._tokens: PromptTokenizer | None = None

    @property
    def tokens(self) -> PromptTokenizer:
        """The policy's tokenizer and chat template, loaded when first needed."""
        if self._tokens is None:
            self._tokens = PromptTokenizer(self._model, max_length=None)
        return self._tokens

    def add(self, kind: str, rows: Sequence[ImportedRow]) -> Imported:
        """Add all rows or none; raises `InvalidRequest` naming the first that is wrong."""
        read = row_reader(kind, Table(name="the file", rows=[row.row for row in rows]))
        # A row of an export names its feedback, which this ledger may have already.
        named = [str(row.row.get("feedback_id", "")) for row in rows]
        own = recorder.recorded_feedback(self._database, named)
        strange = [row for row, name in zip(rows, named, strict=True) if name not in own]
        made = [self._made(kind, read, row) for row in strange]
        added = recorder.record_imports(
            self._database,
            [rollout for rollouts, _ in made for rollout in rollouts],
            [feedback for _, feedback in made],
            self._clock(),
        )
        return Imported(added=added, known=len(rows) - added)

    def _made(self, kind: str, read: Reader, row: ImportedRow) -> tuple[list[Rollout], Feedback]:
        fields = Fields(row.row, row.place)
        try:
            json.dumps(row.row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise fields.wrong("a text that is not valid Unicode") from error
        said = read(fields)
        rollouts = [self._rollout(said.prompt, answer, fields) for answer in said.answers]
        first, *others = (rollout.completion_id for rollout in rollouts)
        if first in others:
            raise fields.wrong("chosen and rejected are the same")
        judgement: Judgement
        if others:
            judgement = Comparison(chosen=first, rejected=tuple(others))
        elif said.label is not None:
            judgement = Thumb(up=said.label)
        elif said.metric is not None:
            judgement = said.metric
        else:
            judgement = Demonstration(text=rollouts[0].completion_text)
        name = digest(kind, json.dumps(row.row, sort_keys=True), row.occurrence)
        return rollouts, Feedback(
            feedback_id=f"{IMPORT}-{name}",
            policy=self._policy,
            tenant=IMPORT,
            # Each row counts as another user's judgement.
            user_hash=name[:16],
            completion_id=first,
            judgement=judgement,
            accepted_time=self._now(),
        )

    def _rollout(self, prompt: Text, completion: Text, row: Fields) -> Rollout:
        asked = self.tokens.asked(prompt, row)
        try:
            sequence = self.tokens.sequence(asked, completion, row)
        except TooLong as error:
            raise InvalidRequest(error.problem) from error
        text = completion_text(completion, row)
        turns = compact([[m.role, m.content] for m in asked.messages])
        completion_id = f"{IMPORT}-{digest(turns, asked.rendered, text)}"
        return Rollout(
            completion_id=completion_id,
            group_id=completion_id,
            policy=self._policy,
            tenant=IMPORT,
            user_hash=IMPORT,
            messages=asked.messages,
            prompt_text=asked.rendered,
            completion_text=text,
            reasoning_text=self.tokens.thought_text(sequence),
            reasoning_tokens=sequence.reasoning_tokens,
            prompt_token_ids=sequence.prompt_token_ids,
            completion_token_ids=sequence.completion_token_ids,
            generation_logprobs=(),
            finish_reason=FinishReason.STOP,
            policy_version_spans=(
                PolicyVersionSpan(
                    policy_version=NO_VERSION, start=0, end=len(sequence.completion_token_ids)
                ),
            ),
            sampling=SamplingParameters(
                temperature=1.0, max_tokens=len(sequence.completion_token_ids)
            ),
            finished_time=self._now(),
            source=RolloutSource.IMPORT,
        )

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


def digest(*parts: object) -> str:
    """Return a hash of the parts, 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
