"""How the trainers learn: plain values, checked. Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from tuneloop.errors import SettingsError
from tuneloop.learner.samples import POLICY_OBJECTIVES
from tuneloop.learner.samples.learned_tokens import LearnThoughts
from tuneloop.policies import WeightsKind

BEFORE = "before"
"""Key of a field's metadata: the value that does what was done before the field, or its present
default, came to be. An offline run that was started then and is resumed gets this value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """AdamW: a linear warm-up, then a constant or a falling rate."""

    learning_rate: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    warmup_steps: int = 0
    """Optimizer steps over which the rate grows to its value."""
    resume_warmup_steps: int = 0
    """The same again after each resume from a checkpoint, where the feedback may have changed; 0
    continues exactly as if it had not been interrupted."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    max_steps: int | None = None
    """Optimizer steps after which a falling rate is 0; needed by linear and cosine."""
    spike_factor: float | None = 10.0
    """A gradient this many times the median norm of recent steps skips the step; None never."""

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "learning_rate", "greater than 0")
        require(self.weight_decay >= 0, "weight_decay", "0 or more")
        require(all(0 <= b < 1 for b in self.betas), "betas", "two numbers in [0, 1)")
        require(self.max_grad_norm > 0, "max_grad_norm", "greater than 0")
        for name in ("warmup_steps", "resume_warmup_steps"):
            require(getattr(self, name) >= 0, name, "0 or more")
        kinds = ("constant", "linear", "cosine")
        require(self.lr_scheduler_type in kinds, "lr_scheduler_type", f"one of {', '.join(kinds)}")
        falls = self.lr_scheduler_type != "constant"
        enough = self.max_steps is not None and self.max_steps >= 1
        require(enough or self.max_steps is None, "max_steps", "1 or more")
        require(enough or not falls, "max_steps", "given for a rate that falls")
        spike = self.spike_factor
        require(spike is None or spike > 1, "spike_factor", "greater than 1, or absent")


CHOICES: Mapping[str, tuple[str, ...]] = {
    "kto_z": ("zero", "mismatched"),
    "dpo_loss_type": ("sigmoid", "sigmoid_norm", "ipo", "robust"),
    "sdft_teacher": ("base", "live"),
    "grpo_kl": ("k3", "k2"),
    "importance_sampling": ("token_truncate", "sequence_mask"),
    "advantage_estimator": ("grpo", "rloo"),
    "scale_rewards": ("group", "none"),
    "packed_attention": ("flex", "varlen"),
    "learn_thoughts": ("policy_gradient", "always", "never"),
}


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
    resume_warmup_steps: int = 0
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    max_steps: int | None = None
    spike_factor: float | None = 10.0
    kl_budget: float | None = None
    """KL to the reference policy, nats per token, at which the rate is half and a loss pulls back,
    less than thumbs push (see `trainer.adaptive`); None neither slows nor pulls."""
    lora_rank: int = 16
    lora_alpha: int = 32
    objective_weights: Mapping[str, float] = field(
        default_factory=lambda: dict.fromkeys(POLICY_OBJECTIVES, 1.0)
    )
    """Rate of each objective as a share of `learning_rate`, and what it weighs beside others; 1
    where not named."""
    scored_rate: float = 1.0
    """Share of `learning_rate` at which steps on scored completions are taken."""
    full_step: float | None = None
    """Judgements that make a full step: fewer, or less trusted, ones move the policy in proportion
    (see `trainer.optimizer`). None takes a full step whatever a batch weighs."""
    anchor_weight: float = 0.0
    """Weight of the loss that holds the policy to the base model on prompts that nobody judged."""
    anchor_batch: int = 8
    """Anchor prompts beside a full step."""
    anchor_prompts: str | None = None
    """File of a prompt for each line (JSON with `prompt`, as elsewhere); None is our own."""
    algorithms: Mapping[str, str] = field(default_factory=dict)
    """What learns from an objective's samples; the algorithm of the same name where not named."""
    learn_thoughts: LearnThoughts = field(default="policy_gradient", metadata={BEFORE: "always"})
    """Which samples teach the thoughts of a reasoning model: scored completions alone, all, or
    none. A thought that is not learned is read all the same."""
    beta_kto: float = 0.1
    kto_z: Literal["zero", "mismatched"] = "zero"
    """`mismatched` is the paper's estimate, at the price of two more forward passes."""
    desirable_weight: float = 1.0
    """Factor of thumbs up, after thumbs up and down were given half of the weight each."""
    undesirable_weight: float = 1.0
    beta_dpo: float = 0.1
    dpo_loss_type: Literal["sigmoid", "sigmoid_norm", "ipo", "robust"] = "robust"
    """`robust` is `sigmoid` for pairs whose flip rate is 0."""
    flip_rate: float | None = None
    """Probability that a preference is the wrong way round; None takes each pair's own."""
    sdft_teacher: Literal["base", "live"] = "base"
    """Who reads a comment: the reference policy, or with `live` the policy as it is, held fixed."""
    sdft_clip: float = 2.0
    """Most nats that the divergence of one token counts."""
    clip: float = 0.2
    """PPO's ε."""
    value_clip: float = 0.2
    dual_clip: float = 3.0
    kl_coef: float = 0.05
    kl_target: float | None = None
    """KL to the reference policy that `kl_coef` is adapted to, nats per completion; None keeps it.
    """
    kl_horizon: int = 10_000
    """Completions over which an adaptive `kl_coef` changes by a fifth at most."""
    gamma: float = 1.0
    lam: float = 1.0
    value_coef: float = 0.1
    value_learning_rate: float | None = None
    """Of the value head; None is 0.64 over the policy's hidden size: a step then moves a value by
    about as much in a narrow model as in a wide one."""
    critic_warmup_steps: int = 0
    """First batches of PPO that only fit the value head."""
    whiten_rewards: bool = False
    """Give a batch's token rewards unit variance, keeping their mean."""
    normalize_rewards: bool = False
    """Rewards in standard deviations from their running mean: for scorers that drift."""
    reward_decay: float = 0.99
    """Weight of a reward in the running mean once another has come; also of the baseline of
    completions that have no siblings."""
    importance_cap: float = 2.0
    importance_sampling: Literal["token_truncate", "sequence_mask"] = "token_truncate"
    """What corrects for the sampler: its ratio by token, at most `importance_cap`; or that of the
    whole sequence, which is left out above it."""
    off_policy_mask_threshold: float | None = None
    """Sequences that the policy finds less likely than their sampler did, by more than this in nats
    per token, are left out where their advantage is negative; None leaves none out."""
    sequence_gate: float = 2.0
    """Sequences whose geometric mean ratio to the sampler is beyond this are left out."""
    reward_clip: float = 10.0
    missing_stop_penalty: float = 1.0
    """Subtracted from the reward of a completion that ran into its length limit."""
    ppo_epochs: int = 1
    """Optimizer steps taken on each batch of scored completions."""
    beta_grpo: float = 0.04
    """Weight of the KL to the reference policy; 0 saves the reference pass."""
    restrain_solved_groups: bool = False
    """Whether the KL acts on groups of equal rewards too, which are else not computed."""
    grpo_kl: Literal["k3", "k2"] = "k3"
    """Estimator in the loss: k3 times the live ratio, or k2. RLOO always has k1 in the reward."""
    advantage_estimator: Literal["grpo", "rloo"] = "grpo"
    """`rloo` leaves one out for the baseline and takes the ratio of whole sequences."""
    scale_rewards: Literal["group", "none"] = "group"
    """Whether GRPO divides by the group's standard deviation; none is Dr. GRPO."""
    epsilon: float = 0.2
    """GRPO's clip below 1."""
    epsilon_high: float = 0.28
    """GRPO's clip above 1."""
    grpo_epochs: int = 1
    """Optimizer steps taken on each batch of groups."""
    token_budget: int | None = None
    """Most tokens in one forward pass, shared prompts and turns counted once (without packing:
    padded tokens); bounds memory, never changes the result.

    None is 1024 on a CPU, where more only costs memory. On a GPU it is what fits into the memory
    that is free when the model is loaded, less 2 GiB, and 16384 at most.
    """
    packing: bool = True
    """Sequences in one row without padding, shared prompts and turns computed once; where a model
    cannot be given such rows it is padded all the same. Never changes the result."""
    packed_attention: Literal["flex", "varlen"] = "flex"
    """What attends within packed rows on a GPU: flex attention, or flash attention over rows of
    different lengths (torch.nn.attention.varlen), which needs no compiler; flex where that cannot
    do what a model asks for."""
    gradient_checkpointing: bool | None = field(default=None, metadata={BEFORE: False})
    """Keep the states between layers only and compute the rest again: less memory, a third more
    time. None is false on a CPU; on a GPU it is true for as many layers as the memory that the
    largest passes leave free has no room for."""
    compile: bool | None = field(default=None, metadata={BEFORE: False})
    """Compile the layers with torch.compile; on a GPU only, where None is true."""
    max_length: int | None = None
    """Most tokens in prompt and completion; None is what the model takes."""
    seed: int = 0
    threads: int | None = None
    """Torch threads; None leaves them as they are."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        self.optimizer  # noqa: B018 - checks the optimizer's settings
        for name in ("beta_kto", "beta_dpo", "sdft_clip", "importance_cap"):
            require(getattr(self, name) > 0, name, "greater than 0")
        for name in ("value_clip", "reward_clip", "epsilon_high"):
            require(getattr(self, name) > 0, name, "greater than 0")
        for name in ("kl_coef", "value_coef", "missing_stop_penalty", "beta_grpo", "anchor_weight"):
            require(getattr(self, name) >= 0, name, "0 or more")
        for name in ("desirable_weight", "undesirable_weight", "critic_warmup_steps"):
            require(getattr(self, name) >= 0, name, "0 or more")
        for name in (
            *("kl_budget", "kl_target", "value_learning_rate", "off_policy_mask_threshold"),
            "full_step",
        ):
            limit = getattr(self, name)
            require(limit is None or limit > 0, name, "greater than 0, or absent")
        require(self.scored_rate > 0, "scored_rate", "greater than 0")
        for name in ("gamma", "lam"):
            require(0 <= getattr(self, name) <= 1, name, "between 0 and 1")
        for name in (
            *("lora_rank", "lora_alpha", "ppo_epochs", "grpo_epochs", "kl_horizon"),
            "anchor_batch",
        ):
            require(getattr(self, name) >= 1, name, "1 or more")
        require(self.token_budget is None or self.token_budget >= 1, "token_budget", "1 or more")
        on_gpu = self.device.startswith("cuda")
        require(on_gpu or not self.compile, "compile", "false unless device is cuda")
        plain = self.packed_attention == "flex"
        require(on_gpu or plain, "packed_attention", "flex unless device is cuda")
        for name in ("clip", "epsilon", "reward_decay"):
            require(0 < getattr(self, name) < 1, name, "between 0 and 1, both excluded")
        rate = self.flip_rate
        require(rate is None or 0 <= rate < 0.5, "flip_rate", "from 0 to below 0.5, or absent")
        require(self.dual_clip > 1, "dual_clip", "greater than 1")
        require(self.sequence_gate > 1, "sequence_gate", "greater than 1")
        for name, choices in CHOICES.items():
            require(getattr(self, name) in choices, name, f"one of {', '.join(choices)}")
        require(self.max_length is None or self.max_length >= 2, "max_length", "2 or more")
        require(self.threads is None or self.threads >= 1, "threads", "1 or more")
        objectives = ", ".join(POLICY_OBJECTIVES)
        known = set(self.objective_weights) <= set(POLICY_OBJECTIVES)
        usable = all(weight >= 0 for weight in self.objective_weights.values())
        require(known and usable, "objective_weights", f"{objectives}: each 0 or more")

    @property
    def tokens_at_once(self) -> int:
        """The token budget that holds on the device."""
        return self.token_budget or (1024 if self.device == "cpu" else 16384)

    @property
    def optimizer(self) -> OptimizerSettings:
        """The optimizer's part, with the rate that suits the kind of weights."""
        rate = self.learning_rate
        if rate is None:
            rate = 2e-4 if self.kind is WeightsKind.LORA else 1e-5
        shared = {f.name: getattr(self, f.name) for f in fields(OptimizerSettings)}
        return OptimizerSettings(**{**shared, "learning_rate": rate})


