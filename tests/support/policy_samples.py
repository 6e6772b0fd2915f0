"""Random samples for the learner's tests."""

import random
from collections.abc import Sequence
from dataclasses import replace

from tuneloop.learner.samples import (
    CommentedSample,
    DemonstrationSample,
    PairSample,
    PolicySample,
    ScoredGroup,
    ScoredSample,
    ThumbSample,
    TokenSequence,
)

VOCAB_SIZE = 384


class SampleMaker:
    """Makes samples of every kind, the same for the same seed."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def tokens(self, count: int) -> tuple[int, ...]:
        return tuple(self._random.randrange(VOCAB_SIZE) for _ in range(count))

    def sequence(
        self, prompt: int = 5, completion: int = 4, temperature: float = 1.0, sampled: bool = True
    ) -> TokenSequence:
        logprobs = tuple(-6.0 + self._random.uniform(-0.3, 0.3) for _ in range(completion))
        return TokenSequence(
            prompt_token_ids=self.tokens(prompt),
            completion_token_ids=self.tokens(completion),
            generation_logprobs=logprobs if sampled else (),
            temperature=temperature,
        )

    def varied(self) -> TokenSequence:
        lengths = self._random.randint(2, 12), self._random.randint(1, 9)
        return self.sequence(*lengths, temperature=self._random.choice([0.7, 1.0]))

    def demonstrations(self, count: int) -> list[DemonstrationSample]:
        return [
            DemonstrationSample(sample_id=f"demonstration-{i}", sequence=self.varied())
            for i in range(count)
        ]

    def groups(self, count: int, size: int = 3) -> list[ScoredGroup]:
        """Groups whose completions share their prompt."""
        groups = []
        for i in range(count):
            prompt = self.tokens(self._random.randint(2, 12))
            members = self.scored(size)
            groups.append(
                ScoredGroup(
                    sample_id=f"group-{i}",
                    samples=tuple(
                        replace(s, sequence=replace(s.sequence, prompt_token_ids=prompt))
                        for s in members
                    ),
                )
            )
        return groups

    def thumbs(self, count: int) -> list[ThumbSample]:
        return [
            ThumbSample(sample_id=f"thumb-{i}", sequence=self.varied(), desirable=i % 3 == 0)
            for i in range(count)
        ]

    def pairs(self, count: int) -> list[PairSample]:
        return [
            PairSample(sample_id=f"pair-{i}", chosen=self.varied(), rejected=self.varied())
            for i in range(count)
        ]

    def comments(self, count: int) -> list[CommentedSample]:
        """Answers whose prompt ends in other tokens where it is hinted."""
        return [
            CommentedSample(
                sample_id=f"comment-{i}",
                sequence=(sequence := self.varied()),
                hinted_prompt_token_ids=(*sequence.prompt_token_ids, *self.tokens(1 + i % 3)),
            )
            for i in range(count)
        ]

    def scored(self, count: int) -> list[ScoredSample]:
        return [
            ScoredSample(
                sample_id=f"scored-{i}",
                sequence=self.varied(),
                reward=self._random.uniform(-1, 1),
                policy_version=0,
                stopped=i % 4 != 0,
            )
            for i in range(count)
        ]


def samples_of(objective: str) -> Sequence[PolicySample]:
    """Some samples of an objective, the same each time."""
    maker = SampleMaker(0)
    made: dict[str, Sequence[PolicySample]] = {
        "kto": maker.thumbs(8),
        "dpo": maker.pairs(4),
        "ppo": maker.scored(6),
        "sft": maker.demonstrations(4),
        "sdft": maker.comments(4),
        "grpo": maker.groups(3),
    }
    return made[objective]
