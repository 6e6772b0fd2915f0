"""Scored rollouts for GRPO: the completions of one request together, single ones with a baseline.

A group is ready when the scores of all completions that were asked for have arrived, or some time
after the first of them. A completion that could not be scored is left out of its group.

A rating is a group of its own, and so is a metric on a session. Values of a metric that one user
gave to completions of one request are a group, which is ready when there are as many as were asked
for, or some time after the first. One alone is compared with the mean of the user's values.

A scored completion without siblings is compared with other requests. Its baseline is the mean
reward of other rollouts of the same kind (tenant and source), shrunk towards the mean of other
answers to the same prompt if there are any. With it comes the share of them that ran into their
length limit, for which the trainer charges. The baseline does not depend on the completion itself,
so the gradient stays unbiased. Without a baseline its reward would push every answer the same way.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, or_, select

from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.queue.build_samples import Builder, problem_of
from tuneloop.learner.ledger.queue.ready import (
    COLUMNS,
    Readiness,
    Refusal,
    chosen,
    ready_samples,
    sampled_by,
)
from tuneloop.learner.ledger.schema import rollouts, samples, scores
from tuneloop.learner.samples import Objective, SampleState, ScoredGroup
from tuneloop.rollouts import FinishReason, RolloutSource

OBJECTIVE = Objective.GRPO
WINDOW = 256
"""The number of latest rewards that a baseline is computed from."""
LEAST_OTHERS = 8
"""The fewest rewards of other rollouts that make a baseline."""
DOMAIN_WEIGHT = 4.0
"""The number of answers to the same prompt that the mean of its kind weighs as much as."""
LOOK_AHEAD = 1024
"""The most waiting rollouts to read."""
KIND_OF_PROMPT = ("tenant", "source", "prompt_sha256")
ASKED_BY_USERS = (RolloutSource.USER.value, RolloutSource.CANDIDATE.value)
"""Without the candidates that were not chosen, the best of several would be what is expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """One scored rollout of a baseline."""

    completion_id: str
    prompt_sha256: str
    reward: float
    finish_reason: str

    @property
    def is_cut(self) -> bool:
        """Whether it ran into its length limit, as `ScoredSample.stopped` has it."""
        return self.finish_reason != FinishReason.STOP


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What is expected of a single completion."""

    reward: float
    cut_share: float
    """See `ScoredGroup.cut_share`."""


def readiness(
    database: Database,
    *,
    now: float,
    wait_seconds: float,
    exclude: Collection[str] = (),
    fresh_versions: Collection[int] | None = None,
) -> Readiness:
    """Count the rollouts in ready groups, without those in `exclude`."""
    with database.read() as connection:
        groups = Waiting(connection, fresh_versions).groups(now - wait_seconds, exclude)
    rows = [row for group in groups for row in group]
    times = [row.recorded_time for row in rows]
    return Readiness(
        count=len(rows),
        oldest_time=min(times, default=None),
        newest_time=max(times, default=None),
    )


def take_groups(
    database: Database,
    limit: int,
    *,
    now: float,
    wait_seconds: float,
    exclude: Collection[str] = (),
    fresh_versions: Collection[int] | None = None,
    higher_is_better: bool = True,
) -> tuple[list[ScoredGroup], list[Refusal]]:
    """Return the oldest ready groups, as many as `limit` rollouts allow but at least one.

    `higher_is_better` is of the metric that is the reward.
    """
    taken: list[ScoredGroup] = []
    refusals: list[Refusal] = []
    count = 0
    with database.read() as connection:
        waiting = Waiting(connection, fresh_versions)
        builder = Builder(connection, None, higher_is_better=higher_is_better)
        for group in waiting.groups(now - wait_seconds, exclude):
            if taken and count + len(group) > limit:
                break
            rows = waiting.whole(group)
            problems = {row.sample_id: problem_of(row) for row in rows}
            refusals += [
                Refusal(sample_id=sample_id, objective=OBJECTIVE, reason=problem)
                for sample_id, problem in problems.items()
                if problem is not None
            ]
            good = [row for row in rows if problems[row.sample_id] is None]
            if group[0].kind != "score" and len(good) == 1:
                judged = builder.build(good[0])
                assert isinstance(judged, ScoredGroup)
                taken.append(judged)
            elif good:
                baseline = None if len(good) > 1 else waiting.baseline(good[0])
                taken.append(
                    ScoredGroup(
                        sample_id=group[0].group_id,
                        samples=tuple(builder.scored(row) for row in good),
                        baseline=None if baseline is None else baseline.reward,
                        cut_share=0.0 if baseline is None else baseline.cut_share,
                    )
                )
            count += len(good)
    return taken, refusals


class Waiting:
    """The scored rollouts that wait for a step, in one read of the ledger.

    With `fresh_versions`, only those that these versions of the policy sampled.
    """

    def __init__(
        self, connection: Connection, fresh_versions: Collection[int] | None = None
    ) -> None:
        self._connection = connection
        self._fresh_versions = fresh_versions
        self._rewards: dict[tuple[str, str], list[Reward]] = {}

    def groups(self, latest: float, exclude: Collection[str]) -> list[list[Any]]:
        """Return the ready groups, oldest first; a group newer than `latest` only if complete."""
        query = (
            ready_samples(
                samples.c.sample_id,
                samples.c.kind,
                samples.c.feedback_id,
                samples.c.completion_id,
                samples.c.user_hash,
                samples.c.topic,
                samples.c.recorded_time,
                chosen.c.group_id,
                chosen.c.group_size,
                chosen.c.tenant,
                chosen.c.source,
                chosen.c.prompt_sha256,
            )
            .where(samples.c.objective == OBJECTIVE, samples.c.state == SampleState.OPEN)
            .order_by(samples.c.accepted_time, samples.c.sample_id)
            .limit(LOOK_AHEAD)
        )
        if exclude:
            query = query.where(samples.c.sample_id.not_in(list(exclude)))
        if self._fresh_versions is not None:
            query = query.where(sampled_by(chosen, self._fresh_versions))
        groups: dict[tuple[str, ...], list[Any]] = {}
        for row in self._connection.execute(query):
            groups.setdefault(_group_of(row), []).append(row)
        arrived = self._arrived([key[1] for key in groups if key[0] == "score"])
        return [group for group in groups.values() if self._is_ready(group, arrived, latest)]

    def whole(self, group: Sequence[Any]) -> list[Any]:
        """Return the rows of a group with every column that a sample is built from."""
        ids = [row.sample_id for row in group]
        query = ready_samples(*COLUMNS).where(
            samples.c.objective == OBJECTIVE, samples.c.sample_id.in_(ids)
        )
        return list(self._connection.execute(query.order_by(samples.c.sample_id)))

    def baseline(self, row: Any) -> Baseline | None:
        """Return what is expected of a single completion; None while too little is known."""
        columns = row._mapping
        named = {name: columns.get(name, columns.get(f"chosen_{name}")) for name in KIND_OF_PROMPT}
        others = [
            reward
            for reward in self._latest_rewards(named["tenant"], named["source"])
            if reward.completion_id != row.completion_id
        ]
        if len(others) < LEAST_OTHERS:
            return None
        same = [r for r in others if r.prompt_sha256 == named["prompt_sha256"]]

        def expected(value: Callable[[Reward], float]) -> float:
            mean = math.fsum(map(value, others)) / len(others)
            return (math.fsum(map(value, same)) + DOMAIN_WEIGHT * mean) / (
                len(same) + DOMAIN_WEIGHT
            )

        return Baseline(
            reward=expected(lambda r: r.reward), cut_share=expected(lambda r: float(r.is_cut))
        )

    def _is_ready(self, group: list[Any], arrived: dict[str, int], latest: float) -> bool:
        first = group[0]
        if _is_alone(first):
            return True
        scored = first.kind == "score"
        known = arrived.get(first.group_id, 0) if scored else len(group)
        whole = known >= first.group_size
        if not whole and min(row.recorded_time for row in group) > latest:
            return False
        return not scored or len(group) > 1 or self.baseline(first) is not None

    def _arrived(self, group_ids: Sequence[str]) -> dict[str, int]:
        """Return how many completions of each group were scored or never will be."""
        settled = or_(
            rollouts.c.finish_reason == FinishReason.ABORT.value,
            rollouts.c.completion_id.in_(select(scores.c.completion_id)),
        )
        query = (
            select(rollouts.c.group_id, func.count())
            .where(rollouts.c.group_id.in_(group_ids), settled)
            .group_by(rollouts.c.group_id)
        )
        return {row[0]: row[1] for row in self._connection.execute(query)}

    def _latest_rewards(self, tenant: str, source: str) -> list[Reward]:
        """Return the newest reward of each of the latest scored rollouts of a kind."""
        if (tenant, source) in self._rewards:
            return self._rewards[tenant, source]
        alike = ASKED_BY_USERS if source in ASKED_BY_USERS else (source,)
        query = (
            select(scores.c.completion_id, rollouts.c.prompt_sha256, scores.c.reward)
            .add_columns(rollouts.c.finish_reason)
            .join(rollouts, rollouts.c.completion_id == scores.c.completion_id)
            .where(
                rollouts.c.tenant == tenant,
                rollouts.c.source.in_(alike),
                scores.c.reward.is_not(None),
            )
            .order_by(scores.c.scored_time.desc(), scores.c.reward_model_version.desc())
            .limit(WINDOW)
        )
        newest: dict[str, Reward] = {}
        for row in self._connection.execute(query):
            newest.setdefault(row.completion_id, Reward(**row._asdict()))
        self._rewards[tenant, source] = list(newest.values())
        return self._rewards[tenant, source]


def _is_alone(row: Any) -> bool:
    """Return whether a sample is a group of its own: a rating, or a metric on a session."""
    of_session: bool = row.sample_id != row.feedback_id
    return row.kind == "rating" or (row.kind == "metric" and of_session)


def _group_of(row: Any) -> tuple[str, ...]:
    """Return what the samples of one group have in common."""
    if _is_alone(row):
        return row.kind, row.sample_id
    if row.kind == "metric":
        which = row.topic.removesuffix(row.completion_id)
        return row.kind, row.group_id, row.user_hash, which
    return row.kind, row.group_id
