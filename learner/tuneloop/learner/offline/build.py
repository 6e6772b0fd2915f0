"""A run, put together from its material: the trainer, its course, its folder."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tuneloop.errors import InvalidRequest, SettingsError
from tuneloop.learner.models.sampling import Sampler
from tuneloop.learner.models.world import ALONE, World
from tuneloop.learner.offline.pupil import PolicyPupil, Pupil, RewardPupil
from tuneloop.learner.offline.run.checkpoints import identity_of
from tuneloop.learner.offline.run.console import Console
from tuneloop.learner.offline.run.folder import RunFolder
from tuneloop.learner.offline.run.inputs import RunInputs
from tuneloop.learner.offline.run.run import Run, SaveSchedule
from tuneloop.learner.offline.sources.base import FixedSource, RowOrder, TrainSource
from tuneloop.learner.offline.sources.judged import JudgedSource
from tuneloop.learner.offline.sources.on_policy import CompletionSampler, OnPolicySource
from tuneloop.learner.offline.sources.ref_logprobs import with_reference
from tuneloop.learner.offline.sources.rest import RestPlan, RestSource
from tuneloop.learner.trainer.settings import TrainerSettings

TOO_LONG = "tokens that fit"
"""What trainers say of a sample that is too long for them."""


def assemble(inputs: RunInputs, folder: RunFolder, world: World = ALONE) -> Run:
    """Load the model and make the run; raises `InvalidRequest` for a sample it cannot take."""
    seed = inputs.settings.trainer.seed
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    run = inputs.settings.run
    console = Console(every=run.logging_steps)
    note = f", {inputs.dropped} rows left out as too long" if inputs.dropped else ""
    console.line(f"{len(inputs.samples)} samples{note}; loading {inputs.model_name}")
    pupil, source = trainer_and_source(inputs, folder, console, world)
    return Run(
        title=f"{inputs.algorithm} {inputs.model_name}",
        folder=folder,
        identity=inputs.identity,
        pupil=pupil,
        source=source,
        pace=SaveSchedule(
            max_steps=run.max_steps,
            save_steps=run.save_steps,
            save_total_limit=run.save_total_limit,
        ),
        console=console,
    )


def trainer_and_source(
    inputs: RunInputs, folder: RunFolder, console: Console, world: World
) -> tuple[Pupil, TrainSource]:
    """The trainer, and what it learns from at each step."""
    if inputs.algorithm == "reward-model":
        order = order_of(inputs, len(inputs.samples))
        pupil = RewardPupil(inputs.model, with_decay_horizon(inputs, order))
        samples = check_samples(inputs, pupil, console)
        source = FixedSource(inputs.objective, samples, order_of(inputs, len(samples)))
        return pupil, source
    order = order_of(inputs, len(inputs.samples))
    policy = PolicyPupil(inputs.model, inputs.model_name, with_decay_horizon(inputs, order), world)
    if inputs.rewards is None and inputs.verdicts is None:
        samples = check_samples(inputs, policy, console)
        return policy, fixed_source(inputs, policy, samples, folder)
    return policy, sampled_source(inputs, policy, order, folder, console)


def order_of(inputs: RunInputs, count: int) -> RowOrder:
    """The order over rows: samples, or prompts."""
    run = inputs.settings.run
    return RowOrder(
        count=count,
        batch_size=max(1, run.batch_size // run.samples_per_prompt),
        epochs=run.epochs,
        seed=f"seed {inputs.settings.trainer.seed}",
    )


def with_decay_horizon(inputs: RunInputs, order: RowOrder) -> Any:
    """The trainer's settings; a rate that falls is told when it has to be at 0."""
    trainer = inputs.settings.trainer
    if trainer.lr_scheduler_type == "constant":
        return trainer
    if inputs.algorithm == "rest":
        raise SettingsError(
            "lr_scheduler_type must be constant with rest: how many steps it takes depends on the "
            "rewards",
            param="lr_scheduler_type",
        )
    steps = min(order.steps, inputs.settings.run.max_steps or order.steps)
    if isinstance(trainer, TrainerSettings):
        repeats = {"ppo": trainer.ppo_epochs, "grpo": trainer.grpo_epochs}
        steps *= repeats.get(inputs.objective, 1)
    return replace(trainer, max_steps=steps)


def check_samples(inputs: RunInputs, pupil: Pupil, console: Console) -> Sequence[Any]:
    """The samples the trainer can learn from; those too long for it are an error or left out."""
    drop = inputs.settings.run.on_long == "drop"
    kept = []
    for sample in inputs.samples:
        try:
            pupil.check(inputs.objective, sample)
        except InvalidRequest as error:
            if TOO_LONG not in error.message:
                raise
            if not drop:
                hint = "shorten it, or leave such rows out with --set on_long=drop"
                raise InvalidRequest(f"{error.message}; {hint}", param="max_length") from error
        else:
            kept.append(sample)
    if len(kept) < len(inputs.samples):
        console.line(f"{len(inputs.samples) - len(kept)} samples left out as too long")
    if not kept:
        raise InvalidRequest("every sample is too long for the model", param="data")
    return kept


def fixed_source(
    inputs: RunInputs, pupil: PolicyPupil, samples: Sequence[Any], folder: RunFolder
) -> FixedSource:
    """Passes over samples; where there are several, reference log-probs are computed once."""
    order = order_of(inputs, len(samples))
    if order.epochs > 1 and inputs.objective in ("kto", "dpo"):
        samples = with_reference(
            samples,
            pupil.trainer.model,
            folder.reference,
            run=identity_of(inputs.identity),
            token_budget=pupil.settings.tokens_at_once,
        )
    return FixedSource(inputs.objective, samples, order)


def sampled_source(
    inputs: RunInputs, pupil: PolicyPupil, order: RowOrder, folder: RunFolder, console: Console
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
    attempts = CompletionSampler(
        pupil.trainer.model,
        sampler,
        samples_per_prompt=run.samples_per_prompt,
        seed=order.seed,
    )
    if inputs.verdicts is not None:
        return JudgedSource(
            inputs.samples,
            order,
            attempts=attempts,
            verdicts=inputs.verdicts,
            samples_per_prompt=run.samples_per_prompt,
            temperature=run.temperature,
        )
    assert inputs.rewards is not None
    if inputs.algorithm == "rest":
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
            attempts=attempts,
            rewards=inputs.rewards,
            folder=folder.grown,
            samples_per_prompt=run.samples_per_prompt,
        )
    return OnPolicySource(
        inputs.objective,
        inputs.samples,
        order,
        attempts=attempts,
        rewards=inputs.rewards,
        samples_per_prompt=run.samples_per_prompt,
        temperature=run.temperature,
    )
