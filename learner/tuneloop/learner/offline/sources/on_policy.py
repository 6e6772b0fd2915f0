"""Steps over prompts: each samples completions and scores them.

They are sampled with the weights of that step; the random numbers of a completion follow from the
seed and its place in the run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.errors import FailedPrecondition
from tuneloop.learner.data.prompt_rows import PromptRow
from tuneloop.learner.models.decoding.sampling import Sampled, Sampler
from tuneloop.learner.models.policy import PolicyModel
from tuneloop.learner.offline.sources.base import RowOrder, TrainStep
from tuneloop.learner.offline.sources.rewards import RewardInput, Rewards
from tuneloop.learner.samples import Objective, ScoredGroup, ScoredSample, TokenSequence


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledCompletion:
    """A completion of a prompt that the policy sampled."""

    row: PromptRow
    sampled: Sampled
    name: str
    """Place of the row, and which completion of it."""

    @property
    def answer(self) -> RewardInput:
        """Return the completion for scoring."""
        reason = "stop" if self.sampled.stopped else "length"
        return RewardInput(row=self.row, completion=self.sampled.text, finish_reason=reason)

    @property
    def has_answer(self) -> bool:
        """Whether it got beyond its thought."""
        return len(self.sampled.token_ids) > self.sampled.reasoning_tokens

    def sequence(self, temperature: float) -> TokenSequence:
        """Return the completion as tokens to learn from."""
        return TokenSequence(
            prompt_token_ids=self.row.asked.token_ids,
            completion_token_ids=self.sampled.token_ids,
            generation_logprobs=self.sampled.logprobs,
            temperature=temperature,
            reasoning_tokens=self.sampled.reasoning_tokens,
        )


class CompletionSampler:
    """Samples completions of prompts from the policy in training."""

    def __init__(
        self, model: PolicyModel, sampler: Sampler, *, samples_per_prompt: int, seed: str
    ) -> None:
        self._model = model
        self._sampler = sampler
        self._samples_per_prompt = samples_per_prompt
        self._seed = seed

    def sample(self, rows: Sequence[PromptRow], occasion: str) -> list[SampledCompletion]:
        """Return all completions of each prompt, one prompt after the other.

        `occasion` names the place in the run: the same prompt gets other completions at another.
        """
        return sample_completions(
            self._model.module,
            self._sampler,
            rows,
            samples_per_prompt=self._samples_per_prompt,
            seed=f"{self._seed}, {occasion}",
        )


def sample_completions(
    model: Any, sampler: Sampler, rows: Sequence[PromptRow], *, samples_per_prompt: int, seed: str
) -> list[SampledCompletion]:
    """Return `samples_per_prompt` completions of each prompt by a transformers model, in order."""
    each = range(samples_per_prompt)
    wanted = [(row, i) for row in rows for i in each]
    # By number, not by the row's place: a file that was moved must get the same completions, and
    # the place holds its path.
    seeds = [f"{seed}, prompt {n}, {i}" for n in range(len(rows)) for i in each]
    sampled = sampler.sample(model, [row.asked.token_ids for row, _ in wanted], seeds)
    return [
        SampledCompletion(row=row, sampled=completion, name=f"{row.place}, completion {i + 1}")
        for (row, i), completion in zip(wanted, sampled, strict=True)
    ]


def score_completions(
    rewards: Rewards, completions: Sequence[SampledCompletion], *, learns_thoughts: bool
) -> list[float | None]:
    """Return the reward of each; None where it has none, or has nothing that could be learned."""
    scores = rewards.score([completion.answer for completion in completions])
    return [
        score if learns_thoughts or completion.has_answer else None
        for completion, score in zip(completions, scores, strict=True)
    ]


class OnPolicySource:
    """Scored completions of the policy itself, at each step."""

    def __init__(
        self,
        objective: Objective,
        rows: Sequence[PromptRow],
        order: RowOrder,
        *,
        sampler: CompletionSampler,
        rewards: Rewards,
        samples_per_prompt: int,
        temperature: float,
        learns_thoughts: bool = True,
    ) -> None:
        """`objective` is of scored completions or groups; `order` is over prompts."""
        self._learns_thoughts = learns_thoughts
        self._objective = objective
        self._rows = rows
        self._order = order
        self._sampler = sampler
        self._rewards = rewards
        self._samples_per_prompt = samples_per_prompt
        self._temperature = temperature

    @property
    def steps(self) -> int:
        """See `TrainSource.steps`."""
        return self._order.steps

    def train_step(self, step: int) -> TrainStep | None:
        """See `TrainSource.train_step`."""
        if step >= self.steps:
            return None
        rows = [self._rows[i] for i in self._order.rows(step)]
        completions = self._sampler.sample(rows, f"step {step}")
        rewards = score_completions(
            self._rewards, completions, learns_thoughts=self._learns_thoughts
        )
        groups = [
            self._group(completions[start : start + self._samples_per_prompt], rewards[start:])
            for start in range(0, len(completions), self._samples_per_prompt)
        ]
        samples: list[Any] = [group for group in groups if group.samples]
        if self._objective is not Objective.GRPO:
            samples = [sample for group in samples for sample in group.samples]
        if not samples:
            first, last = rows[0].place, rows[-1].place
            raise FailedPrecondition(f"{first} to {last}: the reward scored no completion at all")
        return TrainStep(
            samples={self._objective: samples},
            epoch=(step + 1) / self._order.steps_per_epoch,
            metrics=completion_figures(completions, rewards),
        )

    def _group(
        self, completions: Sequence[SampledCompletion], rewards: Sequence[float | None]
    ) -> ScoredGroup:
        """Return the scored completions of one prompt; one without a score is left out, not 0."""
        return ScoredGroup(
            sample_id=completions[0].row.place,
            samples=tuple(
                ScoredSample(
                    sample_id=completion.name,
                    sequence=completion.sequence(self._temperature),
                    reward=reward,
                    policy_version=0,
                    stopped=completion.sampled.stopped,
                )
                for completion, reward in zip(completions, rewards, strict=False)
                if reward is not None
            ),
        )

    def due(self, step: int) -> bool:
        """See `TrainSource.due`."""
        return False

    def resume(self, step: int) -> None:
        """See `TrainSource.resume`: every step follows from its number and the weights."""


def completion_figures(
    completions: Sequence[SampledCompletion], rewards: Sequence[float | None]
) -> dict[str, float]:
    """Return figures of sampled completions."""
    known = [reward for reward in rewards if reward is not None]
    figures = {
        "completion_length": mean([len(a.sampled.token_ids) for a in completions]),
        "stopped_fraction": mean([a.sampled.stopped for a in completions]),
    }
    if any(a.sampled.reasoning_tokens for a in completions):
        figures["thought_length"] = mean([a.sampled.reasoning_tokens for a in completions])
    if known:
        figures["reward"] = mean(known)
        figures["reward_deviation"] = mean([(r - figures["reward"]) ** 2 for r in known]) ** 0.5
    if len(known) < len(rewards):
        figures["unscored_fraction"] = 1 - len(known) / len(rewards)
    return figures


def mean(values: Sequence[float]) -> float:
    """Return the mean of one or more values."""
    return sum(values) / len(values)
