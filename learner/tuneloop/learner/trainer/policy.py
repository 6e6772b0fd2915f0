"""One step of the policy: plan every objective, add up their gradients, step once."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tuneloop.errors import InvalidRequest
from tuneloop.generation.prompts import Tokenization
from tuneloop.learner.losses.means import merge
from tuneloop.learner.models.batch import check_sample
from tuneloop.learner.models.policy import PolicyModel
from tuneloop.learner.models.sampling import greedy_answers
from tuneloop.learner.models.world import ALONE, World
from tuneloop.learner.objectives.base import Plan
from tuneloop.learner.samples import DemonstrationSample, PolicySample, SampledAnswer, TokenSequence
from tuneloop.learner.trainer import checkpoint, checkpoint_shards
from tuneloop.learner.trainer.adaptive import AdaptiveState
from tuneloop.learner.trainer.algorithms import algorithms
from tuneloop.learner.trainer.base import StepResult, TrainerState
from tuneloop.learner.trainer.checkpoint_shards import Saved
from tuneloop.learner.trainer.gradient_step import LossTerm, accumulate_and_step
from tuneloop.learner.trainer.optimizer import Optimizer
from tuneloop.learner.trainer.settings import TrainerSettings

SEEN_LATE = {"clip_fraction", "importance_ratio"}
"""Metrics reported from the last epoch; all others are of the policy before the step."""


VALUE_STEP = 0.64
"""What a step of Adam may add to a value at the value head's own rate, its inputs being about 1."""


