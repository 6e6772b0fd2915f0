"""What was collected, as rows in the columns that TRL's trainers read.

| kind | columns |
| --- | --- |
| pairs | prompt, chosen, rejected; kind of feedback, feedback_id, policy_version, accepted_time |
| thumbs | prompt, completion, label; feedback_id, policy_version, accepted_time |
| demonstrations | prompt, completion; feedback_id, policy_version, accepted_time |
| metrics | prompt, completion, name, value, type; feedback_id, policy_version, accepted_time |
| rollouts | prompt, completion, reward; versions, finish_reason, completion_id, finished_time |

Every row also has `reasoning_text`, what a model that reasons thought before the answer, and pairs
`rejected_reasoning_text`; empty where there is none.

The last column of each is tags, what the application noted about the request: texts `name=value`,
as the columns of an object would differ from row to row.

Rows are what users say now: the last word of each, nothing retracted or expired, nothing of prompts
that are held out. Prompts and answers are conversations where every prompt was one; else all are
texts, prompts as the model was given them, so that a file's columns have one type.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import and_, case, func, or_, select

from tuneloop.errors import InvalidRequest
from tuneloop.feedback import FeedbackStatus
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.queue.build_samples import problem_of, text_of
from tuneloop.learner.ledger.queue.ready import COLUMNS, LAST_WORD, chosen, ready_samples
from tuneloop.learner.ledger.rows import compact, has_tags, moment
from tuneloop.learner.ledger.schema import feedback, held_out, samples, scores
from tuneloop.learner.samples import Objective
from tuneloop.rollouts import RolloutSource

PAGE = 256
NOT_HELD_OUT = chosen.c.prompt_sha256.not_in(select(held_out.c.prompt_sha256))

objective_of_kind = {
    "pairs": Objective.DPO,
    "thumbs": Objective.KTO,
    "demonstrations": Objective.SFT,
}
EXPORTED = tuple(
    source.value for source in (RolloutSource.USER, RolloutSource.CANDIDATE, RolloutSource.PROMPTS)
)
KINDS = (*objective_of_kind, "metrics", "rollouts")

Row = dict[str, Any]
Place = tuple[float, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to export."""

    kind: str
    policy_version: int | None = None
    """Of the answer, or of the chosen one; None takes all."""
    since: float | None = None
    """Seconds since the epoch at which feedback was accepted or a rollout finished."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Of the request; all of them."""


def pages(database: Database, wanted: Wanted) -> Iterator[list[str]]:
    """JSON objects, oldest first, a page at a time; raises `InvalidRequest` for another kind."""
    if wanted.kind not in KINDS:
        raise InvalidRequest(f"kind: one of {', '.join(KINDS)}", param="kind")
    read: Callable[..., Any] = readers.get(wanted.kind, read_samples)
    with database.read() as connection:
        conversational = not connection.execute(read(wanted, plain=True).limit(1)).first()
    after: Place | None = None
    while True:
        with database.read() as connection:
            rows = connection.execute(read(wanted, after=after).limit(PAGE)).all()
        made = [
            compact(row_makers[wanted.kind](Texts(row, conversational)))
            for row in rows
            if wanted.kind in readers or problem_of(row) is None
        ]
        if made:
            yield made
        if len(rows) < PAGE:
            return
        after = place_of(rows[-1], wanted.kind)


def place_of(row: Any, kind: str) -> Place:
    """Where in the order a row is."""
    if kind == "rollouts":
        return row.chosen_finished_time, row.chosen_completion_id
    if kind == "metrics":
        return row.accepted_time, row.feedback_id
    return row.accepted_time, row.sample_id


def read_samples(wanted: Wanted, *, plain: bool = False, after: Place | None = None) -> Any:
    """The samples of an objective; with `plain` only those whose prompt is no conversation."""
    query = ready_samples(*COLUMNS, feedback.c.kind.label("feedback_kind")).where(
        samples.c.objective == objective_of_kind[wanted.kind], LAST_WORD
    )
    return narrowed(
        query,
        wanted,
        time=samples.c.accepted_time,
        name=samples.c.sample_id,
        plain=plain,
        after=after,
    )


def read_rollouts(wanted: Wanted, *, plain: bool = False, after: Place | None = None) -> Any:
    """The rollouts of users, with all candidates, and of the learner's own prompts.

    With their newest rewards.
    """
    newest = func.row_number().over(
        partition_by=scores.c.completion_id, order_by=scores.c.reward_model_version.desc()
    )
    ranked = (
        select(
            scores.c.completion_id,
            scores.c.reward,
            scores.c.reward_model_version,
            newest.label("rank"),
        )
        .where(scores.c.reward.is_not(None))
        .subquery()
    )
    query = (
        select(
            *(column.label(f"chosen_{column.name}") for column in chosen.c),
            ranked.c.reward,
            ranked.c.reward_model_version,
        )
        .select_from(chosen)
        .outerjoin(
            ranked, and_(ranked.c.completion_id == chosen.c.completion_id, ranked.c.rank == 1)
        )
        .where(
            chosen.c.source.in_(EXPORTED),
            NOT_HELD_OUT,
        )
    )
    return narrowed(
        query,
        wanted,
        time=chosen.c.finished_time,
        name=chosen.c.completion_id,
        plain=plain,
        after=after,
    )


