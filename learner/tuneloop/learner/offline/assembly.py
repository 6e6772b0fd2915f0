"""A run, put together from its material: the trainer, its course, its folder."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tuneloop.errors import SettingsError
from tuneloop.learner.offline.course import Course
from tuneloop.learner.offline.fixed import FixedCourse
from tuneloop.learner.offline.material import Material
from tuneloop.learner.offline.order import Order
from tuneloop.learner.offline.prompted import Attempts, PromptedCourse
from tuneloop.learner.offline.pupil import PolicyPupil, Pupil, RewardPupil
from tuneloop.learner.offline.reference import with_reference
from tuneloop.learner.offline.rest import RestCourse, RestPlan
from tuneloop.learner.offline.run import Pace, Run
from tuneloop.learner.offline.run_folder import RunFolder
from tuneloop.learner.offline.sampler import Sampler
from tuneloop.learner.offline.saves import identity_of
from tuneloop.learner.offline.screen import Screen
from tuneloop.learner.trainer_settings import TrainerSettings


def assemble(material: Material, folder: RunFolder) -> Run:
    """Load the model and make the run; raises `InvalidRequest` for a sample it cannot take."""
    seed = material.settings.trainer.seed
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    run = material.settings.run
    screen = Screen(every=run.logging_steps)
    note = f", {material.dropped} rows left out as too long" if material.dropped else ""
    screen.line(f"{len(material.samples)} samples{note}; loading {material.model_name}")
    order = Order(
        count=len(material.samples),
        batch_size=max(1, run.batch_size // run.samples_per_prompt),
        epochs=run.epochs,
        seed=f"seed {seed}",
    )
    pupil: Pupil
    course: Course
    if material.algorithm == "reward-model":
        pupil = RewardPupil(material.model, falling(material, order))
        course = FixedCourse(material.objective, checked(material, pupil), order)
    elif material.rewards is None:
        policy = PolicyPupil(material.model, material.model_name, falling(material, order))
        pupil, course = policy, fixed_course(material, policy, order, folder)
    else:
        policy = PolicyPupil(material.model, material.model_name, falling(material, order))
        pupil, course = policy, sampled_course(material, policy, order, folder)
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


def checked(material: Material, pupil: Pupil) -> Sequence[Any]:
    """The samples, each of which the trainer can learn from."""
    for sample in material.samples:
        pupil.check(material.objective, sample)
    return material.samples


def fixed_course(
    material: Material, pupil: PolicyPupil, order: Order, folder: RunFolder
) -> FixedCourse:
    """Passes over samples; where there are several, reference log-probs are computed once."""
    samples = checked(material, pupil)
    trainer = pupil.settings
    if order.epochs > 1 and material.objective in ("kto", "dpo"):
        samples = with_reference(
            samples,
            pupil.trainer.model,
            folder.reference,
            run=identity_of(material.identity),
            token_budget=trainer.tokens_at_once,
        )
    return FixedCourse(material.objective, samples, order)


def sampled_course(
    material: Material, pupil: PolicyPupil, order: Order, folder: RunFolder
) -> Course:
    """Completions of the policy itself, scored."""
    assert material.tokens is not None
    assert material.rewards is not None
    run = material.settings.run
    sampler = Sampler(
        material.tokens.tokenization,
        temperature=run.temperature,
        max_tokens=run.max_completion_length,
        batch_size=run.sampling_batch_size,
    )
    attempts = Attempts(
        pupil.trainer.model,
        sampler,
        samples_per_prompt=run.samples_per_prompt,
        seed=order.seed,
    )
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
