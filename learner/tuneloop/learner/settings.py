"""Settings of the learner: TUNELOOP_LEARNER_…, checked at start."""

from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from tuneloop.bus.settings import BusSettings
from tuneloop.errors import SettingsError
from tuneloop.feedback import METRIC_NAME
from tuneloop.learner.guards.settings import GuardSettings
from tuneloop.learner.intake.settings import FeedbackSettings
from tuneloop.learner.monitoring.settings import WebhookSettings
from tuneloop.learner.old_settings import OLD_NAMES, with_old_names
from tuneloop.learner.release.canary.settings import CanarySettings
from tuneloop.learner.release.gate.settings import GateSettings
from tuneloop.learner.release.retention.settings import RetentionSettings
from tuneloop.learner.samples import (
    JUDGED_OBJECTIVES,
    POLICY_OBJECTIVES,
    SCORED_OBJECTIVES,
    Objective,
)
from tuneloop.learner.samples.learned_tokens import LearnThoughts
from tuneloop.learner.trainer.algorithms import algorithms, policy_gradients
from tuneloop.learner.trainer.settings import ONLINE, RATES, RewardTrainerSettings, TrainerSettings
from tuneloop.policies import WeightsKind
from tuneloop.ports import GRPC_PORTS, METRICS_PORTS, local_address
from tuneloop.rpc.settings import RpcServerSettings

OF_THE_TRAINER = (
    *("max_grad_norm", "warmup_steps", "resume_warmup_steps", "lora_rank", "lora_alpha"),
    *("objective_weights", "beta_kto", "beta_dpo", "kl_coef", "ppo_epochs", "token_budget"),
    *("learn_thoughts", "seed"),
)
"""Settings that the policy's trainer has under the same name."""


