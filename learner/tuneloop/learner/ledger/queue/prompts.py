"""Rollouts of the learner's own prompts, and the prompts that are only evaluated on."""

from collections.abc import Collection, Iterable

from sqlalchemy import delete, select

from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.rows import prompt_sha256
from tuneloop.learner.ledger.schema import held_out, rollouts, samples
from tuneloop.learner.samples import SampleState
from tuneloop.rollouts import RolloutSource


def recorded(database: Database, group_ids: set[str]) -> set[str]:
    """Return which of these groups have a rollout in the ledger."""
    query = select(rollouts.c.group_id).where(rollouts.c.group_id.in_(group_ids)).distinct()
    with database.read() as connection:
        return set(connection.execute(query).scalars())


def outstanding(database: Database, serving: int, fresh_versions: Collection[int]) -> int:
    """Count prompts with rollouts of `fresh_versions` that nothing was learned from yet.

    A prompt is done once one of its rollouts was used or is stale. If none ever made a sample (no
    scorer had anything to say) it is done once another version serves: asking the same version
    again would bring nothing either.
    """
    query = (
        select(rollouts.c.group_id, rollouts.c.policy_version, samples.c.state)
        .outerjoin(
            samples,
            (samples.c.completion_id == rollouts.c.completion_id) & (samples.c.kind == "score"),
        )
        .where(
            rollouts.c.source == RolloutSource.PROMPTS.value,
            rollouts.c.policy_version.in_(sorted(fresh_versions)),
        )
    )
    states: dict[str, set[str | None]] = {}
    newest: dict[str, int] = {}
    with database.read() as connection:
        for row in connection.execute(query):
            states.setdefault(row.group_id, set()).add(row.state)
            newest[row.group_id] = max(row.policy_version, newest.get(row.group_id, 0))
    return sum(
        SampleState.OPEN in found or (found == {None} and newest[group_id] >= serving)
        for group_id, found in states.items()
    )


def hold_out(database: Database, prompts: Iterable[tuple[int, ...]]) -> None:
    """Hold out these prompts, given as token ids, replacing those held out before."""
    hashes = sorted({prompt_sha256(prompt) for prompt in prompts})
    with database.write() as connection:
        connection.execute(delete(held_out))
        if hashes:
            connection.execute(held_out.insert(), [{"prompt_sha256": h} for h in hashes])
