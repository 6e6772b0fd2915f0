"""How much of a batch one user, or one tenant, may be."""

import math
from collections import defaultdict
from collections.abc import Mapping

SampleId = str


def effective_share(share: float, parties: int) -> float:
    """The share that can be held: with fewer parties than 1/share, an equal part for each.

    One user alone, as on one's own machine, is all there is to learn from.
    """
    return max(share, 1.0 / max(1, parties))


def factors(
    weights: Mapping[SampleId, float], owners: Mapping[SampleId, str], share: float
) -> dict[SampleId, float]:
    """Factors, 0 to 1, by which no owner weighs more than `share` of all the weights as given.

    What is taken from one is not given to others: where one user fills a batch the step is smaller,
    and who adds a single judgement to it gains nothing. Samples without an owner are left alone.
    """
    limit = share * math.fsum(weights.values())
    of_owner: defaultdict[str, float] = defaultdict(float)
    for sample, weight in weights.items():
        of_owner[owners.get(sample, "")] += weight
    return {
        sample: 1.0
        if not owners.get(sample) or of_owner[owners[sample]] <= limit
        else limit / of_owner[owners[sample]]
        for sample in weights
    }
