"""A run, built from its inputs: the trainer, what it learns from, its folder."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tuneloop.errors import InvalidRequest, SettingsError
from tuneloop.learner.abilities.exam import AbilityExam
from tuneloop.learner.abilities.suite import load_suite
from tuneloop.learner.models.decoding.sampling import Sampler
from tuneloop.learner.models.policy import PolicyModel
from tuneloop.learner.models.world import ALONE, World
from tuneloop.learner.offline.export import write_version
from tuneloop.learner.offline.run.ability_watch import AbilityWatch
from tuneloop.learner.offline.run.checkpoints import identity_of
from tuneloop.learner.offline.run.console import Console
from tuneloop.learner.offline.run.folder import RunFolder
from tuneloop.learner.offline.run.run import Run, SaveSchedule
from tuneloop.learner.offline.run.settings import RunInputs
from tuneloop.learner.offline.sources.base import FixedSource, RowOrder, TrainSource
from tuneloop.learner.offline.sources.judged import JudgedSource
from tuneloop.learner.offline.sources.on_policy import CompletionSampler, OnPolicySource
from tuneloop.learner.offline.sources.ref_logprobs import with_stored_reference
from tuneloop.learner.offline.sources.rest import RestPlan, RestSource
from tuneloop.learner.trainer.base import Trainer
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.reward_model import RewardTrainer
from tuneloop.learner.trainer.settings import RewardTrainerSettings, TrainerSettings
from tuneloop.policies import WeightsKind

TOO_LONG = "tokens that fit"
"""What trainers say of a sample that is too long for them."""


def build_run(inputs: RunInputs, folder: RunFolder, world: World = ALONE) -> Run:
    """Load the model and make the run; raises `InvalidRequest` for a sample it cannot take."""
    seed = inputs.settings.trainer.seed
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    run = inputs.settings.run
    console = Console(every=run.logging_steps)
    note = f", {inputs.dropped} rows left out as too long" if inputs.dropped else ""
    console.line(f"{len(inputs.samples)} samples{note}; loading {inputs.model_name}")
    trainer, source = trainer_and_source(inputs, folder, console, world)
    abilities = ability_watch(inputs, trainer, folder, console)
    adapter = inputs.facts.trains_policy and inputs.settings.trainer.kind is WeightsKind.LORA
    return Run(
        title=f"{inputs.algorithm} {inputs.model_name}",
        folder=folder,
        identity=inputs.identity,
        trainer=trainer,
        source=source,
        pace=SaveSchedule(
            max_steps=run.max_steps,
            save_steps=run.save_steps,
            save_total_limit=run.save_total_limit,
        ),
        console=console,
        write_version=lambda out: write_version(trainer, inputs.model, out, adapter=adapter),
        abilities=abilities,
    )


def ability_watch(
    inputs: RunInputs, trainer: Trainer, folder: RunFolder, console: Console
) -> AbilityWatch | None:
    """Return what asks the policy the suites of the settings; None where none is to be asked.

    Raises `InvalidRequest` for a suite with an item that is wrong or does not fit the model.
    """
    run = inputs.settings.run
    if run.abilities is None or not isinstance(trainer, PolicyTrainer):
        return None
    suite = load_suite([name.strip() for name in run.abilities.split(",")])
    return AbilityWatch(
        AbilityExam(suite, inputs.model),
        trainer,
        path=folder.abilities,
        best=folder.unspoilt,
        console=console,
        every=run.ability_steps,
        stops=run.stop_at_ability_drop,
    )


def trainer_and_source(
    inputs: RunInputs, folder: RunFolder, console: Console, world: World
) -> tuple[Trainer, TrainSource]:
    """Return the trainer, and what it learns from at each step."""
    order = order_of(inputs, len(inputs.samples))
    settings = with_decay_horizon(inputs, order)
    if isinstance(settings, RewardTrainerSettings):
        reward_trainer = RewardTrainer(inputs.model, settings)
        samples = check_samples(inputs, reward_trainer, console)
        return reward_trainer, fixed_source(inputs, reward_trainer, samples, folder)
    trainer = PolicyTrainer(inputs.model, settings, world, base_model=inputs.model_name)
    if inputs.rewards is None and inputs.verdicts is None:
        samples = check_samples(inputs, trainer, console)
        return trainer, fixed_source(inputs, trainer, samples, folder)
    return trainer, sampled_source(inputs, trainer.model, order, folder, console)


def order_of(inputs: RunInputs, count: int) -> RowOrder:
    """Return the order over rows: samples, or prompts."""
    run = inputs.settings.run
    return RowOrder(
        count=count,
        batch_size=max(1, run.batch_size // run.samples_per_prompt),
        epochs=run.epochs,
        seed=f"seed {inputs.settings.trainer.seed}",
    )


def with_decay_horizon(
    inputs: RunInputs, order: RowOrder
) -> TrainerSettings | RewardTrainerSettings:
    """Return the trainer's settings; those of a falling rate say at which step it is 0."""
    trainer = inputs.settings.trainer
    if trainer.lr_scheduler_type == "constant":
        return trainer
    if inputs.facts.source == "grown":
        raise SettingsError(
            f"lr_scheduler_type must be constant with {inputs.algorithm}: how many steps it takes "
            "depends on the rewards",
            param="lr_scheduler_type",
        )
    steps = min(order.steps, inputs.settings.run.max_steps or order.steps)
    if isinstance(trainer, TrainerSettings):
        steps *= inputs.facts.epochs(trainer)
    return replace(trainer, max_steps=steps)


