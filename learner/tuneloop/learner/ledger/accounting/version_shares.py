"""Shares of what versions were trained on: of chosen samples, and of what was retracted since.

Weights do not unlearn: what a user takes back is not used again, but what was learned from it
stays, until the policy is rebuilt from before it.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, exists, func, or_, select, union_all

from tuneloop.feedback import FeedbackKind, FeedbackStatus
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.schema import feedback, samples, undone_uses, uses
from tuneloop.learner.samples import ModelRole, SampleState


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareOfVersion:
    """A part of what a version's own steps used."""

    version: int
    """0 for steps that are not part of a version yet."""
    samples: int
    share: float
    """Of the weight of all uses, replays too, 0 to 1; `trust` is not on record."""


def shares_of_versions(
    connection: Connection, chosen: Any, *, undone: bool = True
) -> list[ShareOfVersion]:
    """Return how much of the policy's versions the chosen samples are, oldest version first.

    With `undone`, also of quarantined versions, whose samples were put back.
    """
    used = select(
        func.coalesce(uses.c.policy_version, 0).label("version"),
        uses.c.sample_id,
        uses.c.objective,
    ).where(uses.c.model == ModelRole.POLICY)
    put_back = select(
        undone_uses.c.version, undone_uses.c.sample_id, undone_uses.c.objective
    ).where(undone_uses.c.model == ModelRole.POLICY)
    all_uses = (union_all(used, put_back) if undone else used).subquery()
    sample = and_(
        samples.c.sample_id == all_uses.c.sample_id, samples.c.objective == all_uses.c.objective
    )
    weight = func.sum(samples.c.weight)
    theirs = connection.execute(
        select(
            all_uses.c.version,
            func.count((samples.c.objective + ":" + samples.c.sample_id).distinct()).label("n"),
            weight.label("weight"),
        )
        .join(samples, sample)
        .where(chosen)
        .group_by(all_uses.c.version)
        .order_by(all_uses.c.version)
    ).all()
    of_all = (
        select(all_uses.c.version, weight)
        .join(samples, sample)
        .where(all_uses.c.version.in_([row.version for row in theirs]))
        .group_by(all_uses.c.version)
    )
    totals = {row[0]: row[1] for row in connection.execute(of_all)}
    # A version of samples without weight was moved by none of them.
    return [
        ShareOfVersion(
            version=row.version,
            samples=row.n,
            share=row.weight / totals[row.version] if totals[row.version] else 0.0,
        )
        for row in theirs
    ]


def is_pair_of_thumb(given: Any) -> Any:
    """Select pairs of siblings of which one is a user's thumb among the feedback `given`."""
    half = exists().where(
        given,
        feedback.c.kind == FeedbackKind.THUMB.value,
        feedback.c.session_id == "",
        feedback.c.user_hash == samples.c.user_hash,
        feedback.c.completion_id.in_((samples.c.completion_id, samples.c.rejected_id)),
    )
    return and_(samples.c.kind == "siblings", half)


def _is_retracted() -> Any:
    """Select retracted samples, and used pairs of siblings of which a thumb was retracted."""
    pair = is_pair_of_thumb(feedback.c.status == FeedbackStatus.RETRACTED.value)
    # A pair that another thumb makes again is current.
    gone = and_(samples.c.current.is_(False), pair)
    return or_(samples.c.state == SampleState.RETRACTED, gone)


def retracted_shares(database: Database) -> list[ShareOfVersion]:
    """Return the retracted part of each version that the policy grew from, oldest first.

    Versions of which nothing was retracted are left out; version 0 is steps without one so far.
    """
    with database.read() as connection:
        return shares_of_versions(connection, _is_retracted(), undone=False)
