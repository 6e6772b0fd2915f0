"""`tuneloop evaluate --abilities`: two versions on the items of ability suites."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tuneloop.learner.abilities.exam import AbilityExam
from tuneloop.learner.abilities.scores import AbilityComparison, AbilityScores, compare
from tuneloop.learner.abilities.suite import AbilitySuite, load_suite
from tuneloop.learner.offline.versions import VersionFolder, Versions
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.settings import TrainerSettings
from tuneloop.policies import WeightsKind
from tuneloop.weights.shapes import read_quantization


@dataclass(frozen=True, slots=True, kw_only=True)
class AbilityEvaluation:
    """The scores of two versions, and B minus A."""

    a: AbilityScores
    b: AbilityScores
    change: AbilityComparison

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "a": self.a.document(),
            "b": self.b.document(),
            "b_minus_a": self.change.document(),
        }


def evaluate_abilities(
    versions: Versions, a: str, b: str, *, suites: Sequence[str], sampled_items: int
) -> AbilityEvaluation:
    """Ask two versions the same items. Raises `TuneloopError` for a wrong name or suite."""
    suite = load_suite(suites)
    found = [versions.find(a), versions.find(b)]
    one, other = (score_version(suite, version, sampled_items) for version in found)
    return AbilityEvaluation(a=one, b=other, change=compare(other, one))


def score_version(suite: AbilitySuite, version: VersionFolder, sampled_items: int) -> AbilityScores:
    """Load a version and ask it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = version.base if version.adapter else version.folder
    packed = read_quantization(folder) is not None  # and takes nothing but an adapter
    kind = WeightsKind.LORA if version.adapter or packed else WeightsKind.FULL
    rank: dict[str, Any] = lora_of(version) if version.adapter else {}
    trainer = PolicyTrainer(folder, TrainerSettings(kind=kind, device=device, **rank))
    if version.adapter and version.weights is not None:
        trainer.load_weights(version.weights)
    return AbilityExam(suite, version.base).score(trainer, sampled_items=sampled_items)


def lora_of(version: VersionFolder) -> dict[str, Any]:
    """Return rank and alpha of an adapter."""
    from peft import LoraConfig

    config = LoraConfig.from_pretrained(str(version.weights))
    return {"lora_rank": int(config.r), "lora_alpha": int(config.lora_alpha)}
