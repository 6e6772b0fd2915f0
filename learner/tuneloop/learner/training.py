"""The trainers behind the loop's protocol: a trainer, its checkpoints, its version's files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneloop.learner.reward_trainer import RewardTrainer

from tuneloop.errors import CorruptData
from tuneloop.learner import checkpoint
from tuneloop.learner.policy_trainer import PolicyTrainer
from tuneloop.learner.step_result import StepResult
from tuneloop.learner.trainer_settings import RewardTrainerSettings, TrainerSettings


class PolicyTraining:
    """`Trainer` of the policy."""

    def __init__(self, model_folder: Path, base_model: str, settings: TrainerSettings) -> None:
        self._trainer = PolicyTrainer(model_folder, settings)
        self._base_model = base_model

    def step(self, samples: Mapping[str, Sequence[Any]]) -> StepResult:
        """See `Trainer.step`."""
        return self._trainer.step(samples)

    def save_checkpoint(self, folder: Path, step: int) -> None:
        """See `Trainer.save_checkpoint`."""
        save(folder, "policy", self._trainer, step)

    def load_checkpoint(self, folder: Path) -> None:
        """See `Trainer.load_checkpoint`."""
        load(folder, "policy", self._trainer)

    def save_weights(self, folder: Path) -> None:
        """See `Trainer.save_weights`."""
        self._trainer.save_weights(folder, base_model=self._base_model)


class RewardTraining:
    """`Trainer` of the reward model."""

    def __init__(self, model_folder: Path, settings: RewardTrainerSettings) -> None:
        self._trainer = RewardTrainer(model_folder, settings)

    def step(self, samples: Mapping[str, Sequence[Any]]) -> StepResult:
        """See `Trainer.step`."""
        return self._trainer.step(samples["reward_model"])

    def save_checkpoint(self, folder: Path, step: int) -> None:
        """See `Trainer.save_checkpoint`."""
        save(folder, "reward_model", self._trainer, step)

    def load_checkpoint(self, folder: Path) -> None:
        """See `Trainer.load_checkpoint`."""
        load(folder, "reward_model", self._trainer)

    def save_weights(self, folder: Path) -> None:
        """See `Trainer.save_weights`."""
        self._trainer.save_weights(folder)


def save(folder: Path, name: str, trainer: PolicyTrainer | RewardTrainer, step: int) -> None:
    """Write a checkpoint of one trainer."""
    state = checkpoint.CheckpointState(trainers={name: trainer.state()}, position={"step": step})
    checkpoint.save(folder, state)


def load(folder: Path, name: str, trainer: PolicyTrainer | RewardTrainer) -> None:
    """Put a trainer where a checkpoint left it; raises `CorruptData`."""
    found = checkpoint.load(folder)
    if name not in found.trainers:
        raise CorruptData(f"checkpoint {folder.name}: not of the {name}")
    trainer.load_state(found.trainers[name])
    found.random.restore()
