"""The policy's trainer behind the loop's protocol."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneloop.errors import InvalidRequest
from tuneloop.generation.prompts import Tokenization
from tuneloop.learner import checkpoint
from tuneloop.learner.algorithms import algorithms
from tuneloop.learner.distributed import ALONE, World
from tuneloop.learner.policy_trainer import PolicyTrainer
from tuneloop.learner.release.answers import Answer
from tuneloop.learner.release.rehearsal import rehearse
from tuneloop.learner.samples import DemonstrationSample, TokenSequence
from tuneloop.learner.step_result import StepResult
from tuneloop.learner.trainer_settings import TrainerSettings


class PolicyTraining:
    """`Trainer` of the policy."""

    def __init__(
        self,
        model_folder: Path,
        base_model: str,
        settings: TrainerSettings,
        world: World = ALONE,
    ) -> None:
        self._trainer = PolicyTrainer(model_folder, settings, world)
        self._base_model = base_model
        self._model_folder = model_folder
        self._token_budget = settings.tokens_at_once
        compared = {"kto", "dpo", "ppo"} | ({"grpo"} if settings.beta_grpo > 0 else set())
        self.needs_reference = frozenset(compared if settings.kl_budget is None else algorithms)

    def answers(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Answer]:
        """The likeliest answer of the weights as they are to each prompt (token ids)."""
        tokenization = Tokenization(self._model_folder)
        return rehearse(self._trainer.model.module, tokenization, prompts, max_tokens)

    def reference_logprobs(self, sequences: Sequence[TokenSequence]) -> list[tuple[float, ...]]:
        """See `Trainer.reference_logprobs`."""
        fitting = [i for i, sequence in enumerate(sequences) if self._fits(sequence)]
        found: list[tuple[float, ...]] = [()] * len(sequences)
        computed = self._trainer.model.compute_reference_logprobs(
            [sequences[i] for i in fitting], token_budget=self._token_budget
        )
        for index, logprobs in zip(fitting, computed, strict=True):
            found[index] = logprobs
        return found

    def _fits(self, sequence: TokenSequence) -> bool:
        try:
            self._trainer.check("sft", DemonstrationSample(sample_id="", sequence=sequence))
        except InvalidRequest:
            return False
        return True

    def step(self, samples: Mapping[str, Sequence[Any]]) -> StepResult:
        """See `Trainer.step`."""
        return self._trainer.step(samples)

    def finite(self) -> bool:
        """See `Trainer.finite`."""
        return self._trainer.finite()

    def save_checkpoint(self, folder: Path, step: int) -> None:
        """See `Trainer.save_checkpoint`."""
        checkpoint.save(folder, {"policy": self._trainer}, {"step": step})

    def load_checkpoint(self, folder: Path) -> None:
        """See `Trainer.load_checkpoint`."""
        checkpoint.load(folder).put_back("policy", self._trainer)

    def save_weights(self, folder: Path) -> None:
        """See `Trainer.save_weights`."""
        self._trainer.save_weights(folder, base_model=self._base_model)
