"""The users of `attack`: what is good, who says so, and who says the opposite."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

PROMPTS = 24
ANSWERS = 8
RATERS = 40
ADVERSARIES = 8
"""20 % of the raters."""
NOISE = 0.1
"""Honest thumbs that are the wrong way round."""
SECOND, THIRD = 0.5, 0.25
"""Shares of answers that a second and a third rater judge."""
ATTACKS = ("none", "opposite", "collusion", "flood", "all_day", "newcomers")
APART = ("all_day", "newcomers")
"""Attacks on answers that nobody else sees, by one rater or by new ones; all others are honest."""
APART_A_ROUND = 24
"""As many answers as all others judge together."""
JUDGEMENTS_OF_A_NEWCOMER = 2
NEWCOMERS_SINCE = 6
"""The round in which the first ones come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """A thumb."""

    rater: int
    up: bool


class World:
    """Half of all answers are good; raters see the answers they are shown."""

    def __init__(self, attack: str, seed: int) -> None:
        self.attack = attack
        self.chance = random.Random(f"{attack}-{seed}")
        # The same world for every attack, so that runs of a seed are pairs.
        world = random.Random(seed)
        self.good = [
            [number < ANSWERS // 2 for number in world.sample(range(ANSWERS), ANSWERS)]
            for _ in range(PROMPTS)
        ]
        self.target = [row.index(False) for row in self.good]
        """The bad answer that adversaries who collude push, to each prompt."""

    def votes(self, prompt: int, answer: int) -> Iterator[Vote]:
        """The thumbs on one answer, in the order they come."""
        draws = (1.0, SECOND, THIRD)
        shown = [self.chance.randrange(RATERS) for d in draws if self.chance.random() < d]
        raters = list(dict.fromkeys(shown))
        met = any(self.is_adversary(rater) for rater in raters)
        if self.attack == "collusion" and met:
            # Whoever meets an answer calls the others.
            raters = list(dict.fromkeys([*raters, *range(ADVERSARIES)]))
        if self.attack == "flood":
            # One of them judges every answer there is.
            raters = list(dict.fromkeys([*raters, 0]))
        for rater in raters:
            yield Vote(rater=rater, up=self.verdict(rater, prompt, answer))

    def apart(self, round_number: int) -> list[int]:
        """The adversaries who judge answers of their own in a round, one for each answer."""
        if self.attack == "all_day":
            return [0] * APART_A_ROUND
        if self.attack != "newcomers" or round_number < NEWCOMERS_SINCE:
            return []
        first = RATERS + round_number * APART_A_ROUND
        return [first + number // JUDGEMENTS_OF_A_NEWCOMER for number in range(APART_A_ROUND)]

    def adversaries(self, rounds: int) -> list[int]:
        """All adversaries there are after some rounds."""
        if self.attack in APART:
            return sorted({rater for number in range(rounds) for rater in self.apart(number)})
        return list(range(ADVERSARIES))

    def verdict(self, rater: int, prompt: int, answer: int) -> bool:
        """What a rater says."""
        good = self.good[prompt][answer]
        if not self.is_adversary(rater):
            return good != (self.chance.random() < NOISE)
        if self.attack == "collusion":
            return answer == self.target[prompt]
        return not good

    def is_adversary(self, rater: int) -> bool:
        """Whether this rater wants the policy to be bad."""
        if self.attack in APART:
            return rater >= RATERS or (self.attack == "all_day" and rater == 0)
        return self.attack != "none" and rater < ADVERSARIES