class PolicyTrainer:
    """Learns a policy from what each of `algorithms` consumes."""

    def __init__(self, model_folder: Path, settings: TrainerSettings, world: World = ALONE) -> None:
        """Load version 0 from `model_folder`; equal settings give equal trainers.

        Of several ranks in `world` the first announces what it does, the others follow.
        """
        world.announce("make", "", model_folder, settings)
        self._world = world
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self._model = PolicyModel(
            model_folder,
            kind=settings.kind,
            lora_rank=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            seed=settings.seed,
            device=world.device(settings.device),
            packing=settings.packing,
            gradient_checkpointing=settings.gradient_checkpointing,
            compile=settings.compile,
            world=world,
        )
        # Micro-batches are measured as the model takes them, and divided among the ranks.
        budget = settings.token_budget
        if world.size > 1:
            budget = settings.tokens_at_once * world.size
        self._settings = replace(settings, packing=self._model.packs, token_budget=budget)
        value_head = self._model.value_head
        value_rate = settings.value_learning_rate or VALUE_STEP / value_head.in_features
        self._optimization = Optimizer(
            [
                (self._model.parameters(), settings.optimizer.learning_rate),
                (dict(value_head.named_parameters(prefix="value_head")), value_rate),
            ],
            settings.optimizer,
            world,
        )
        self._adaptive = AdaptiveState()

    @property
    def model(self) -> PolicyModel:
        """The policy in training: for sampling, and for log-probs of it and of its reference."""
        return self._model

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps taken since version 0."""
        return self._optimization.steps

    def check(self, objective: str, sample: PolicySample) -> None:
        """Raise `InvalidRequest`, `param` the sample's id, if `step` could not learn from it."""
        algorithm = algorithms.get(objective)
        if algorithm is None:
            raise InvalidRequest(f"objective {objective!r} is none of {', '.join(algorithms)}")
        if not isinstance(sample, algorithm.consumes):
            kinds = f"{algorithm.consumes.__name__}, not {type(sample).__name__}"
            message = f"sample {sample.sample_id}: {objective} learns from {kinds}"
            raise InvalidRequest(message, param=sample.sample_id)
        limit = min(self._settings.max_length or math.inf, self._model.max_length)
        check_sample(sample, max_length=int(limit), vocab_size=self._model.vocab_size)

    def step(self, samples: Mapping[str, Sequence[PolicySample]]) -> StepResult:
        """Take one optimizer step on the samples of each objective (more with `ppo_epochs`).

        Every objective is divided by what its own samples weigh (sft, ppo and grpo: their tokens),
        times its weight; an objective without samples takes no part. Metrics are of the policy
        before the step.

        Raises:
            InvalidRequest: a sample cannot be learned from; nothing has changed. `param` names it.

        """
        for objective, batch in samples.items():
            for sample in batch:
                self.check(objective, sample)
        given = {name: batch for name, batch in samples.items() if batch}
        if not given:
            return StepResult(metrics={}, skipped=True, reason="no_samples")
        self._world.announce("trainer", "step", given)
        with self._world.together():
            return self._step(given)

    def _step(self, given: Mapping[str, Sequence[PolicySample]]) -> StepResult:
        """Take the step that `step` has checked."""
        adaptive = self._adaptive.with_rewards(given, self._settings)
        controls = adaptive.controls(self._settings)
        plans = {
            name: algorithms[name].plan(self._model, batch, self._settings, controls)
            for name, batch in given.items()
        }
        self._optimization.rate_factor = adaptive.rate_factor
        result = self._descend(plans)
        if result.skipped:
            return result
        self._adaptive = adaptive.after(result.metrics, given, self._settings)
        return self._repeat(plans, result)

    def _repeat(self, plans: Mapping[str, Plan], result: StepResult) -> StepResult:
        """Take the further optimizer steps of algorithms that use a batch more than once."""
        epochs = {name: algorithms[name].epochs(self._settings) for name in plans}
        for epoch in range(1, max(epochs.values())):
            again = self._descend({n: p for n, p in plans.items() if epoch < epochs[n]})
            if again.skipped:
                break
            # In the first epoch policy and old policy are one: the clip is seen in the last.
            late = {name: again.metrics[name] for name in SEEN_LATE & again.metrics.keys()}
            result = StepResult(metrics={**result.metrics, **late})
        return result

    def _descend(self, plans: Mapping[str, Plan]) -> StepResult:
        """Take one optimizer step on all plans, or none if `descend` refuses it."""
        weights = self._settings.objective_weights
        terms = [
            LossTerm(
                name=f"{name}_loss",
                micro_losses=plan.micro_losses,
                weight=weights.get(name, 1.0),
            )
            for name, plan in plans.items()
            if plan.micro_losses
        ]
        measured = [metrics for plan in plans.values() for metrics in plan.metrics]
        if not terms:
            return StepResult(metrics=merge(measured), skipped=True, reason="no_spread")
        result = accumulate_and_step(self._optimization, terms, measured)
        tokens = float(sum(plan.tokens for plan in plans.values()))
        return replace(result, metrics={**result.metrics, "tokens": tokens})

    def save_weights(self, folder: Path, *, base_model: str) -> None:
        """Write a version's files; `base_model` is the name of version 0."""
        self._world.announce("trainer", "save_weights", folder, base_model=base_model)
        self._model.save_weights(folder, base_model=base_model)

    def load_weights(self, folder: Path) -> None:
        """Go on from a published version; raises `WeightsRefused`."""
        self._world.announce("trainer", "load_weights", folder)
        self._model.load_weights(folder)

    def finite(self) -> bool:
        """Whether every weight in training is a number."""
        self._world.announce("trainer", "finite")
        return self._optimization.finite()

    def state(self) -> TrainerState:
        """What a checkpoint keeps: adapter or weights, value head, optimizer, what adapts.

        Of sharded tensors it is this rank's part.
        """
        state = self._optimization.state()
        return replace(state, scheduler={**state.scheduler, "steering": self._adaptive.state()})

    def load_state(self, state: TrainerState) -> None:
        """Go on from a checkpoint; raises `CorruptData` if it is of another model or settings."""
        adaptive = AdaptiveState.of_state(state.scheduler.get("steering", {}))
        self._optimization.load_state(state)
        self._adaptive = adaptive

    def save_state(self, folder: Path) -> Saved:
        """See `checkpoint.Checkpointed`."""
        self._world.announce("trainer", "save_state", folder)
        with self._world.together():
            return checkpoint_shards.save(folder, self.state(), self._world)

    def read_state(self, folder: Path, saved: Saved) -> None:
        """See `checkpoint.Checkpointed`."""
        self._world.announce("trainer", "read_state", folder, saved)
        with self._world.together():
            self.load_state(
                checkpoint_shards.load(folder, saved, self._optimization.blank, self._world)
            )


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

    def answers(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[SampledAnswer]:
        """The likeliest answer of the weights as they are to each prompt (token ids)."""
        tokenization = Tokenization(self._model_folder)
        return greedy_answers(self._trainer.model.module, tokenization, prompts, max_tokens)

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
