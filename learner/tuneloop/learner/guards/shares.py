"""How much of a batch one user or one tenant may be."""

import math
from collections import defaultdict
from collections.abc import Mapping

SampleId = str


def effective_share(share: float, parties: int) -> float:
    """Return the share that can be enforced: with fewer parties than 1/share, an equal part.

    A single user, as on one's own machine, may be all of a batch.
    """
    return max(share, 1.0 / max(1, parties))


def factors(
    weights: Mapping[SampleId, float], owners: Mapping[SampleId, str], share: float
) -> dict[SampleId, float]:
    """Return factors, 0 to 1, so that no owner weighs more than `share` of the original weights.

    What one loses is not given to others: if one user fills a batch the step is smaller, and adding
    a single judgement to it gains nothing. Samples without an owner are unchanged.
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
