"""TRL's own losses on given log-probs: its trainers without their constructors, on a fake model.

Every function takes float64 tensors and calls the code TRL trains with; nothing of a formula is
written here. Rows are sequences of one prompt token and C completion tokens, right-padded.
"""

import math
from collections import defaultdict, deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class FakeModel:
    """Answers one call after the other with the log-probs it was given, (B, C) each."""

    def __init__(self, *log_probs: Tensor) -> None:
        self.training = True
        self.is_gradient_checkpointing = False
        self._log_probs = list(log_probs)

    def __call__(self, **inputs: Any) -> SimpleNamespace:
        log_probs = self._log_probs.pop(0)
        nothing = torch.zeros_like(log_probs)
        return SimpleNamespace(
            log_probs=log_probs,
            label_mask=inputs["labels"][:, 1:] != -100,
            entropy=nothing,
            mean_logits=nothing,
            is_top1=nothing.bool(),
        )


class FakeAccelerator:
    """One process on the CPU."""

    device = torch.device("cpu")
    num_processes = 1
    process_index = 0
    parallelism_config = None
    is_main_process = True

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor

    def gather_for_metrics(self, tensor: Tensor) -> Tensor:
        return tensor

    def reduce(self, tensor: Tensor, reduction: str = "sum") -> Tensor:
        return tensor


def bare(trainer_class: type[Any], **attributes: Any) -> Any:
    """A trainer that has `attributes` and what every trainer needs, made without `__init__`."""
    trainer = trainer_class.__new__(trainer_class)
    shared = {
        "accelerator": FakeAccelerator(),
        "aux_loss_enabled": False,
        "model": FakeModel(),
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
        "precompute_ref_logps": True,
        "current_gradient_accumulation_steps": 1,
    }
    for name, value in {**shared, **attributes}.items():
        setattr(trainer, name, value)
    return trainer


def rows_of(mask: Tensor) -> dict[str, Tensor]:
    """Inputs of sequences whose completion tokens are `mask` (B, C), after one prompt token."""
    prompt = torch.zeros(mask.shape[0], 1, dtype=torch.int64)
    completion_mask = torch.cat([prompt, mask.long()], dim=1)
    return {
        "input_ids": torch.ones_like(completion_mask),
        "attention_mask": torch.ones_like(completion_mask),
        "completion_mask": completion_mask,
    }


def sft(logprobs: Tensor, mask: Tensor, total_tokens: int) -> Tensor:
    from trl import SFTTrainer

    trainer = bare(
        SFTTrainer,
        compute_loss_func=None,
        label_smoother=None,
        args=SimpleNamespace(loss_type="nll", average_tokens_across_devices=False),
    )
    inputs = rows_of(mask)
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs.pop("completion_mask") == 0, -100)
    loss: Tensor = trainer.compute_loss(
        FakeModel(logprobs), inputs, num_items_in_batch=total_tokens
    )
    return loss