def read_metrics(wanted: Wanted, *, plain: bool = False, after: Place | None = None) -> Any:
    """The last value of each user for each answer and metric; booleans and numbers are apart.

    That of a session is of its last answer, apart from that answer's own.
    """
    about = case((feedback.c.session_id == "", feedback.c.completion_id), else_="")
    last = func.row_number().over(
        partition_by=(
            *(about, feedback.c.session_id, feedback.c.tenant),
            *(feedback.c.user_hash, feedback.c.metric, feedback.c.is_boolean),
        ),
        order_by=(feedback.c.accepted_time.desc(), feedback.c.feedback_id.desc()),
    )
    given = (
        select(feedback, last.label("rank"))
        .where(feedback.c.kind == "metric", feedback.c.status == FeedbackStatus.ACCEPTED.value)
        .subquery()
    )
    query = (
        select(
            *(column.label(f"chosen_{column.name}") for column in chosen.c),
            *(given.c.feedback_id, given.c.accepted_time),
            *(given.c.metric, given.c.measured, given.c.is_boolean),
        )
        .join(given, given.c.completion_id == chosen.c.completion_id)
        .where(given.c.rank == 1, NOT_HELD_OUT)
    )
    return narrowed(
        query,
        wanted,
        time=given.c.accepted_time,
        name=given.c.feedback_id,
        plain=plain,
        after=after,
    )


readers: Mapping[str, Callable[..., Any]] = {"metrics": read_metrics, "rollouts": read_rollouts}
"""Of what is not made of samples."""


def narrowed(
    query: Any, wanted: Wanted, *, time: Any, name: Any, plain: bool, after: Place | None
) -> Any:
    """The query for what is wanted, in order, from a place on."""
    if plain:
        query = query.where(chosen.c.messages == "[]")
    if wanted.policy_version is not None:
        query = query.where(chosen.c.policy_version == wanted.policy_version)
    if wanted.tags:
        query = query.where(has_tags(chosen.c.tags, wanted.tags))
    if wanted.since is not None:
        query = query.where(time >= wanted.since)
    if after is not None:
        query = query.where(or_(time > after[0], and_(time == after[0], name > after[1])))
    return query.order_by(time, name)


class Texts:
    """A row's texts in one of the two forms."""

    def __init__(self, row: Any, conversational: bool) -> None:
        self.row = row
        self._conversational = conversational

    @property
    def prompt(self) -> str | list[Mapping[str, str]]:
        """The conversation, or the prompt as the model was given it."""
        if not self._conversational:
            return str(self.row.chosen_prompt_text)
        turns = json.loads(self.row.chosen_messages)
        return [{"role": role, "content": content} for role, content in turns]

    def answer(self, text: str) -> str | list[Mapping[str, str]]:
        """An answer to it."""
        return [{"role": "assistant", "content": text}] if self._conversational else text

    @property
    def thought(self) -> str:
        """What the model thought before the answer; empty: nothing."""
        return str(self.row.chosen_reasoning_text)

    def of_feedback(self) -> Row:
        """Where the row comes from."""
        return {
            "feedback_id": self.row.feedback_id,
            "policy_version": version_or_none(self.row.chosen_policy_version),
            "accepted_time": moment(self.row.accepted_time).isoformat(),
            "tags": tags_in(self.row),
        }


def pair(texts: Texts) -> Row:
    """A preference; one that two thumbs imply is of the kind `thumb`."""
    row = texts.row
    edited = row.kind == "edit"
    return {
        "prompt": texts.prompt,
        "chosen": texts.answer(text_of(row) if edited else row.chosen_completion_text),
        "rejected": texts.answer(
            row.chosen_completion_text if edited else row.rejected_completion_text
        ),
        "kind": row.feedback_kind or "thumb",
        "reasoning_text": texts.thought,
        "rejected_reasoning_text": texts.thought if edited else row.rejected_reasoning_text,
        **texts.of_feedback(),
    }


def thumb(texts: Texts) -> Row:
    """A labelled answer."""
    return {
        "prompt": texts.prompt,
        "completion": texts.answer(texts.row.chosen_completion_text),
        "label": texts.row.verdict == "up",
        "reasoning_text": texts.thought,
        **texts.of_feedback(),
    }


def demonstration(texts: Texts) -> Row:
    """An answer as it should be."""
    return {
        "prompt": texts.prompt,
        "completion": texts.answer(text_of(texts.row)),
        "reasoning_text": texts.thought,
        **texts.of_feedback(),
    }


def metric(texts: Texts) -> Row:
    """An answer with what was measured of it; `type` says whether 1 is true or a number."""
    return {
        "prompt": texts.prompt,
        "completion": texts.answer(texts.row.chosen_completion_text),
        "name": texts.row.metric,
        "value": texts.row.measured,
        "type": "boolean" if texts.row.is_boolean else "number",
        "reasoning_text": texts.thought,
        **texts.of_feedback(),
    }


def rollout(texts: Texts) -> Row:
    """An answer with its reward, null where it has none."""
    row = texts.row
    return {
        "prompt": texts.prompt,
        "completion": texts.answer(row.chosen_completion_text),
        "reasoning_text": texts.thought,
        "reward": row.reward,
        "reward_model_version": row.reward_model_version,
        "policy_version": row.chosen_policy_version,
        "oldest_policy_version": row.chosen_oldest_version,
        "finish_reason": row.chosen_finish_reason,
        "completion_id": row.chosen_completion_id,
        "finished_time": moment(row.chosen_finished_time).isoformat(),
        "tags": tags_in(row),
    }


def tags_in(row: Any) -> list[str]:
    """The tags of an answer's request."""
    return [f"{name}={value}" for name, value in json.loads(row.chosen_tags).items()]


def version_or_none(version: int) -> int | None:
    """A version; None for text that no policy wrote."""
    return version if version >= 0 else None


row_makers: Mapping[str, Callable[[Texts], Row]] = {
    "pairs": pair,
    "thumbs": thumb,
    "demonstrations": demonstration,
    "metrics": metric,
    "rollouts": rollout,
}
