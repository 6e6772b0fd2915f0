"""Answers to users, and the thumbs and metrics on them, as every report counts them.

What a user said of a session counts once, for the answer of its last turn when it was last said.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import and_, case, exists, func, not_, or_, select

from tuneloop.feedback import FeedbackStatus
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.rows import unpack_ids, unpack_logprobs
from tuneloop.learner.ledger.schema import feedback, rollouts
from tuneloop.learner.samples import TokenSequence
from tuneloop.rollouts import RolloutSource

BYTES_PER_TOKEN = 4
SESSION = (feedback.c.session_id, feedback.c.tenant)

of_users = rollouts.c.source == RolloutSource.USER.value
thought_length = rollouts.c.reasoning_tokens
"""The length of the thought before an answer, in tokens."""
length = func.length(rollouts.c.completion_tokens) / BYTES_PER_TOKEN - thought_length
"""The length of an answer in tokens, without its thought."""


def of_versions(versions: Collection[int]) -> Any:
    """Return the condition "an answer of one of these versions to a user"."""
    return and_(of_users, rollouts.c.policy_version.in_(versions))


PLAIN: Mapping[str, Any] = {
    "top_p": 1.0,
    "top_k": 0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": {},
    "json_schema": "",
    "structural_tag": "",
}
"""Sampling parameters with which log-probs are the policy's own, at a temperature."""
LEAST_TEMPERATURE = 0.01
"""Below it sampling is all but greedy, whose log-probs are of temperature 1."""
ANSWERS = 256
"""The number of latest answers to look through."""


def sampled_plainly(database: Database, version: int, *, tokens: int) -> list[TokenSequence]:
    """Return the latest answers that one version sampled from its whole distribution.

    As many as have so many `tokens` together, or all there are.
    """
    query = (
        select(rollouts)
        .where(
            rollouts.c.source.in_([s.value for s in RolloutSource]),
            rollouts.c.policy_version == version,
            rollouts.c.oldest_version == version,
            rollouts.c.temperature >= LEAST_TEMPERATURE,
        )
        .order_by(rollouts.c.finished_time.desc(), rollouts.c.completion_id)
        .limit(ANSWERS)
    )
    with database.read() as connection:
        rows = connection.execute(query).all()
    found: list[TokenSequence] = []
    for row in rows:
        sampling = json.loads(row.sampling)
        logprobs = unpack_logprobs(row.generation_logprobs)
        if logprobs and all(sampling.get(name, plain) == plain for name, plain in PLAIN.items()):
            found.append(
                TokenSequence(
                    prompt_token_ids=unpack_ids(row.prompt_tokens),
                    completion_token_ids=unpack_ids(row.completion_tokens),
                    generation_logprobs=logprobs,
                    temperature=row.temperature,
                    reasoning_tokens=row.reasoning_tokens,
                )
            )
            tokens -= len(logprobs)
        if tokens <= 0:
            break
    return found


def last_thumbs(answers: Any) -> Any:
    """Return a subquery of each rater's last thumb on each answer, without retracted ones.

    `answers` is a condition on rollouts; `user_hash` is of the user who asked. A thumb on the
    answer itself comes after one on its session.
    """
    return _last_of_each("thumb", (feedback.c.up,), answers)


def last_metrics(answers: Any) -> Any:
    """Return a subquery of each rater's last value of each metric of each answer, likewise.

    Booleans and numbers of one name are two metrics: neither can change the other's mean. So are
    that of an answer and that of its session.
    """
    values = (feedback.c.metric, feedback.c.is_boolean, feedback.c.measured)
    return _last_of_each("metric", values, answers, apart_by=(*values[:2], feedback.c.session_id))


def _last_of_each(
    kind: str, values: Sequence[Any], answers: Any, apart_by: Sequence[Any] = ()
) -> Any:
    given = (feedback.c.kind == kind, feedback.c.status != FeedbackStatus.RETRACTED.value)
    last = func.row_number().over(
        partition_by=(feedback.c.completion_id, feedback.c.user_hash, *apart_by),
        order_by=(
            case((feedback.c.session_id == "", 0), else_=1),
            feedback.c.accepted_time.desc(),
            feedback.c.feedback_id.desc(),
        ),
    )
    ranked = (
        select(
            rollouts.c.user_hash,
            rollouts.c.group_id,
            rollouts.c.policy_version,
            *values,
            feedback.c.accepted_time,
            feedback.c.feedback_id,
            last.label("rank"),
        )
        .join(rollouts, rollouts.c.completion_id == feedback.c.completion_id)
        .where(answers, *given, not_(_said_later_of_session(kind, apart_by)))
        .subquery()
    )
    return select(ranked).where(ranked.c.rank == 1).subquery()


def _said_later_of_session(kind: str, apart_by: Sequence[Any]) -> Any:
    """Return the condition that the user said the same kind of thing of that session again.

    By then the session's last turn may have been another, of any version.
    """
    later = feedback.alias()
    same = (later.c[c.name] == c for c in (*SESSION, feedback.c.user_hash, *apart_by))
    return and_(
        feedback.c.session_id != "",
        exists().where(
            *same,
            later.c.kind == kind,
            later.c.status != FeedbackStatus.RETRACTED.value,
            or_(
                later.c.accepted_time > feedback.c.accepted_time,
                and_(
                    later.c.accepted_time == feedback.c.accepted_time,
                    later.c.feedback_id > feedback.c.feedback_id,
                ),
            ),
        ),
    )
