"""How much each sample of a batch counts: by who judged it, and by how much of all is theirs."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from tuneloop.host import steady_time
from tuneloop.learner import metrics
from tuneloop.learner.batching.batch import ids_of
from tuneloop.learner.guards.raters import Reliability, predictabilities, reliabilities
from tuneloop.learner.guards.settings import GuardSettings
from tuneloop.learner.guards.standing import Standing, standing_of
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.reports import rater_votes
from tuneloop.learner.samples import JUDGED_OBJECTIVES, REWARD_OBJECTIVES, Objective, ScoredGroup

SampleId = str
JUDGED = (*JUDGED_OBJECTIVES, *REWARD_OBJECTIVES)
"""What is learned from judgements: its batches may be smaller than a step."""


def effective_share(share: float, parties: int) -> float:
    """Return the share that can be enforced: with fewer parties than 1/share, an equal part.

    A single user, as on one's own machine, may be all of a batch.
    """
    return max(share, 1.0 / max(1, parties))


def factors(
    weights: Mapping[SampleId, float],
    owners: Mapping[SampleId, str],
    limit: float,
    *,
    counted: Mapping[str, float] = MappingProxyType({}),
    least: float = 0.0,
) -> dict[SampleId, float]:
    """Return factors, `least` to 1, so that the samples of no owner weigh more than `limit`.

    What an owner's earlier samples `counted` is part of it. What one loses is not given to others:
    if one user fills a batch the step is smaller, and adding a single judgement to it gains
    nothing. Samples without an owner are unchanged.
    """
    of_owner: defaultdict[str, float] = defaultdict(float)
    for sample, weight in weights.items():
        of_owner[owners.get(sample, "")] += weight

    def factor(owner: str) -> float:
        if not owner or of_owner[owner] == 0:
            return 1.0
        room = limit - counted.get(owner, 0.0)
        return max(least, min(1.0, room / of_owner[owner]))

    return {sample: factor(owners.get(sample, "")) for sample in weights}


@dataclass(frozen=True, slots=True)
class Counted:
    """A judgement, and what it counted in its step."""

    weight: float
    user: str
    tenant: str
    counts: float


class RecentJudgements:
    """The latest judgements that went into steps, as many as make a full one.

    On a quiet service they come one by one: a share of a lone judgement says nothing, so shares are
    of the full step that it is part of.
    """

    def __init__(self, full_step: float) -> None:
        self._full_step = full_step
        self._latest: dict[SampleId, Counted] = {}

    def add(self, judgements: Mapping[SampleId, Counted]) -> None:
        """Add a batch; what is older than a full step is forgotten."""
        for sample, judgement in judgements.items():
            self._latest.pop(sample, None)
            self._latest[sample] = judgement
        total = math.fsum(judgement.weight for judgement in self._latest.values())
        for sample in list(self._latest):
            total -= self._latest[sample].weight
            if total < self._full_step:
                break
            del self._latest[sample]

    def beside(self, batch: Mapping[SampleId, float]) -> tuple[float, list[Counted]]:
        """Return the weight of the step that a batch is part of, and the step's other judgements.

        `batch` has weights; one that fills a step is all of it.
        """
        total = math.fsum(batch.values())
        room, found = self._full_step - total, list[Counted]()
        for sample, judgement in reversed(self._latest.items()):
            if room <= 0:
                break
            if sample not in batch:
                found.append(judgement)
                room -= judgement.weight
        return max(total, self._full_step), found


EVERY_SECONDS = 30.0
"""How often the reliability of raters is computed."""
FAMILIES: Mapping[str, str] = {Objective.KTO: "thumb", Objective.DPO: "pair"}
"""Which votes an objective of the policy learns from."""
CERTAIN = 0.3
"""Judgements that are so predictable count in full: an area under the ROC curve of 0.65."""
ACTIVE = 256
"""The number of latest feedback events whose users count as active."""
DAY = 86_400.0


class Trust:
    """Sets the `trust` of samples."""

    def __init__(
        self,
        database: Database,
        settings: GuardSettings,
        *,
        full_step: float = 0.0,
        clock: Callable[[], float] = steady_time,
    ) -> None:
        """`full_step` judgements make a step; with 0 each batch is one by itself."""
        self._database = database
        self._settings = settings
        self._clock = clock
        self._judged_time = float("-inf")
        self._raters: Mapping[str, Reliability] = {}
        self._predictable: Mapping[str, float | None] = {}
        self._standing = Standing()
        self._recent = {name: RecentJudgements(full_step) for name in JUDGED}

    def share_of_user(self) -> float:
        """Return the largest share of a batch that one user may have."""
        users, _ = rater_votes.active(self._database, ACTIVE)
        return effective_share(self._settings.user_share, users)

    def add_trust(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Return the samples by objective, each with its trust."""
        if not any(batch.values()):
            return {}
        users, tenants = rater_votes.active(self._database, ACTIVE)
        user_share = effective_share(self._settings.user_share, users)
        tenant_share = effective_share(self._settings.tenant_share, tenants)
        raters = self.raters()
        found: dict[str, list[Any]] = {}
        for objective, group in batch.items():
            ids = [i for sample in group for i in ids_of(sample)]
            owners = rater_votes.owners(self._database, objective, ids)
            user_of = {i: owner.user for i, owner in owners.items()}
            tenant_of = {i: owner.tenant for i, owner in owners.items()}
            weights = {i: weight for sample in group for i, weight in _weights(sample).items()}
            of_standing = self._factors_of_standing(objective, ids, user_of)
            standing = {i: weight * of_standing.get(i, 1.0) for i, weight in weights.items()}
            recent = self._recent.get(objective, RecentJudgements(0.0))
            step, others = recent.beside(weights)
            of_user = factors(
                standing,
                user_of,
                user_share * step,
                counted=_sums((other.user, other.counts) for other in others),
                least=user_share,
            )
            shared = {i: weight * of_user[i] for i, weight in standing.items()}
            of_tenant = factors(
                shared,
                tenant_of,
                tenant_share * (step - math.fsum(weights.values()) + math.fsum(shared.values())),
                counted=_sums((other.tenant, other.counts) for other in others),
                least=tenant_share,
            )
            # Who asks for many answers has a share of them, but does not judge them: scorers do.
            of_family = self._weight_of_family(objective)
            judge_of = {i: owner.user for i, owner in owners.items() if owner.has_judged}
            trust = {
                i: of_standing.get(i, 1.0)
                * of_user[i]
                * of_tenant[i]
                * _weight(raters, judge_of.get(i, ""))
                * of_family
                for i in weights
            }
            recent.add(
                {
                    i: Counted(w, user_of.get(i, ""), tenant_of.get(i, ""), w * trust[i])
                    for i, w in weights.items()
                }
            )
            found[objective] = [_with_trust(sample, trust) for sample in group]
            metrics.guard_limited.labels(objective).inc(sum(t < 1 for t in trust.values()))
        return found

    def _factors_of_standing(
        self, objective: str, ids: Sequence[SampleId], user_of: Mapping[SampleId, str]
    ) -> dict[SampleId, float]:
        """Return what each user's n-th judgement counts, of those that were judged."""
        seconds = self._settings.user_days * DAY
        numbers = rater_votes.numbers(self._database, objective, ids, seconds)
        return {i: self._standing.weight(user_of[i], number) for i, number in numbers.items()}

    def raters(self) -> Mapping[str, Reliability]:
        """Return the reliability of raters by their agreement; empty if that is switched off."""
        if self._clock() - self._judged_time >= EVERY_SECONDS:
            self._judge_users()
        return self._weighed()

    def _weighed(self) -> Mapping[str, Reliability]:
        return self._raters if self._settings.rater_weights else {}

    def renew(self) -> None:
        """Judge users again at the next batch, however recently they were."""
        self._judged_time = float("-inf")

    def _weight_of_family(self, objective: str) -> float:
        """Return what judgements of a kind count for not being what others would say."""
        known = self._predictable.get(FAMILIES.get(objective, ""))
        if known is None:
            return 1.0
        return max(self._settings.unpredictable_weight, min(1.0, known / CERTAIN))

    def _judge_users(self) -> None:
        """Work out who agrees with whom, and who gave how much."""
        now = self._clock()
        votes = rater_votes.votes(self._database)
        machines = (rater_votes.REWARD_MODEL,)
        self._raters = reliabilities(votes, machines)
        self._predictable = predictabilities(votes, self._weighed())
        for family, known in self._predictable.items():
            metrics.guard_predictability.labels(family).set(math.nan if known is None else known)
        given = rater_votes.given_by_user(self._database, now - self._settings.user_days * DAY)
        self._standing = standing_of(given, votes, self._settings, machines)
        self._judged_time = now
        muted = sum(rater.weight == 0 for rater in self._raters.values())
        metrics.guard_raters_muted.set(muted if self._settings.rater_weights else 0)


def _sums(parts: Iterable[tuple[str, float]]) -> dict[str, float]:
    found: defaultdict[str, float] = defaultdict(float)
    for owner, part in parts:
        found[owner] += part
    return found


def _weight(raters: Mapping[str, Reliability], user: str) -> float:
    known = raters.get(user)
    return 1.0 if known is None else known.weight


def _weights(sample: Any) -> dict[str, float]:
    if isinstance(sample, ScoredGroup):
        return {member.sample_id: member.weight for member in sample.samples}
    return {sample.sample_id: sample.weight}


def _with_trust(sample: Any, trust: Mapping[str, float]) -> Any:
    if isinstance(sample, ScoredGroup):
        members = tuple(_with_trust(member, trust) for member in sample.samples)
        return replace(sample, samples=members)
    if trust[sample.sample_id] == 1.0:
        return sample
    return replace(sample, trust=trust[sample.sample_id])
