"""One step of the policy: plan every objective, add up their gradients, step once."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import compress
from pathlib import Path
from typing import Any

import torch

from tuneloop.errors import InvalidRequest
from tuneloop.generation.prompts import Tokenization
from tuneloop.learner.models.batch import check_sample
from tuneloop.learner.models.decoding.greedy import GreedyDecoder, greedy_answers
from tuneloop.learner.models.memory import (
    after_shortages,
    halved_token_budget,
    is_out_of_memory,
    run_in_smaller_passes,
    token_budget_of,
)
from tuneloop.learner.models.policy import PolicyModel
from tuneloop.learner.models.world import ALONE, World
from tuneloop.learner.objectives.anchors import Anchors, load_anchors, plan_anchors
from tuneloop.learner.objectives.base import Plan
from tuneloop.learner.objectives.combined import Plans, step_on_plans
from tuneloop.learner.objectives.evidence import (
    Given,
    Shares,
    anchors_beside,
    rate_share,
    shares_of_step,
)
from tuneloop.learner.samples import (
    POLICY_OBJECTIVES,
    DemonstrationSample,
    GreedyPrompt,
    PolicySample,
    Reference,
    SampledAnswer,
    TokenSequence,
    check_type,
)
from tuneloop.learner.samples.learned_tokens import as_learned
from tuneloop.learner.trainer import checkpoint, checkpoint_shards
from tuneloop.learner.trainer.adaptive import AdaptiveState, rate_factor
from tuneloop.learner.trainer.algorithms import Algorithm, algorithm_of
from tuneloop.learner.trainer.base import StepResult, TrainerState
from tuneloop.learner.trainer.optimizer import Optimizer
from tuneloop.learner.trainer.settings import TrainerSettings

SEEN_LATE = {"clip_fraction", "importance_ratio"}
"""Metrics reported from the last epoch; all others are of the policy before the step."""
VALUE_STEP = 0.64
"""The most that a step of Adam adds to a value at the value head's rate, for inputs near 1."""
logger = logging.getLogger("tuneloop.learner.trainer")