def dpo(
    logprobs: Tensor,
    mask: Tensor,
    ref_logprobs: Tensor,
    *,
    loss_type: str,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """All tensors (2·B, C): the chosen, then the rejected."""
    from trl import DPOTrainer

    trainer = bare(
        DPOTrainer,
        beta=beta,
        f_divergence_type="reverse_kl",
        label_smoothing=label_smoothing,
        ld_alpha=None,
        loss_types=[loss_type],
        loss_weights=[1.0],
        use_weighting=False,
    )
    chosen, rejected = ref_logprobs.sum(-1).chunk(2)
    inputs = {**rows_of(mask), "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    loss: Tensor = trainer._compute_loss(FakeModel(logprobs), inputs, return_outputs=False)
    return loss


def kto(
    logprobs: Tensor,
    mask: Tensor,
    ref_logprobs: Tensor,
    *,
    mismatched: tuple[Tensor, Tensor] | None,
    desirable: Tensor,
    beta: float,
    weights: tuple[float, float],
) -> Tensor:
    """`mismatched` is the policy's and the reference's log-probs of the mismatched rows."""
    from trl import KTOTrainer

    trainer = bare(
        KTOTrainer,
        beta=beta,
        calculate_KL=mismatched is not None,
        desirable_weight=weights[0],
        loss_type="kto",
        undesirable_weight=weights[1],
    )
    inputs = rows_of(mask)
    inputs |= {"label": desirable, "ref_logps": ref_logprobs.sum(-1)}
    answers = [logprobs]
    if mismatched is not None:
        inputs |= {f"KL_{name}": tensor for name, tensor in rows_of(mask).items()}
        inputs["ref_KL_logps"] = mismatched[1].sum(-1)
        answers = [mismatched[0], logprobs]
    loss: Tensor = trainer._compute_loss(FakeModel(*answers), inputs, return_outputs=False)
    return loss


def _policy_gradient(trainer_class: type[Any], log_probs: dict[str, Tensor], **options: Any) -> Any:
    """A GRPO or RLOO trainer whose models answer with `log_probs` of `policy` and `reference`."""
    trainer = bare(
        trainer_class,
        environment_factories=None,
        environments=None,
        mask_truncated_completions=False,
        num_generations=options.pop("num_generations"),
        pad_to_multiple_of=None,
        ref_model="reference",
        reward_func_names=["given"],
        reward_funcs=[None],
        reward_weights=torch.ones(1),
        tools=None,
        _logs=defaultdict(deque, rewards=defaultdict(deque), extra=defaultdict(deque)),
        _pending_extra_logs={},
        _pending_metrics={},
        _tokenizer=SimpleNamespace(pad_token_id=0),
        **options,
    )

    def log_probs_of(model: Any, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor, None]:
        given = log_probs["reference" if model == "reference" else "policy"]
        return given, torch.zeros_like(given), None

    trainer._get_per_token_logps_and_entropies = log_probs_of
    return trainer


def _lists(mask: Tensor) -> list[list[int]]:
    return [[1] * int(length) for length in mask.sum(-1)]


def grpo(
    logprobs: Tensor,
    mask: Tensor,
    *,
    old: Tensor,
    generation: Tensor,
    reference: Tensor,
    rewards: Tensor,
    group_size: int,
    beta: float,
    cap: float,
    delta: float | None = None,
    loss_type: str = "dapo",
    scale_rewards: str = "group",
    max_completion_length: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return loss and advantages: scored and weighted with `old`, then the loss of `logprobs`."""
    from trl import GRPOTrainer

    policy = {"policy": old, "reference": reference}
    args = {
        "delta": delta,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing_kwargs": None,
        "per_device_train_batch_size": len(mask),
        "steps_per_generation": 1,
        "use_bias_correction_kl": True,
    }
    trainer = _policy_gradient(
        GRPOTrainer,
        policy,
        num_generations=group_size,
        args=SimpleNamespace(**args),
        beta=beta,
        epsilon_high=0.28,
        epsilon_low=0.2,
        importance_sampling_level="token",
        loss_type=loss_type,
        max_completion_length=max_completion_length,
        multi_objective_aggregation="sum_then_normalize",
        num_iterations=1,
        off_policy_mask_threshold=None,
        scale_rewards=scale_rewards,
        top_entropy_quantile=1.0,
        use_vllm=True,
        vllm_importance_sampling_clip_max=cap,
        vllm_importance_sampling_clip_min=None,
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode="token_truncate",
        _entropy_bonus_enabled=False,
    )
    lengths = [int(length) for length in mask.sum(-1)]
    sampled = [row[:length].tolist() for row, length in zip(generation, lengths, strict=True)]
    ids, nothing = _lists(mask), [[1]] * len(mask)
    texts = [""] * len(mask)
    trainer._generate = lambda prompts: (nothing, ids, None, texts, sampled, {}, None, None)
    trainer._calculate_rewards = lambda *_: rewards.unsqueeze(-1)
    scored = trainer._generate_and_score_completions([{"prompt": ""}] * len(mask))
    policy["policy"] = logprobs
    return trainer._compute_loss(FakeModel(), scored), scored["advantages"]


def rloo(
    logprobs: Tensor,
    mask: Tensor,
    *,
    old: Tensor,
    reference: Tensor,
    rewards: Tensor,
    group_size: int,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """Return loss and advantages, as `grpo`."""
    from trl import RLOOTrainer

    policy = {"policy": old, "reference": reference}
    args = {"gradient_checkpointing_kwargs": None, "per_device_train_batch_size": len(mask)}
    trainer = _policy_gradient(
        RLOOTrainer,
        policy,
        num_generations=group_size,
        args=SimpleNamespace(**args),
        beta=beta,
        epsilon_high=0.28,
        epsilon_low=0.2,
        normalize_advantages=False,
        reward_clip_range=None,
    )
    trainer._generate = lambda prompts: ([[1]] * len(mask), _lists(mask), [""] * len(mask))
    trainer._calculate_rewards = lambda *_: rewards.unsqueeze(-1)
    scored = trainer._generate_and_score_completions([{"prompt": ""}] * len(mask))
    policy["policy"] = logprobs
    return trainer._compute_loss(FakeModel(), scored), scored["advantages"]


def lengths_mask(lengths: Sequence[int]) -> Tensor:
    """(B, C) bool, true on the first tokens of each row."""
    return torch.arange(max(lengths)).unsqueeze(0) < torch.tensor(lengths).unsqueeze(1)


def random_logprobs(mask: Tensor, seed: int, near: Tensor | None = None) -> Tensor:
    """(B, C) log-probs, 0 where masked; a little off `near`, if given."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(mask.shape, generator=generator, dtype=torch.float64)
    logprobs = -4.0 * noise if near is None else near + 1.2 * (noise - 0.5)
    return torch.where(mask, logprobs.clamp(max=math.log(0.999)), 0.0)
