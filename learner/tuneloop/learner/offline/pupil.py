"""A trainer as a run sees it: it learns, can be checkpointed, and leaves a version."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tuneloop.learner.models.world import ALONE, World
from tuneloop.learner.offline.export import merge_adapter
from tuneloop.learner.trainer.base import StepResult
from tuneloop.learner.trainer.checkpoint import Checkpointed
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.reward_model import RewardTrainer
from tuneloop.learner.trainer.settings import RewardTrainerSettings, TrainerSettings
from tuneloop.policies import WeightsKind

ADAPTER = "adapter"


class Pupil(Checkpointed, Protocol):
    """What a run trains."""

    name: str
    """Of its state in a checkpoint."""

    def check(self, objective: str, sample: Any) -> None:
        """Raise `InvalidRequest` if it could not learn from the sample."""
        ...

    def step(self, samples: Mapping[str, Sequence[Any]]) -> StepResult:
        """One optimizer step."""
        ...

    def save_version(self, folder: Path) -> None:
        """Write what the service and plain transformers load into an empty folder."""
        ...


class PolicyPupil:
    """The policy."""

    name = "policy"

    def __init__(
        self,
        model_folder: Path,
        model_name: str,
        settings: TrainerSettings,
        world: World = ALONE,
    ) -> None:
        self._folder = model_folder
        self._model_name = model_name
        self.settings = settings
        self.trainer = PolicyTrainer(model_folder, settings, world)
        self.check = self.trainer.check
        self.step = self.trainer.step
        self.save_state = self.trainer.save_state
        self.read_state = self.trainer.read_state

    def save_version(self, folder: Path) -> None:
        """Write full weights; of LoRA also the adapter, apart."""
        if self.settings.kind is WeightsKind.FULL:
            self.trainer.save_weights(folder, base_model=self._model_name)
            return
        self.trainer.save_weights(folder / ADAPTER, base_model=self._model_name)
        merge_adapter(self._folder, folder / ADAPTER, folder)


class RewardPupil:
    """The reward model."""

    name = "reward_model"

    def __init__(self, model_folder: Path, settings: RewardTrainerSettings) -> None:
        self.trainer = RewardTrainer(model_folder, settings)
        self.save_state = self.trainer.save_state
        self.read_state = self.trainer.read_state
        self.save_version = self.trainer.save_weights

    def check(self, objective: str, sample: Any) -> None:
        """See `Pupil.check`."""
        self.trainer.check(sample)

    def step(self, samples: Mapping[str, Sequence[Any]]) -> StepResult:
        """See `Pupil.step`."""
        return self.trainer.step(samples["reward_model"])