class PolicyTrainer:
    """The `Trainer` of the policy: learns with the algorithm of each objective."""

    def __init__(
        self,
        model_folder: Path,
        settings: TrainerSettings,
        world: World = ALONE,
        *,
        base_model: str | None = None,
    ) -> None:
        """Load version 0 from `model_folder`; equal settings give equal trainers.

        `base_model` is its name in what is saved: the folder's where it is not given. Of several
        ranks in `world` the first announces what it does, the others follow.
        """
        world.announce("make", "", model_folder, settings, base_model=base_model)
        self._world, self._settings = world, settings
        self._folder = model_folder
        self._base_model = base_model or model_folder.name
        self._algorithms: dict[str, Algorithm] = {
            objective: algorithm_of(objective, settings) for objective in POLICY_OBJECTIVES
        }
        self.needs_reference = frozenset[str](
            objective
            for objective, algorithm in self._algorithms.items()
            if settings.kl_budget is not None or algorithm.needs_reference(settings)
        )
        torch.set_num_threads(settings.threads or torch.get_num_threads())
        self._model = PolicyModel(
            model_folder,
            kind=settings.kind,
            lora_rank=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            seed=settings.seed,
            device=world.device(settings.device),
            packing=settings.packing,
            packed_attention=settings.packed_attention,
            gradient_checkpointing=settings.gradient_checkpointing,
            compile=settings.compile,
            world=world,
        )
        # Micro-batches are measured as the model takes them, and divided among the ranks.
        one = settings.token_budget or self._measured_budget() or settings.tokens_at_once
        budget = after_shortages(one * world.size, world.shortages)
        self._settings = replace(settings, packing=self._model.packs, token_budget=budget)
        self._reference_budget = self._first_budget = min(one, budget)
        value_head = self._model.value_head
        value_rate = settings.value_learning_rate or VALUE_STEP / value_head.in_features
        self._optimizer = Optimizer(
            [
                (self._model.parameters(), settings.optimizer.learning_rate),
                (dict(value_head.named_parameters(prefix="value_head")), value_rate),
            ],
            settings.optimizer,
            world,
        )
        self._adaptive = AdaptiveState()
        self._anchors: Anchors | None = None
        if settings.anchor_weight > 0 and world.is_leader:
            self._anchors = load_anchors(
                model_folder, settings, self._model.max_length, self.reference_answers
            )

    def _measured_budget(self) -> int | None:
        """Return the tokens that fit on every rank's GPU; None on a CPU."""
        keeps = self._settings.full_step is not None
        found = token_budget_of(self._model, keeps_open_batch=keeps, ranks=self._world.size)
        return None if found is None else min(self._world.gather(found))

    @property
    def model(self) -> PolicyModel:
        """The policy in training: for sampling, and for log-probs of it and of its reference."""
        return self._model

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps taken since version 0."""
        return self._optimizer.steps

    def check(self, objective: str, sample: PolicySample) -> None:
        """See `Trainer.check`."""
        check_type(objective, sample)
        self._check(self.as_learned(sample))

    def as_learned(self, sample: Any) -> Any:
        """See `Trainer.as_learned`."""
        return as_learned(sample, self._settings.learn_thoughts)

    def _check(self, sample: PolicySample) -> None:
        limit = min(self._settings.max_length or math.inf, self._model.max_length)
        check_sample(sample, max_length=int(limit), vocab_size=self._model.vocab_size)

    def reference_logprobs(self, sequences: Sequence[TokenSequence]) -> list[tuple[float, ...]]:
        """See `Trainer.reference_logprobs`."""
        return [reference.logprobs for reference in self.references(sequences)]

    def references(self, sequences: Sequence[TokenSequence]) -> list[Reference]:
        """See `Trainer.references`."""

        def compute(fitting: Sequence[TokenSequence]) -> list[Reference]:
            return self._model.compute_references(fitting, token_budget=self._reference_budget)

        return [found or Reference() for found in self._of_fitting(sequences, compute)]

    def logprobs(self, sequences: Sequence[TokenSequence]) -> list[tuple[float, ...]]:
        """See `Trainer.logprobs`."""
        return self._of_fitting(sequences, self._model.compute_logprobs)

    def _of_fitting(
        self, sequences: Sequence[TokenSequence], compute: Callable[..., Any]
    ) -> list[Any]:
        """Return what `compute` makes of the sequences that fit, in place; () for the others."""
        fits = [self._fits(sequence) for sequence in sequences]
        fitting = list(compress(sequences, fits))
        found = iter(run_in_smaller_passes(self, partial(compute, fitting)))
        return [next(found) if fit else () for fit in fits]

    def _fits(self, sequence: TokenSequence) -> bool:
        try:
            self._check(DemonstrationSample(sample_id="", sequence=sequence))
        except InvalidRequest:
            return False
        return True

    def answers(self, prompts: Sequence[GreedyPrompt]) -> list[SampledAnswer]:
        """Return the likeliest answer of the current weights to each prompt, in order."""
        return self._decoder.answers(prompts)

    def reference_answers(
        self, prompts: Sequence[Sequence[int]], max_tokens: int
    ) -> list[SampledAnswer]:
        """Return the likeliest answer of the reference policy to each prompt (token ids)."""
        with self._model.reference_module() as module:
            return greedy_answers(module, self._decoder.tokenization, prompts, max_tokens)

    @cached_property
    def _decoder(self) -> GreedyDecoder:
        return GreedyDecoder(self._model, Tokenization(self._folder))

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
        given = {n: list(map(self.as_learned, batch)) for n, batch in samples.items() if batch}
        if not given:
            return StepResult(metrics={}, skipped=True, reason="no_samples")
        anchors: list[TokenSequence] = []
        if self._anchors is not None:
            beside = anchors_beside(given, self._settings)
            anchors = self._anchors.sequences(self._adaptive.anchors_used, beside)

        def attempt() -> StepResult:
            self._world.announce("trainer", "take_step", given, anchors)
            return self.take_step(given, anchors)

        return run_in_smaller_passes(self, attempt)

    def take_step(self, given: Given, anchors: Sequence[TokenSequence]) -> StepResult:
        """Take the step that `step` has checked, on every rank."""
        with self._world.together(), self._model.noting() as noted:
            result = self._take_checked(given, anchors)
        return replace(result, logprobs=noted.totals())

    def _take_checked(self, given: Given, anchors: Sequence[TokenSequence]) -> StepResult:
        adaptive = self._adaptive.with_rewards(given, self._settings)
        controls = adaptive.controls(self._settings)
        shares = shares_of_step(given, self._settings)
        slowed = rate_factor(adaptive.spent(self._settings))
        self._optimizer.rate_factor = slowed * rate_share(given, self._settings)
        self._optimizer.rewind(math.fsum(shares.values()))
        try:
            plans = {
                name: self._algorithms[name].load_plan()(
                    self._model, batch, self._settings, controls
                )
                for name, batch in given.items()
            }
            held = plan_anchors(self._model, anchors, self._settings) if anchors else None
            result = step_on_plans(self._optimizer, plans, held, shares, self._settings)
        except BaseException:
            self._optimizer.resume()
            raise
        if result.skipped:
            return result
        self._adaptive = adaptive.after(result.metrics, given, self._settings, len(anchors))
        return self._repeat(plans, held, shares, result)

    def _repeat(
        self, plans: Plans, held: Plan | None, shares: Shares, result: StepResult
    ) -> StepResult:
        """Take the further optimizer steps of algorithms that use a batch more than once."""
        epochs = {name: self._algorithms[name].epochs(self._settings) for name in plans}
        for epoch in range(1, max(epochs.values())):
            left = {n: p for n, p in plans.items() if epoch < epochs[n]}
            try:
                again = step_on_plans(self._optimizer, left, held, shares, self._settings)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                # The step is taken: what is left out is its repetition, not a sample.
                logger.warning("out of memory: %d of %d epochs taken", epoch, max(epochs.values()))
                self.limit_tokens(halved_token_budget(self.token_budget) or self.token_budget)
                break
            if again.skipped:
                break
            # In the first epoch policy and old policy are one: the clip is seen in the last.
            late = {name: again.metrics[name] for name in SEEN_LATE & again.metrics.keys()}
            result = StepResult(metrics={**result.metrics, **late})
        return result

    def save_weights(self, folder: Path) -> None:
        """See `Trainer.save_weights`."""
        self._world.announce("trainer", "save_weights", folder)
        self._model.save_weights(folder, base_model=self._base_model)

    def stage_checkpoint(self, position: Mapping[str, Any]) -> Callable[[Path], None]:
        """See `Trainer.stage_checkpoint`."""
        return checkpoint.stage({"policy": self}, position)

    def load_checkpoint(self, folder: Path) -> None:
        """See `Trainer.load_checkpoint`."""
        checkpoint.load(folder).put_back("policy", self)

    def load_weights(self, folder: Path) -> None:
        """Load a published version; raises `WeightsRefused`."""
        self._world.announce("trainer", "load_weights", folder)
        self._model.load_weights(folder)
        self._optimizer.masters.reset()

    def finite(self) -> bool:
        """See `Trainer.finite`."""
        self._world.announce("trainer", "finite")
        return self._optimizer.finite()

    @property
    def token_budget(self) -> int:
        """See `Trainer.token_budget`."""
        return self._settings.tokens_at_once

    def limit_tokens(self, token_budget: int) -> None:
        """Take passes of at most so many tokens from now on, and drop a failed step's gradients."""
        self._world.announce("trainer", "limit_tokens", token_budget)
        self._optimizer.zero_grad()
        self._settings = replace(self._settings, token_budget=token_budget)
        self._reference_budget = min(self._first_budget, token_budget)

    def state(self) -> TrainerState:
        """Return what a checkpoint keeps of this rank: weights, optimizer, what adapts."""
        state = self._optimizer.state()
        return replace(state, scheduler={**state.scheduler, "steering": self._adaptive.state()})

    def load_state(self, state: TrainerState) -> None:
        """Restore a saved state; raises `CorruptData` if it is of another model or settings."""
        adaptive = AdaptiveState.of_state(state.scheduler.get("steering", {}))
        self._optimizer.load_state(state)
        self._adaptive = adaptive

    def stage_state(self) -> Callable[[Path], checkpoint_shards.Saved]:
        """See `Checkpointed`."""
        if self._world.size > 1:
            return self.save_state
        return partial(checkpoint_shards.save, state=self.state(), world=ALONE)

    def save_state(self, folder: Path) -> checkpoint_shards.Saved:
        """Write the parts of all ranks as they are now."""
        self._world.announce("trainer", "save_state", folder)
        with self._world.together():
            return checkpoint_shards.save(folder, self.state(), self._world)

    def read_state(self, folder: Path, saved: checkpoint_shards.Saved) -> None:
        """See `Checkpointed`."""
        self._world.announce("trainer", "read_state", folder, saved)
        with self._world.together():
            self.load_state(
                checkpoint_shards.load(folder, saved, self._optimizer.blank, self._world)
            )