class LearnerSettings(BusSettings, RpcServerSettings, FeedbackSettings, WebhookSettings):
    """All settings of the learner."""

    calls_grpc = True
    old_names: ClassVar[tuple[str, ...]] = OLD_NAMES

    model_config = SettingsConfigDict(
        env_prefix="TUNELOOP_LEARNER_",
        env_nested_delimiter="__",
        extra="ignore",
        frozen=True,
        protected_namespaces=(),
    )

    port: int = Field(
        GRPC_PORTS["learner"], ge=0, le=65535, description="port for gRPC; 0 is any free one"
    )
    metrics_port: int = Field(
        METRICS_PORTS["learner"], ge=0, le=65535, description="port for /metrics; 0 is any free one"
    )
    policy: str = Field(
        "tuneloop", pattern=r"^[A-Za-z0-9_-]{1,64}$", description="letters, digits, '_' or '-'"
    )
    model: Path = Field(description="folder of the base model")
    base_model_name: str = Field("", description="name in manifests; empty is the folder's name")
    reward_model: Path | None = Field(
        None, description="folder of the reward model's backbone; absent trains no reward model"
    )
    weights_uri: str = Field(description="folder or URI of the weight store")
    signing_key_file: Path = Field(description="PEM file of the private key for manifests")
    verify_key_file: Path = Field(description="PEM file of the public key for manifests")
    data_dir: Path = Field(description="folder for the ledger and the checkpoints")
    ledger_url: SecretStr | None = Field(
        None,
        description="postgresql://user:password@host:5432/database; absent: SQLite in data_dir",
    )
    take_over: str = Field(
        "", description="id of a lost ledger whose events go to this one now; the refusal names it"
    )

    weights_kind: WeightsKind = Field(WeightsKind.LORA, description="lora or full")
    batch_size: int = Field(
        16, ge=1, description="judgements for a full step; fewer move the policy in proportion"
    )
    min_batch_size: int = Field(1, ge=1, description="fewest of them once the wait is over")
    batch_wait_seconds: float = Field(5.0, ge=0, description="longest wait for more of them")
    replay_fraction: float = Field(
        0.0, ge=0, le=0.75, description="share of a batch of judgements used before, 0 to 0.75"
    )
    policy_gradient: str = Field(
        "auto",
        description="what learns from scored rollouts: auto (ppo), off, ppo, grpo or rloo",
    )
    policy_gradient_batch_size: int = Field(8, ge=2, description="scored rollouts in a step")
    reward_metric: str = Field(
        "",
        pattern=rf"^({METRIC_NAME.pattern})?$",
        description="metric that is the reward, in the place of scores and ratings; empty: none",
    )
    reward_metric_higher_is_better: bool = Field(
        True, description="whether a higher value of that metric is better"
    )
    uninformative_scores: bool = Field(
        False, description="whether to learn also from scores that no scorer calls informative yet"
    )
    group_wait_seconds: float = Field(
        60.0, ge=0, description="longest wait of a group (grpo, rloo) for the scores of all of it"
    )
    max_staleness: int = Field(4, ge=0, description="versions a scored rollout may be behind")
    publish_every_steps: int = Field(2, ge=1, description="full steps to a version, 1 or more")
    publish_every_seconds: float = Field(
        60.0, ge=0, description="age of the newest version past which less makes the next one"
    )
    checkpoint_every_steps: int = Field(2, ge=1, description="steps to a checkpoint, 1 or more")
    keep_checkpoints: int = Field(2, ge=2, description="checkpoints kept of each model, 2 or more")
    release: Literal["off", "manual", "gate", "gate+canary"] = Field(
        "gate",
        description="how a version comes to serve: off (every one, at once), manual (only when "
        "promoted), gate (when it is no worse on prompts) or gate+canary (and on a share of users)",
    )
    gate: GateSettings = Field(GateSettings(), description="what the gate asks of a candidate")
    canary: CanarySettings = Field(
        default=CanarySettings(), description="the trial of a version with release gate+canary"
    )
    retention: RetentionSettings = Field(
        default=RetentionSettings(), description="how long rollouts and versions are kept"
    )

    learning_rate: float | None = Field(
        None, gt=0, description="above 0; absent is 4e-4 for LoRA and 1e-5 for full weights"
    )
    lora_rank: int = Field(16, ge=1, le=256, description="1 to 256")
    lora_alpha: int = Field(32, ge=1, description="1 or more")
    max_grad_norm: float = Field(1.0, gt=0, description="above 0")
    objective_weights: dict[str, float] = Field(
        {objective.value: 1.0 for objective in POLICY_OBJECTIVES} | {"dpo": 0.5},
        description='JSON of objective to its rate, such as {"kto": 1, "ppo": 0.5}; 0 is off',
    )
    algorithms: dict[str, str] = Field(
        {}, description="JSON of objective (such as kto) to its algorithm; absent: of that name"
    )
    learn_thoughts: LearnThoughts = Field(
        "policy_gradient",
        description="which samples teach the thoughts of a reasoning model: policy_gradient "
        "(scored rollouts; judgements teach the answer), always or never",
    )
    beta_kto: float = Field(0.1, gt=0, description="above 0")
    beta_dpo: float = Field(0.1, gt=0, description="above 0")
    kl_coef: float = Field(0.05, ge=0, description="0 or more")
    ppo_epochs: int = Field(1, ge=1, description="optimizer steps on a PPO batch, 1 or more")
    token_budget: int | None = Field(
        None, ge=64, description="tokens in one forward pass; absent: by the device"
    )
    warmup_steps: int = Field(
        6, ge=0, description="first steps of a new policy, over which the rate grows to its value"
    )
    resume_warmup_steps: int = Field(
        2, ge=0, description="steps over which the rate grows again after each start"
    )
    kl_budget: float = Field(
        0.5,
        ge=0,
        description="KL to the base model, in nats per token, near which the rate falls and the "
        "policy is pulled back; 0 is none",
    )
    trainer_settings: dict[str, Any] = Field(
        {},
        description="JSON of further settings of the trainer (see algorithms.md), such as "
        '{"dpo_loss_type": "ipo", "kl_target": 6}',
    )

    generation_address: str = Field(
        local_address("generation"),
        description="host:port that answers prompts: the learner's and the gate's",
    )
    reward_address: str = Field(
        local_address("reward"), description="host:port that scores answers for the gate"
    )
    prompts: Path | None = Field(
        None, description="jsonl file of prompts to sample rollouts of, while users leave room"
    )
    samples_per_prompt: int = Field(8, ge=1, le=64, description="completions of each, 1 to 64")
    prompts_in_flight: int = Field(
        16, ge=1, description="prompts whose rollouts may wait to be learned from"
    )
    prompt_concurrency: int = Field(2, ge=1, description="prompts that are answered at once")
    prompt_max_tokens: int = Field(256, ge=1, description="longest answer to a prompt, in tokens")
    prompt_temperature: float = Field(
        0.7, gt=0, le=2, description="of answers to prompts: best what users are served at"
    )
    eval_prompts: Path | None = Field(
        None, description="jsonl file of prompts that every version answers, never learned from"
    )
    reward_batch_size: int = Field(16, ge=1, description="labels in a reward-model step")
    reward_replay_fraction: float = Field(
        0.0, ge=0, le=0.75, description="share of those labels that were used before, 0 to 0.75"
    )
    reward_learning_rate: float = Field(1e-4, gt=0, description="above 0")
    guards: GuardSettings = Field(
        GuardSettings(), description="what one user may weigh, and when an alarm is raised"
    )

    threads: int = Field(0, ge=0, description="threads for training; 0 leaves the choice to torch")
    niceness: int = Field(10, ge=0, le=19, description="0 (as important as serving) to 19")
    seed: int = Field(0, ge=0, description="seed of everything random")
    device: str = Field(
        "auto", description="torch device: auto (cuda where there is one), cpu, cuda"
    )
    memory_gib: float | None = Field(None, gt=0, description="most GiB to use of each GPU")
    drain_seconds: float = Field(3.0, ge=0, description="longest wait for a step at the end")

    @property
    def torch_device(self) -> str:
        """The device to train on."""
        if self.device != "auto":
            return self.device
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def base_model(self) -> str:
        """The base model's name in manifests."""
        return self.base_model_name or self.model.name

    @property
    def scored_algorithm(self) -> str:
        """The algorithm that learns from scored rollouts, if any does."""
        return "ppo" if self.policy_gradient in ("auto", "off") else self.policy_gradient

    @property
    def scored_objective(self) -> Objective:
        """The objective of the samples that scored rollouts make."""
        return algorithms[self.scored_algorithm].objective

    @property
    def fresh_batch_size(self) -> int:
        """Judgements of a full batch that were not used before."""
        return max(1, self.batch_size - round(self.batch_size * self.replay_fraction))

    @property
    def fresh_reward_batch_size(self) -> int:
        """Labels of a full batch of the reward model's that were not used before."""
        old = round(self.reward_batch_size * self.reward_replay_fraction)
        return max(1, self.reward_batch_size - old)

    def weight_of(self, objective: str) -> float:
        """The weight of an objective; that of scored rollouts is 0 where another has them."""
        scored = objective in SCORED_OBJECTIVES
        if scored and (self.policy_gradient == "off" or objective != self.scored_objective):
            return 0.0
        unread = objective == Objective.SDFT and self.comments == "off"
        return 0.0 if unread else self.objective_weights.get(objective, 0.0)

    @model_validator(mode="before")
    @classmethod
    def _accept_old_names(cls, given: Any) -> Any:
        prefix = cls.model_config["env_prefix"]
        return with_old_names(given, prefix) if isinstance(given, dict) else given

    @field_validator("policy_gradient")
    @classmethod
    def _known_policy_gradient(cls, name: str) -> str:
        known = ("auto", "off", *policy_gradients())
        if name not in known:
            raise ValueError(f"must be one of {', '.join(known)}")
        return name

    @field_validator("objective_weights")
    @classmethod
    def _known_objectives(cls, weights: dict[str, float]) -> dict[str, float]:
        for objective in weights:
            if objective not in POLICY_OBJECTIVES:
                raise ValueError(f"{objective!r} must be one of {', '.join(POLICY_OBJECTIVES)}")
        return weights

    @field_validator("algorithms")
    @classmethod
    def _known_algorithms(cls, chosen: dict[str, str]) -> dict[str, str]:
        for objective, name in chosen.items():
            known = [n for n, a in algorithms.items() if a.online and a.objective == objective]
            if objective not in JUDGED_OBJECTIVES or name not in known:
                raise ValueError(
                    f"{name!r} does not learn from samples of {objective!r}; "
                    f"these do: {', '.join(known) or 'none'}"
                )
        return chosen

    @model_validator(mode="after")
    def _room_for_prompts(self) -> "LearnerSettings":
        room = self.prompts_in_flight * self.samples_per_prompt
        if self.prompts is not None and room < self.policy_gradient_batch_size:
            raise ValueError(
                "prompts_in_flight times samples_per_prompt must be policy_gradient_batch_size "
                "or more, or no step would ever be full"
            )
        return self

    def trainer(self) -> TrainerSettings:
        """Return the settings of the policy's trainer; raises `SettingsError`."""
        chosen = {**self.algorithms, self.scored_objective: self.scored_algorithm}
        named: dict[str, Any] = {name: getattr(self, name) for name in OF_THE_TRAINER} | {
            "kind": self.weights_kind,
            "learning_rate": self.learning_rate or RATES.get(self.weights_kind),
            "kl_budget": self.kl_budget or None,
            "full_step": float(self.batch_size),
            "algorithms": chosen,
            "threads": self.threads or None,
            "device": self.torch_device,
        }
        for name in chosen.values():
            named |= algorithms[name].settings
        known = {f.name for f in fields(TrainerSettings)}
        for name in self.trainer_settings:
            if name not in known or name in named:
                problem = "has a setting of its own" if name in named else "no setting of a trainer"
                raise SettingsError(f"trainer_settings: {name}: {problem}", param=name)
        try:
            return TrainerSettings(**named, **{**ONLINE, **self.trainer_settings})
        except TypeError as error:
            raise SettingsError(f"trainer_settings: {error}", param="trainer_settings") from error

    def reward_trainer(self) -> RewardTrainerSettings:
        """Return the settings of the reward model's trainer; raises `SettingsError`."""
        return RewardTrainerSettings(
            learning_rate=self.reward_learning_rate,
            full_step=float(self.reward_batch_size),
            resume_warmup_steps=self.resume_warmup_steps,
            seed=self.seed,
            threads=self.threads or None,
            device=self.torch_device,
        )
