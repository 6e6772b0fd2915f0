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
ATTACKS = ("none", "opposite", "collusion", "flood")


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
        return self.attack != "none" and rater < ADVERSARIES
