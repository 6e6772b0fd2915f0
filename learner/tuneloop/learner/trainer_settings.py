"""How the trainers learn: plain values, checked. Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from tuneloop.errors import SettingsError
from tuneloop.policies import WeightsKind

OBJECTIVES = ("kto", "dpo", "ppo")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """AdamW at a constant rate after a linear warm-up."""

    learning_rate: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    warmup_steps: int = 0
    """Optimizer steps over which the rate grows to its value."""

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "learning_rate", "greater than 0")
        require(self.weight_decay >= 0, "weight_decay", "0 or more")
        require(all(0 <= b < 1 for b in self.betas), "betas", "two numbers in [0, 1)")
        require(self.max_grad_norm > 0, "max_grad_norm", "greater than 0")
        require(self.warmup_steps >= 0, "warmup_steps", "0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSettings:
    """How the policy learns. Sources of the defaults are in the docstrings of the losses."""

    kind: WeightsKind = WeightsKind.LORA
    learning_rate: float | None = None
    """None is 2e-4 for LoRA, 1e-5 for full weights."""
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0
    warmup_steps: int = 0
    lora_rank: int = 16
    lora_alpha: int = 32
    objective_weights: Mapping[str, float] = field(
        default_factory=lambda: dict.fromkeys(OBJECTIVES, 1.0)
    )
    """Factor of each objective, after it was divided by its own count; 1 where not named."""
    beta_kto: float = 0.1
    kto_z: Literal["zero", "mismatched"] = "zero"
    """`mismatched` is the paper's estimate, at the price of two more forward passes."""
    beta_dpo: float = 0.1
    clip: float = 0.2
    value_clip: float = 0.2
    dual_clip: float = 3.0
    kl_coef: float = 0.05
    gamma: float = 1.0
    lam: float = 1.0
    value_coef: float = 0.1
    value_learning_rate: float = 1e-3
    importance_cap: float = 2.0
    sequence_gate: float = 2.0
    """Sequences whose geometric mean ratio to the sampler is beyond this are left out."""
    reward_clip: float = 10.0
    missing_stop_penalty: float = 1.0
    """Subtracted from the reward of a completion that ran into its length limit."""
    ppo_epochs: int = 1
    """Optimizer steps taken on each batch of scored completions."""
    token_budget: int | None = None
    """Most padded tokens in one forward pass; bounds memory, never changes the result.

    None is 512 on a CPU, where more only costs memory, and 8192 on a GPU.
    """
    max_length: int | None = None
    """Most tokens in prompt and completion; None is what the model takes."""
    seed: int = 0
    threads: int | None = None
    """Torch threads; None leaves them as they are."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        self.optimizer  # noqa: B018 - checks the optimizer's settings
        for name in ("beta_kto", "beta_dpo", "value_learning_rate", "importance_cap"):
            require(getattr(self, name) > 0, name, "greater than 0")
        for name in ("value_clip", "reward_clip"):
            require(getattr(self, name) > 0, name, "greater than 0")
        for name in ("kl_coef", "value_coef", "missing_stop_penalty"):
            require(getattr(self, name) >= 0, name, "0 or more")
        for name in ("gamma", "lam"):
            require(0 <= getattr(self, name) <= 1, name, "between 0 and 1")
        for name in ("lora_rank", "lora_alpha", "ppo_epochs"):
            require(getattr(self, name) >= 1, name, "1 or more")
        require(self.token_budget is None or self.token_budget >= 1, "token_budget", "1 or more")
        require(0 < self.clip < 1, "clip", "between 0 and 1, both excluded")
        require(self.dual_clip > 1, "dual_clip", "greater than 1")
        require(self.sequence_gate > 1, "sequence_gate", "greater than 1")
        require(self.kto_z in ("zero", "mismatched"), "kto_z", "zero or mismatched")
        require(self.max_length is None or self.max_length >= 2, "max_length", "2 or more")
        require(self.threads is None or self.threads >= 1, "threads", "1 or more")
        known = set(self.objective_weights) <= set(OBJECTIVES)
        usable = all(weight >= 0 for weight in self.objective_weights.values())
        require(known and usable, "objective_weights", "kto, dpo or ppo, each 0 or more")

    @property
    def tokens_at_once(self) -> int:
        """The token budget that holds on the device."""
        return self.token_budget or (512 if self.device == "cpu" else 8192)

    @property
    def optimizer(self) -> OptimizerSettings:
        """The optimizer's part, with the rate that suits the kind of weights."""
        rate = self.learning_rate
        if rate is None:
            rate = 2e-4 if self.kind is WeightsKind.LORA else 1e-5
        return OptimizerSettings(
            learning_rate=rate,
            weight_decay=self.weight_decay,
            betas=self.betas,
            max_grad_norm=self.max_grad_norm,
            warmup_steps=self.warmup_steps,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardTrainerSettings:
    """How the reward model learns."""

    learning_rate: float = 1e-4
    head_learning_rate: float = 1e-3
    """The head starts at zero and is small: at the backbone's rate it would take hundreds of steps.
    """
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0
    warmup_steps: int = 0
    token_budget: int = 2048
    """Most padded tokens in one forward pass."""
    max_length: int = 512
    """Most tokens in prompt and completion; longer samples are refused, never cut."""
    seed: int = 0
    threads: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        self.optimizer  # noqa: B018 - checks the optimizer's settings
        require(self.head_learning_rate > 0, "head_learning_rate", "greater than 0")
        require(self.token_budget >= 1, "token_budget", "1 or more")
        require(self.max_length >= 2, "max_length", "2 or more")
        require(self.threads is None or self.threads >= 1, "threads", "1 or more")

    @property
    def optimizer(self) -> OptimizerSettings:
        """The optimizer's part."""
        shared = {f.name: getattr(self, f.name) for f in fields(OptimizerSettings)}
        return OptimizerSettings(**shared)


def require(accepted: bool, name: str, what: str) -> None:
    """Raise `SettingsError` naming the setting and what it accepts."""
    if not accepted:
        raise SettingsError(f"{name} must be {what}", param=name)