HELD: Mapping[str, Any] = {"anchor_weight": 0.1}
"""What a policy is trained with offline where nothing else is set."""
ONLINE: Mapping[str, Any] = {"anchor_weight": 0.05, "scored_rate": 0.6, "betas": (0.5, 0.999)}
"""The same for the learner of a service: its KL budget holds the policy too, only judgements were
tried at its higher rate, and momentum of ten steps acts when what it remembers is no longer true.
"""
RATES: Mapping[WeightsKind, float] = {WeightsKind.LORA: 4e-4}
"""The learner's rates: evidence and the KL budget leave room for more than offline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardTrainerSettings:
    """How the reward model learns."""

    kind: WeightsKind = WeightsKind.FULL
    """`lora` for large language models; what is saved is whole either way."""
    lora_rank: int = 16
    lora_alpha: int = 32
    learning_rate: float = 1e-4
    head_learning_rate: float = 1e-3
    """The head starts at zero and is small: at the backbone's rate it would take hundreds of steps.
    """
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = field(default=4.0, metadata={BEFORE: 1.0})
    """Leaves room for the factor, up to 4, that a rare class of thumbs has: in batches of one a
    lower clip would cut it off again."""
    warmup_steps: int = 0
    resume_warmup_steps: int = 0
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    max_steps: int | None = None
    full_step: float | None = None
    """As in `TrainerSettings`, but every batch is a step of its own: nobody waits to see one."""
    spike_factor: float | None = 10.0
    ranking_loss: Literal["pairs", "plackett_luce"] = "pairs"
    rating_loss: Literal["huber", "mse"] = "huber"
    silence_weight: float = field(default=0.1, metadata={BEFORE: 0.0})
    """Weight of the loss of pairs that say that any answer is better than an empty one."""
    token_budget: int = 2048
    """Most tokens in one forward pass, padding included; bounds memory, never changes the result.
    """
    packing: bool = True
    """As in `TrainerSettings`; for language models only."""
    gradient_checkpointing: bool | None = field(default=None, metadata={BEFORE: False})
    """As in `TrainerSettings`."""
    max_length: int = 512
    """Most tokens in prompt and completion; longer samples are refused, never cut."""
    seed: int = 0
    threads: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        self.optimizer  # noqa: B018 - checks the optimizer's settings
        require(self.head_learning_rate > 0, "head_learning_rate", "greater than 0")
        require(self.silence_weight >= 0, "silence_weight", "0 or more")
        rankings, ratings = ("pairs", "plackett_luce"), ("huber", "mse")
        require(self.ranking_loss in rankings, "ranking_loss", " or ".join(rankings))
        require(self.rating_loss in ratings, "rating_loss", " or ".join(ratings))
        for name in ("lora_rank", "lora_alpha", "token_budget"):
            require(getattr(self, name) >= 1, name, "1 or more")
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
