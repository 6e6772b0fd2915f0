"""How much a judgement counts by how many its user gave before it, and by how well they are known.

**Bound.** The n-th judgement of a user weighs min(1, √(f/n)), so N > f of them weigh
2√(fN) − f together: they grow like √N, and the first f count in full. (A marginal weight of
√n − √(n−1) has the same sum but starts to fall at the second judgement, and a lone thumb after a
few others would be halved.) f is a setting, or what the median user has given if that is more:
where everybody says much nobody is cut, and who says ten times as much as others counts about
2√10 − 1 = 5.3 times as much.

**Probation.** A user's first judgements weigh p = max(p₀, 1 − E), where E is the part of all
judgements that known users have given. Where hardly anybody is known, as in a service's first
hour, E is near 0 and newcomers count in full. A crowd of new accounts would first have to say more
than everybody known has said in the whole window. A user is known after a number of judgements,
or as soon as known users, or the reward model, have agreed with them on `AGREEMENTS` more things
than they contradicted.

Both need the window to have at least 1/`user_share` users (known ones for probation): with fewer
there is nobody to protect.
"""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tuneloop.learner.guards.raters import Vote
from tuneloop.learner.guards.settings import GuardSettings

AGREEMENTS = 3
"""By so many more things have known raters agreed with a newcomer than contradicted them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the judgements of users count."""

    in_full: float = math.inf
    """Judgements of one user that count in full, f."""
    newcomer_weight: float = 1.0
    """Weight of a newcomer's judgement, p."""
    first: int = 0
    """Judgements of a user on probation."""
    known: frozenset[str] = field(default=frozenset())
    """Users whose probation is over, however few judgements they gave."""

    def weight(self, user: str, number: int) -> float:
        """Return the weight, 0 to 1, of the judgement of a user that is their `number`-th."""
        bound = bounded_weight(number, self.in_full)
        newcomer = number <= self.first and user not in self.known
        return bound * self.newcomer_weight if newcomer else bound


def bounded_weight(number: int, in_full: float) -> float:
    """Return the weight of a user's n-th judgement, min(1, √(f/n))."""
    return 1.0 if number <= in_full else math.sqrt(in_full / number)


def standing_of(
    given: Mapping[str, int],
    votes: Sequence[Vote],
    settings: GuardSettings,
    machines: Collection[str] = (),
) -> Standing:
    """Return what judgements count, from how many each user has given in the window.

    `votes` tell who agrees with whom; the raters in `machines` are known.
    """
    least = math.ceil(1 / settings.user_share)
    first, in_full, newcomer_weight = settings.probation, math.inf, 1.0
    if settings.judgements_in_full > 0 and len(given) >= least:
        in_full = max(settings.judgements_in_full, statistics.median_high(given.values()))
    known = {user for user, count in given.items() if count > first}
    if first > 0 and len(known) >= least:
        of_known = sum(given[user] for user in known) / sum(given.values())
        newcomer_weight = max(settings.probation_weight, 1.0 - of_known)
    confirmed = {
        rater
        for rater, net in agreements(votes, known | set(machines)).items()
        if net >= AGREEMENTS
    }
    return Standing(
        in_full=in_full,
        newcomer_weight=newcomer_weight,
        first=first,
        known=frozenset(known | confirmed),
    )


def agreements(votes: Sequence[Vote], known: Collection[str]) -> Counter[str]:
    """Return on how many more things known raters agreed with each other rater than not.

    The majority of the known ones speaks for a thing; a tie says nothing.
    """
    by_topic: defaultdict[str, dict[str, bool]] = defaultdict(dict)
    for vote in votes:
        by_topic[vote.topic][vote.rater] = vote.up
    net: Counter[str] = Counter()
    for cast in by_topic.values():
        majority = sum(1 if up else -1 for rater, up in cast.items() if rater in known)
        for rater, up in cast.items():
            if rater not in known and majority:
                net[rater] += 1 if up == (majority > 0) else -1
    return net
