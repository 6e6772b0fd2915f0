"""The reward model's trainer behind the loop's protocol."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneloop.learner import checkpoint
from tuneloop.learner.reward_trainer import RewardTrainer
from tuneloop.learner.samples import TokenSequence
from tuneloop.learner.step_result import StepResult
from tuneloop.learner.trainer_settings import RewardTrainerSettings


class RewardTraining:
    """`Trainer` of the reward model."""

    needs_reference: frozenset[str] = frozenset()

    def __init__(self, model_folder: Path, settings: RewardTrainerSettings) -> None:
        self._trainer = RewardTrainer(model_folder, settings)

    def step(self, samples: Mapping[str, Sequence[Any]]) -> StepResult:
        """See `Trainer.step`."""
        return self._trainer.step(samples["reward_model"])

    def reference_logprobs(self, sequences: Sequence[TokenSequence]) -> list[tuple[float, ...]]:
        """There is no reference policy here."""
        return [()] * len(sequences)

    def finite(self) -> bool:
        """See `Trainer.finite`."""
        return self._trainer.finite()

    def save_checkpoint(self, folder: Path, step: int) -> None:
        """See `Trainer.save_checkpoint`."""
        checkpoint.save(folder, {"reward_model": self._trainer}, {"step": step})

    def load_checkpoint(self, folder: Path) -> None:
        """See `Trainer.load_checkpoint`."""
        checkpoint.load(folder).put_back("reward_model", self._trainer)

    def save_weights(self, folder: Path) -> None:
        """See `Trainer.save_weights`."""
        self._trainer.save_weights(folder)
