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
from tuneloop.learner.offline.run.console import Screen
from tuneloop.learner.offline.run.folder import RunFolder
from tuneloop.learner.offline.run.run import Pace, Run
from tuneloop.learner.offline.sources.base import Course, FixedCourse, Order
from tuneloop.learner.offline.sources.judged import JudgedCourse
from tuneloop.learner.offline.sources.on_policy import Attempts, PromptedCourse
from tuneloop.learner.offline.sources.ref_logprobs import with_reference
from tuneloop.learner.offline.sources.rest import RestCourse, RestPlan
from tuneloop.learner.offline.train import Material
from tuneloop.learner.trainer.settings import TrainerSettings

TOO_LONG = "tokens that fit"
"""What trainers say of a sample that is too long for them."""


def assemble(material: Material, folder: RunFolder, world: World = ALONE) -> Run:
    """Load the model and make the run; raises `InvalidRequest` for a sample it cannot take."""
    seed = material.settings.trainer.seed
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    run = material.settings.run
    screen = Screen(every=run.logging_steps)
    note = f", {material.dropped} rows left out as too long" if material.dropped else ""
    screen.line(f"{len(material.samples)} samples{note}; loading {material.model_name}")
    pupil, course = pupil_and_course(material, folder, screen, world)
    return Run(
        title=f"{material.algorithm} {material.model_name}",
        folder=folder,
        identity=material.identity,
        pupil=pupil,
        course=course,
        pace=Pace(
            max_steps=run.max_steps,
            save_steps=run.save_steps,
            save_total_limit=run.save_total_limit,
        ),
        screen=screen,
    )


def pupil_and_course(
    material: Material, folder: RunFolder, screen: Screen, world: World
) -> tuple[Pupil, Course]:
    """The trainer, and what it learns from at each step."""
    if material.algorithm == "reward-model":
        order = order_of(material, len(material.samples))
        pupil = RewardPupil(material.model, falling(material, order))
        samples = checked(material, pupil, screen)
        course = FixedCourse(material.objective, samples, order_of(material, len(samples)))
        return pupil, course
    order = order_of(material, len(material.samples))
    policy = PolicyPupil(material.model, material.model_name, falling(material, order), world)
    if material.rewards is None and material.verdicts is None:
        samples = checked(material, policy, screen)
        return policy, fixed_course(material, policy, samples, folder)
    return policy, sampled_course(material, policy, order, folder, screen)


def order_of(material: Material, count: int) -> Order:
    """The order over rows: samples, or prompts."""
    run = material.settings.run
    return Order(
        count=count,
        batch_size=max(1, run.batch_size // run.samples_per_prompt),
        epochs=run.epochs,
        seed=f"seed {material.settings.trainer.seed}",
    )


def falling(material: Material, order: Order) -> Any:
    """The trainer's settings; a rate that falls is told when it has to be at 0."""
    trainer = material.settings.trainer
    if trainer.lr_scheduler_type == "constant":
        return trainer
    if material.algorithm == "rest":
        raise SettingsError(
            "lr_scheduler_type must be constant with rest: how many steps it takes depends on the "
            "rewards",
            param="lr_scheduler_type",
        )
    steps = min(order.steps, material.settings.run.max_steps or order.steps)
    if isinstance(trainer, TrainerSettings):
        repeats = {"ppo": trainer.ppo_epochs, "grpo": trainer.grpo_epochs}
        steps *= repeats.get(material.objective, 1)
    return replace(trainer, max_steps=steps)


def checked(material: Material, pupil: Pupil, screen: Screen) -> Sequence[Any]:
    """The samples the trainer can learn from; those too long for it are an error or left out."""
    drop = material.settings.run.on_long == "drop"
    kept = []
    for sample in material.samples:
        try:
            pupil.check(material.objective, sample)
        except InvalidRequest as error:
            if TOO_LONG not in error.message:
                raise
            if not drop:
                hint = "shorten it, or leave such rows out with --set on_long=drop"
                raise InvalidRequest(f"{error.message}; {hint}", param="max_length") from error
        else:
            kept.append(sample)
    if len(kept) < len(material.samples):
        screen.line(f"{len(material.samples) - len(kept)} samples left out as too long")
    if not kept:
        raise InvalidRequest("every sample is too long for the model", param="data")
    return kept


def fixed_course(
    material: Material, pupil: PolicyPupil, samples: Sequence[Any], folder: RunFolder
) -> FixedCourse:
    """Passes over samples; where there are several, reference log-probs are computed once."""
    order = order_of(material, len(samples))
    if order.epochs > 1 and material.objective in ("kto", "dpo"):
        samples = with_reference(
            samples,
            pupil.trainer.model,
            folder.reference,
            run=identity_of(material.identity),
            token_budget=pupil.settings.tokens_at_once,
        )
    return FixedCourse(material.objective, samples, order)


def sampled_course(
    material: Material, pupil: PolicyPupil, order: Order, folder: RunFolder, screen: Screen
) -> Course:
    """Completions of the policy itself, scored."""
    assert material.tokens is not None
    run = material.settings.run
    sampler = Sampler(
        material.tokens.tokenization,
        temperature=run.temperature,
        max_tokens=run.max_completion_length,
        batch_size=run.sampling_batch_size,
        report=screen.sampled,
    )
    attempts = Attempts(
        pupil.trainer.model,
        sampler,
        samples_per_prompt=run.samples_per_prompt,
        seed=order.seed,
    )
    if material.verdicts is not None:
        return JudgedCourse(
            material.samples,
            order,
            attempts=attempts,
            verdicts=material.verdicts,
            samples_per_prompt=run.samples_per_prompt,
            temperature=run.temperature,
        )
    assert material.rewards is not None
    if material.algorithm == "rest":
        plan = RestPlan(
            grow_steps=run.grow_steps,
            improve_steps=run.improve_steps,
            threshold_start=run.threshold_start,
            threshold_end=run.threshold_end,
            epochs=run.epochs,
            batch_size=run.batch_size,
            seed=order.seed,
        )
        return RestCourse(
            material.samples,
            plan,
            attempts=attempts,
            rewards=material.rewards,
            folder=folder.grown,
            samples_per_prompt=run.samples_per_prompt,
        )
    return PromptedCourse(
        material.objective,
        material.samples,
        order,
        attempts=attempts,
        rewards=material.rewards,
        samples_per_prompt=run.samples_per_prompt,
        temperature=run.temperature,
    )
