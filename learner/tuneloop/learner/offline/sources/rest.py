"""ReST: grow a data set from the policy, improve it on the best part, a higher bar each time.

Gulcehre et al. 2023, https://arxiv.org/abs/2308.08998, algorithm 1: several improve steps to one
grow step, each on the completions whose reward is above a threshold that rises, with the plain
log-likelihood as loss. The thresholds here are quantiles of the grown rewards, so they need no
knowledge of the reward's scale.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tuneloop.errors import FailedPrecondition
from tuneloop.learner.data.prompt_rows import PromptRow
from tuneloop.learner.offline.run.folder import read_json, write_json
from tuneloop.learner.offline.sources.base import RowOrder, TrainStep
from tuneloop.learner.offline.sources.on_policy import (
    CompletionSampler,
    completion_figures,
    score_completions,
)
from tuneloop.learner.offline.sources.rewards import Rewards
from tuneloop.learner.samples import DemonstrationSample, Objective, TokenSequence


@dataclass(frozen=True, slots=True, kw_only=True)
class RestPlan:
    """How often to grow and to improve, and how high the bar is."""

    grow_steps: int
    improve_steps: int
    threshold_start: float
    threshold_end: float
    epochs: int
    batch_size: int
    seed: str

    def quantile(self, improve: int) -> float:
        """Return the share of completions that an improve step leaves out at least."""
        if self.improve_steps == 1:
            return self.threshold_end
        rise = (self.threshold_end - self.threshold_start) / (self.improve_steps - 1)
        return self.threshold_start + improve * rise

    def guess(self, completions: int) -> int:
        """Steps to one grow, while its rewards are not known."""
        kept = [
            max(1, round((1 - self.quantile(i)) * completions)) for i in range(self.improve_steps)
        ]
        return sum(-(-count // self.batch_size) * self.epochs for count in kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """A data set of the policy at `first_step`, and the steps that follow from it."""

    first_step: int
    samples: Sequence[DemonstrationSample]
    thresholds: Sequence[float]
    orders: Sequence[tuple[list[int], RowOrder]]
    """For each improve step the completions it keeps and the order it takes them in."""
    figures: dict[str, float]

    @property
    def last_step(self) -> int:
        """Excluded."""
        return self.first_step + sum(order.steps for _, order in self.orders)

    def at(self, step: int) -> tuple[int, int]:
        """Which improve step a step belongs to, and which step of that it is."""
        improve, offset = 0, step - self.first_step
        while offset >= self.orders[improve][1].steps:
            offset -= self.orders[improve][1].steps
            improve += 1
        return improve, offset


class RestSource:
    """Grow and improve in turn."""

    def __init__(
        self,
        rows: Sequence[PromptRow],
        plan: RestPlan,
        *,
        sampler: CompletionSampler,
        rewards: Rewards,
        folder: Path,
        samples_per_prompt: int,
        learns_thoughts: bool = True,
    ) -> None:
        """Grown data sets are kept in `folder`: they cannot be made again with later weights."""
        self._learns_thoughts = learns_thoughts
        self._rows = rows
        self._plan = plan
        self._sampler = sampler
        self._rewards = rewards
        self._folder = folder
        self._guess = plan.guess(len(rows) * samples_per_prompt)
        self._grown: list[Grown] = []

    @property
    def steps(self) -> int:
        """See `TrainSource.steps`; a guess until the last data set is grown."""
        done = self._grown[-1].last_step if self._grown else 0
        return done + (self._plan.grow_steps - len(self._grown)) * self._guess

    def train_step(self, step: int) -> TrainStep | None:
        """See `TrainSource.train_step`."""
        if self._starts_grow(step):
            self._grow(step)
        if not self._grown or step >= self._grown[-1].last_step:
            return None
        number = next(i for i, grown in enumerate(self._grown) if step < grown.last_step)
        grown = self._grown[number]
        improve, offset = grown.at(step)
        kept, order = grown.orders[improve]
        chosen = [grown.samples[kept[i]] for i in order.rows(offset)]
        figures = {"grow": float(number + 1), "improve": float(improve + 1)}
        figures |= {"threshold": grown.thresholds[improve], "kept": float(len(kept))}
        if step == grown.first_step:
            figures |= grown.figures
        return TrainStep(samples={Objective.SFT: chosen}, epoch=float(number + 1), metrics=figures)

    def due(self, step: int) -> bool:
        """See `TrainSource.due`: whether a data set is grown with the weights at this step."""
        return self._starts_grow(step)

    def _starts_grow(self, step: int) -> bool:
        done = self._grown[-1].last_step if self._grown else 0
        return step >= done and len(self._grown) < self._plan.grow_steps

    def resume(self, step: int) -> None:
        """See `TrainSource.resume`."""
        self._grown = []
        for number in range(self._plan.grow_steps):
            path = self._path(number)
            document = read_json(path)
            if document is not None and document["first_step"] <= step:
                self._grown.append(self._improves(number, document))
            else:
                path.unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"grow-{number + 1:03d}.json"

    def _grow(self, step: int) -> None:
        """Sample and score completions of every prompt with the weights as they are."""
        number = len(self._grown)
        completions = self._sampler.sample(self._rows, f"grow {number}")
        rewards = score_completions(
            self._rewards, completions, learns_thoughts=self._learns_thoughts
        )
        document = {
            "first_step": step,
            "figures": completion_figures(completions, rewards),
            "rewards": [r for r in rewards if r is not None],
            "samples": [
                {"name": a.name, **asdict(a.sequence(1.0)), "generation_logprobs": []}
                for a, r in zip(completions, rewards, strict=True)
                if r is not None
            ],
        }
        if not document["samples"]:
            raise FailedPrecondition("the reward scored no completion at all")
        self._folder.mkdir(exist_ok=True)
        write_json(self._path(number), document)
        # Read back, so that a run that is resumed and one that is not learn from the same.
        self._grown.append(self._improves(number, json.loads(self._path(number).read_text())))

    def _improves(self, number: int, document: dict) -> Grown:  # type: ignore[type-arg]
        rewards = document["rewards"]
        thresholds = [
            quantile(rewards, self._plan.quantile(i)) for i in range(self._plan.improve_steps)
        ]
        orders = []
        for improve, threshold in enumerate(thresholds):
            kept = kept_above(rewards, threshold)
            order = RowOrder(
                count=len(kept),
                batch_size=self._plan.batch_size,
                epochs=self._plan.epochs,
                seed=f"{self._plan.seed}, grow {number}, improve {improve}",
            )
            orders.append((kept, order))
        return Grown(
            first_step=document["first_step"],
            samples=[demonstration(sample) for sample in document["samples"]],
            thresholds=thresholds,
            orders=orders,
            figures=document["figures"],
        )


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest of `values` that at least `share` of them lie at or below."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]


def kept_above(rewards: Sequence[float], threshold: float) -> list[int]:
    """Return the completions above the threshold; those at it where none is above."""
    above = [i for i, reward in enumerate(rewards) if reward > threshold]
    return above or [i for i, reward in enumerate(rewards) if reward >= threshold]


def demonstration(document: dict) -> DemonstrationSample:  # type: ignore[type-arg]
    """Return a grown completion, to be learned as it is."""
    return DemonstrationSample(
        sample_id=document["name"],
        sequence=TokenSequence(
            prompt_token_ids=tuple(document["prompt_token_ids"]),
            completion_token_ids=tuple(document["completion_token_ids"]),
            generation_logprobs=(),
            temperature=document["temperature"],
            reasoning_tokens=document.get("reasoning_tokens", 0),
        ),
        # The reward that it was chosen for is what its thought led to.
        shows_thought=True,
    )
