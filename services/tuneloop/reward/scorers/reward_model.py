"""A version of the reward model as a scorer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.models.reward_model import RewardModel, load
from tuneloop.weights.manifest import Manifest

SCORER_NAME = "reward_model"
LABELS_METRIC = "labels"
"""Entry of a manifest's metrics: the number of labels that the version was trained on."""
ACCURACY_METRIC = "ranking_accuracy"
"""Entry of a manifest's metrics: share of pairs of liked and disliked answers ranked correctly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelScorer:
    """An immutable version; a swap replaces it as a whole."""

    model: RewardModel
    version: int
    """0 is the model of the settings."""
    weight: float
    informative: bool
    name: str = SCORER_NAME

    def score(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]
    ) -> list[float | None]:
        """Return the model's scores; None for text that is too long for it."""
        return self.model.score(prompts, completions)


def base_scorer(
    folder: Path, *, max_length: int, weight: float, device: str = "cpu"
) -> RewardModelScorer:
    """Load version 0, which is informative if the folder holds a trained reward model.

    Raises `CorruptData`.
    """
    model = load(folder, max_length, device)
    return RewardModelScorer(model=model, version=0, weight=weight, informative=model.trained)


def is_informative(manifest: Manifest, min_labels: int, min_accuracy: float) -> bool:
    """Return whether the version learned enough, and ranks unseen answers well enough, to count.

    A model that knows nothing yet must not count: PPO would amplify its noise.
    """
    enough = manifest.metrics.get(LABELS_METRIC, 0.0) >= min_labels
    return enough and manifest.metrics.get(ACCURACY_METRIC, 0.0) >= min_accuracy
