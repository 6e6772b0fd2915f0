"""The algorithms by name, and everything that sets one apart from the others.

To add one: write a module whose function plans a batch (see `objectives.base`), and enter it in
`algorithms`. The command line, the settings, the loop and offline runs follow from the entry.
Nothing here imports torch; a plan is imported when it is first used.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from tuneloop.errors import SettingsError
from tuneloop.learner.samples import SCORED_OBJECTIVES, Objective
from tuneloop.learner.trainer.settings import TrainerSettings

if TYPE_CHECKING:
    from tuneloop.learner.models.policy import PolicyModel
    from tuneloop.learner.objectives.base import Plan
    from tuneloop.learner.trainer.adaptive import StepControls

    MakePlan = Callable[[PolicyModel, Sequence[Any], TrainerSettings, StepControls], Plan]

OBJECTIVES = "tuneloop.learner.objectives"


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """One way to learn."""

    objective: Objective
    """The samples it learns from; their type, how rows of a file and feedback become them, and how
    they are batched follow from it."""
    plan: str = ""
    """`module:function` that turns a batch into losses; empty for the reward model's, whose
    trainer knows the losses of its kinds of samples."""
    epochs: Callable[[TrainerSettings], int] = lambda settings: 1
    """Optimizer steps on one batch."""
    needs_reference: Callable[[TrainerSettings], bool] = lambda settings: False
    """Whether its losses compare the policy with the reference policy."""
    source: Literal["data", "policy", "grown"] = "data"
    """What an offline run learns from: the rows of its data; completions of their prompts that the
    policy samples at every step and a reward scores; or data sets grown from such completions."""
    takes_judge: bool = False
    """Whether a judge's preferences can replace those in the data. One that samples completions
    takes a judge's ratings as rewards."""
    samples_per_prompt: int = 1
    """Completions sampled for each prompt, where it samples any and nothing else is set."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the trainer that belong to it in an offline run, by name."""
    trl_names: Mapping[str, str] = field(default_factory=dict)
    """What TRL calls a setting that has another name here."""
    online: bool = True
    """Whether the learner's loop can use it."""
    offline: bool = True
    """Whether `tuneloop train` can."""

    @property
    def trains_policy(self) -> bool:
        """Whether it trains the policy, not the reward model."""
        return self.objective is not Objective.REWARD_MODEL

    @property
    def samples_completions(self) -> bool:
        """Whether an offline run samples completions of the policy, and needs a reward."""
        return self.source != "data"

    def load_plan(self) -> "MakePlan":
        """Import the function that plans a batch."""
        module, _, name = self.plan.partition(":")
        make_plan: MakePlan = getattr(import_module(module), name)
        return make_plan


algorithms: dict[str, Algorithm] = {
    "sft": Algorithm(objective=Objective.SFT, plan=f"{OBJECTIVES}.sft:plan_sft"),
    "reward-model": Algorithm(objective=Objective.REWARD_MODEL, takes_judge=True),
    "dpo": Algorithm(
        objective=Objective.DPO,
        plan=f"{OBJECTIVES}.dpo:plan_dpo",
        needs_reference=lambda settings: True,
        takes_judge=True,
        samples_per_prompt=2,
        trl_names={
            "beta": "beta_dpo",
            "loss_type": "dpo_loss_type",
            "label_smoothing": "flip_rate",
        },
    ),
    "kto": Algorithm(
        objective=Objective.KTO,
        plan=f"{OBJECTIVES}.kto:plan_kto",
        needs_reference=lambda settings: True,
        trl_names={"beta": "beta_kto"},
    ),
    # KTO without z: what kto is by default, under the name that TRL has for it.
    "apo-zero-unpaired": Algorithm(
        objective=Objective.KTO,
        plan=f"{OBJECTIVES}.kto:plan_kto",
        needs_reference=lambda settings: True,
        settings={"kto_z": "zero"},
        trl_names={"beta": "beta_kto"},
    ),
    "sdft": Algorithm(
        objective=Objective.SDFT,
        plan=f"{OBJECTIVES}.sdft:plan_sdft",
        trl_names={"teacher_model_kind": "sdft_teacher"},
    ),
    "ppo": Algorithm(
        objective=Objective.PPO,
        plan=f"{OBJECTIVES}.ppo:plan_ppo",
        epochs=lambda settings: settings.ppo_epochs,
        needs_reference=lambda settings: True,
        source="policy",
        # A run of some hundred completions: a horizon of 10,000 would never adapt.
        settings={
            "normalize_rewards": True,
            "kl_coef": 0.1,
            "kl_target": 2.0,
            "kl_horizon": 128,
        },
        trl_names={
            "cliprange": "clip",
            "cliprange_value": "value_clip",
            "missing_eos_penalty": "missing_stop_penalty",
            "num_ppo_epochs": "ppo_epochs",
            "vf_coef": "value_coef",
        },
    ),
    "grpo": Algorithm(
        objective=Objective.GRPO,
        plan=f"{OBJECTIVES}.grpo:plan_grpo",
        epochs=lambda settings: settings.grpo_epochs,
        needs_reference=lambda settings: settings.beta_grpo > 0,
        source="policy",
        samples_per_prompt=8,
        settings={"advantage_estimator": "grpo"},
        trl_names={
            "beta": "beta_grpo",
            "delta": "dual_clip",
            "num_iterations": "grpo_epochs",
        },
    ),
    # Offline it is grpo with advantage_estimator=rloo.
    "rloo": Algorithm(
        objective=Objective.GRPO,
        plan=f"{OBJECTIVES}.grpo:plan_grpo",
        epochs=lambda settings: settings.grpo_epochs,
        needs_reference=lambda settings: settings.beta_grpo > 0,
        settings={"advantage_estimator": "rloo"},
        offline=False,
    ),
    "rest": Algorithm(
        objective=Objective.SFT,
        plan=f"{OBJECTIVES}.sft:plan_sft",
        source="grown",
        samples_per_prompt=4,
        online=False,
    ),
}


def offline_algorithms() -> list[str]:
    """Return the names `tuneloop train` accepts."""
    return [name for name, algorithm in algorithms.items() if algorithm.offline]


def policy_gradients() -> list[str]:
    """Return the names of those that learn online from scored completions."""
    return [
        name
        for name, algorithm in algorithms.items()
        if algorithm.online and algorithm.objective in SCORED_OBJECTIVES
    ]


def algorithm_of(objective: str, settings: TrainerSettings) -> Algorithm:
    """Return what learns from an objective's samples; raise `SettingsError` where nothing does."""
    name = settings.algorithms.get(objective, objective)
    algorithm = algorithms.get(name)
    if algorithm is None or algorithm.objective != objective or not algorithm.plan:
        known = [n for n, a in algorithms.items() if a.objective == objective and a.plan]
        raise SettingsError(
            f"algorithm {name!r} does not learn from samples of {objective!r}; "
            f"these do: {', '.join(known) or 'none'}",
            param="algorithms",
        )
    return algorithm
