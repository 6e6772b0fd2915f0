"""What a run is made from, before any model is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.learner.data.tokenize import PromptTokenizer
from tuneloop.learner.offline.run.settings import Settings
from tuneloop.learner.offline.sources.judge import Verdicts
from tuneloop.learner.offline.sources.rewards import Rewards
from tuneloop.learner.samples import Objective
from tuneloop.learner.trainer.algorithms import Algorithm, algorithms


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInputs:
    """Model, data, rewards and settings of a run."""

    algorithm: str
    model: Path
    """Folder of version 0."""
    model_name: str
    settings: Settings
    samples: Sequence[Any]
    """Samples of the objective, or prompts."""
    dropped: int
    """Rows left out as too long."""
    tokens: PromptTokenizer | None
    """None for the reward model."""
    rewards: Rewards | None
    """None where the data, or a judge, says which answers are better."""
    verdicts: Verdicts | None
    """A judge that compares what the policy samples; None where none does."""
    identity: Mapping[str, Any]
    """What decides the result, as JSON: a run resumes only with the same."""

    @property
    def facts(self) -> Algorithm:
        """Return the algorithm's entry in the registry."""
        return algorithms[self.algorithm]

    @property
    def objective(self) -> Objective:
        """Return what the samples are called in a step."""
        return self.facts.objective
