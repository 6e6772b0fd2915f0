"""The batches that `learner_speed` gives to both sides: token ids, seeded, realistic in length."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

FIRST_PLAIN_TOKEN = 100
"""Token ids below may be special ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One optimizer step's batch."""

    name: str
    objective: str
    """As the learner calls it: sft, kto, dpo, grpo, reward_model."""
    prompts: tuple[tuple[int, ...], ...]
    """Of each row."""
    completions: tuple[tuple[int, ...], ...]
    """Of each row. Pairs: all the chosen, then all the rejected; thumbs: up and down in turn."""
    rewards: tuple[float, ...] = ()
    """Of each row, for grpo."""

    @property
    def rows(self) -> Sequence[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Prompt and completion of each row."""
        return list(zip(self.prompts, self.completions, strict=True))

    @property
    def tokens(self) -> int:
        """Tokens of all rows, without padding; a shared prompt counts for each of its rows."""
        return sum(len(prompt) + len(completion) for prompt, completion in self.rows)

    @property
    def padding(self) -> float:
        """How many times more tokens there are when all rows are padded to the longest."""
        lengths = [len(prompt) + len(completion) for prompt, completion in self.rows]
        return max(lengths) * len(lengths) / sum(lengths)


class WorkMaker:
    """Draws lengths from a lognormal, as those of chats are, and tokens uniformly."""

    def __init__(self, vocab_size: int, *, seed: int = 0, scale: float = 1.0) -> None:
        """`scale` makes everything shorter, for smoke tests."""
        self._random = random.Random(seed)
        self._vocab_size = vocab_size
        self._scale = scale

    def tokens(self, length: float) -> tuple[int, ...]:
        return self.exactly(max(2, round(length * self._scale)))

    def exactly(self, count: int) -> tuple[int, ...]:
        return tuple(
            self._random.randrange(FIRST_PLAIN_TOKEN, self._vocab_size) for _ in range(count)
        )

    def length(self, median: float, spread: float) -> float:
        return min(400.0, self._random.lognormvariate(math.log(median), spread))

    def prompt(self) -> tuple[int, ...]:
        return self.tokens(self.length(40, 0.7))

    def completion(self) -> tuple[int, ...]:
        return self.tokens(self.length(60, 0.9))

    def unpaired(self, objective: str, rows: int) -> Work:
        """SFT, KTO: every row its own prompt."""
        return Work(
            name=objective,
            objective=objective,
            prompts=tuple(self.prompt() for _ in range(rows)),
            completions=tuple(self.completion() for _ in range(rows)),
        )

    def pairs(self, objective: str, count: int) -> Work:
        """DPO, reward model: chosen and rejected of each prompt."""
        prompts = tuple(self.prompt() for _ in range(count))
        return Work(
            name=objective,
            objective=objective,
            prompts=prompts * 2,
            completions=tuple(self.completion() for _ in range(2 * count)),
        )

    def conversations(self, count: int, turns: int, *, continued: bool) -> Work:
        """KTO: turns of conversations, each prompt the turn before and a message more.

        Without `continued` they are as long, and have nothing in common.
        """
        prompts: list[tuple[int, ...]] = []
        completions: list[tuple[int, ...]] = []
        for _ in range(count):
            prompt = self.prompt()
            for _ in range(turns):
                prompts.append(prompt)
                completions.append(self.completion())
                prompt += completions[-1] + self.prompt()
        if not continued:
            prompts = [self.exactly(len(prompt)) for prompt in prompts]
        return Work(
            name=f"kto-turns-{'continued' if continued else 'apart'}",
            objective="kto",
            prompts=tuple(prompts),
            completions=tuple(completions),
        )

    def under_system_prompt(self, rows: int, length: int, *, shared: bool) -> Work:
        """KTO: short questions and answers under one system prompt, or, not `shared`, each its own.

        They are as long as those of a small chat: 14 and 22 tokens.
        """
        own = [(self.exactly(14), self.exactly(22)) for _ in range(rows)]
        system = self.exactly(length)
        return Work(
            name=f"kto-system-{'shared' if shared else 'apart'}",
            objective="kto",
            prompts=tuple(
                (system if shared else self.exactly(length)) + prompt for prompt, _ in own
            ),
            completions=tuple(completion for _, completion in own),
        )

    def group(self, prompt: int, completion: int, size: int) -> Work:
        """GRPO: completions of one prompt, all of one length."""
        return Work(
            name=f"grpo-p{prompt}-c{completion}",
            objective="grpo",
            prompts=(self.tokens(prompt),) * size,
            completions=tuple(self.tokens(completion) for _ in range(size)),
            rewards=tuple(self._random.random() for _ in range(size)),
        )


def all_work(vocab_size: int, *, scale: float = 1.0) -> list[Work]:
    """What is measured."""

    def maker(seed: int) -> WorkMaker:
        return WorkMaker(vocab_size, seed=seed, scale=scale)

    return [
        maker(1).unpaired("sft", 12),
        maker(2).unpaired("kto", 12),
        maker(3).pairs("dpo", 6),
        maker(4).group(128, 64, 8),
        maker(5).group(256, 64, 8),
        maker(6).pairs("reward_model", 6),
    ]


def shared_work(vocab_size: int, *, scale: float = 1.0) -> list[Work]:
    """What rows begin with alike: four conversations of six turns, a system prompt of 24 tokens.

    Each beside rows as long that have nothing in common.
    """

    def maker() -> WorkMaker:
        return WorkMaker(vocab_size, seed=7, scale=scale)

    return [
        *(maker().conversations(4, 6, continued=continued) for continued in (True, False)),
        *(maker().under_system_prompt(16, 24, shared=shared) for shared in (True, False)),
    ]