def check_samples(inputs: RunInputs, trainer: Trainer, console: Console) -> Sequence[Any]:
    """Return the samples the trainer accepts, as it learns from them.

    Too long ones are an error or left out.
    """
    drop = inputs.settings.run.on_long == "drop"
    kept = []
    for sample in inputs.samples:
        try:
            trainer.check(inputs.objective, sample)
        except InvalidRequest as error:
            if TOO_LONG not in error.message:
                raise
            if not drop:
                hint = "shorten it, or leave such rows out with --set on_long=drop"
                raise InvalidRequest(f"{error.message}; {hint}", param="max_length") from error
        else:
            kept.append(trainer.as_learned(sample))
    if len(kept) < len(inputs.samples):
        console.line(f"{len(inputs.samples) - len(kept)} samples left out as too long")
    if not kept:
        raise InvalidRequest("every sample is too long for the model", param="data")
    return kept


def fixed_source(
    inputs: RunInputs, trainer: Trainer, samples: Sequence[Any], folder: RunFolder
) -> FixedSource:
    """Return passes over samples; for several passes, reference log-probs are computed once."""
    order = order_of(inputs, len(samples))
    settings = inputs.settings.trainer
    compared = isinstance(settings, TrainerSettings) and inputs.facts.needs_reference(settings)
    if order.epochs > 1 and compared:
        samples = with_stored_reference(
            samples,
            trainer.reference_logprobs,
            folder.reference,
            run=identity_of(inputs.identity),
        )
    return FixedSource(inputs.objective, samples, order)


def sampled_source(
    inputs: RunInputs, model: PolicyModel, order: RowOrder, folder: RunFolder, console: Console
) -> TrainSource:
    """Completions of the policy itself, scored."""
    assert inputs.tokens is not None
    run = inputs.settings.run
    sampler = Sampler(
        inputs.tokens.tokenization,
        temperature=run.temperature,
        max_tokens=run.max_completion_length,
        batch_size=run.sampling_batch_size,
        report=console.sampled,
    )
    completion_sampler = CompletionSampler(
        model, sampler, samples_per_prompt=run.samples_per_prompt, seed=order.seed
    )
    if inputs.verdicts is not None:
        return JudgedSource(
            inputs.objective,
            inputs.samples,
            order,
            sampler=completion_sampler,
            verdicts=inputs.verdicts,
            samples_per_prompt=run.samples_per_prompt,
            temperature=run.temperature,
        )
    settings = inputs.settings.trainer
    assert inputs.rewards is not None
    assert isinstance(settings, TrainerSettings)
    learns_thoughts = settings.learn_thoughts != "never"
    if inputs.facts.source == "grown":
        plan = RestPlan(
            grow_steps=run.grow_steps,
            improve_steps=run.improve_steps,
            threshold_start=run.threshold_start,
            threshold_end=run.threshold_end,
            epochs=run.epochs,
            batch_size=run.batch_size,
            seed=order.seed,
        )
        return RestSource(
            inputs.samples,
            plan,
            sampler=completion_sampler,
            rewards=inputs.rewards,
            folder=folder.grown,
            samples_per_prompt=run.samples_per_prompt,
            learns_thoughts=learns_thoughts,
        )
    return OnPolicySource(
        inputs.objective,
        inputs.samples,
        order,
        sampler=completion_sampler,
        rewards=inputs.rewards,
        samples_per_prompt=run.samples_per_prompt,
        temperature=run.temperature,
        learns_thoughts=learns_thoughts,
    )
