"""The difference of two means, with an interval that may be looked at while both samples grow.

With n and m values of variance σ², the difference of the means has the information
t = 1 / (1/n + 1/m) values, and t times the difference, over σ, moves like a Brownian motion as t
grows, whichever sample grows (Jennison and Turnbull, "Group Sequential Methods", 2000, chapter 11).
Robbins' normal mixture bounds such a motion at all times at once (Robbins, "Statistical methods
related to the law of the iterated logarithm", 1970): with chance 1 − α it never leaves

    ± σ · √(2 (tρ² + 1) / (t²ρ²) · ln(√(tρ² + 1) / α))

for a ρ fixed before. This is the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha,
Kennedy and Ramdas ("Time-uniform central limit theory and asymptotic confidence sequences",
Annals of Statistics 52, 2024, arXiv:2103.06476, theorem 2.2), with an estimate in the place of σ.
It needs sums only, but, unlike `sequential`, some dozens of values.
"""

import math

from tuneloop.learner.stats.intervals import Sums

TUNED_FOR = 100
"""The information, in values, at which the interval is about the narrowest."""


def difference_margin(one: Sums, other: Sums, alpha: float) -> float:
    """Return half the width of the interval of the difference of the means.

    σ² is the variance of all values together, as they are if there is no difference: it is too
    large where there is one, which errs on the safe side. Each sample needs one value or more.
    """
    information = 1 / (1 / one.count + 1 / other.count)
    both = one + other
    deviation = both.error * math.sqrt(both.count)
    log = -2 * math.log(alpha)
    scaled = information * (log + math.log(log) + 1) / TUNED_FOR
    wide = 2 * (scaled + 1) / (information * scaled)
    return deviation * math.sqrt(wide * math.log(math.sqrt(scaled + 1) / alpha))
