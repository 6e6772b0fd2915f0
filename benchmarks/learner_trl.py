"""TRL's side of `learner_speed`: its own trainers, built as its documentation shows.

They are fed through their own collators and their own `training_step`, so that what is timed is
TRL's code from the padded batch to the optimizer step. Nothing else of its loop (logging, data
loading, generation) is timed.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.learner_sides import (
    BETA,
    CENTERING,
    LEARNING_RATE,
    Side,
    Step,
    classifier,
    texts_of,
)
from benchmarks.learner_work import Work


def trl_step(side: Side, work: Work) -> Step:
    """TRL's trainer of the objective."""
    import datasets
    import torch
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    trainer = trl_trainer(side, work)
    parts = trl_parts(side, work)
    trainer.current_gradient_accumulation_steps = len(parts)
    trainer.args.gradient_accumulation_steps = len(parts)
    trainer.args.steps_per_generation = len(parts)
    # The trainer's own is where GRPO would generate.
    trainer._prepare_inputs = lambda inputs: inputs
    batches = [trl_batch(trainer, side, work, part) for part in parts]
    trainer.create_optimizer()
    trainer.model.train()
    named = dict(trainer.model.named_parameters())
    backbone = [p for name, p in named.items() if not name.startswith("score.")]
    head = [p for name, p in named.items() if name.startswith("score.")]
    items = None
    if work.objective == "sft":
        items = torch.tensor(sum(len(completion) for completion in work.completions))

    def step() -> tuple[float, float]:
        loss = 0.0
        for batch in batches:
            loss += float(trainer.training_step(trainer.model, dict(batch), items))
        clip = trainer.accelerator.clip_grad_norm_
        # As in the learner, the head of a reward model is clipped apart.
        norm, *_ = [clip(parameters, 1.0) for parameters in (backbone, head) if parameters]
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        trainer._metrics["train"].clear()
        return loss, float(norm)

    return step


def trl_parts(side: Side, work: Work) -> list[list[int]]:
    """Numbers of the samples (a pair is one) of each micro-batch."""
    paired = work.objective in ("dpo", "reward_model")
    count = len(work.prompts) // 2 if paired else len(work.prompts)
    lengths = [len(prompt) + len(completion) for prompt, completion in work.rows]
    order = list(range(count))
    if side.rows_at_once is None:
        return [order]
    order.sort(key=lambda i: max(lengths[i], lengths[i + count]) if paired else lengths[i])
    size = side.rows_at_once
    return [order[start : start + size] for start in range(0, count, size)]


def trl_trainer(side: Side, work: Work) -> Any:
    """The trainer with its defaults, or with the best settings for this device."""
    import datasets
    import trl
    from transformers import AutoTokenizer

    tuned = side.name == "trl_tuned"
    cpu = side.device == "cpu"
    shared: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "use_cpu": cpu,
        # On a CPU bfloat16, TRL's default, is three times slower: no one would leave it on.
        "bf16": not cpu,
        "learning_rate": LEARNING_RATE,
        "weight_decay": 0.0,
        "report_to": "none",
        "disable_tqdm": True,
        "model_init_kwargs": {"dtype": "float32"},
        "max_length": 1024,
    }
    if tuned:
        shared["gradient_checkpointing"] = False
    text = {
        "prompt": ["a"] * 8,
        "completion": ["b"] * 8,
        "chosen": ["b"] * 8,
        "rejected": ["c"] * 8,
    }
    given: dict[str, Any] = {
        "model": str(side.model),
        "processing_class": AutoTokenizer.from_pretrained(side.model),
    }

    def columns(*names: str, **more: list[bool]) -> datasets.Dataset:
        return datasets.Dataset.from_dict({name: text[name] for name in names} | more)

    match work.objective:
        case "sft":
            if side.padding_free:
                shared["max_length"] = None
            args = trl.SFTConfig(**shared, padding_free=side.padding_free)
            return trl.SFTTrainer(args=args, train_dataset=columns("prompt", "completion"), **given)
        case "kto":
            # z = 0, as tuneloop's default: no pass over mismatched pairs.
            kind = {"loss_type": "apo_zero_unpaired", "precompute_ref_log_probs": True}
            args = trl.KTOConfig(**shared, beta=BETA, **(kind if tuned else {}))
            data = columns("prompt", "completion", label=[True, False] * 4)
            return trl.KTOTrainer(args=args, train_dataset=data, **given)
        case "dpo":
            args = trl.DPOConfig(**shared, beta=BETA, precompute_ref_log_probs=tuned)
            data = columns("prompt", "chosen", "rejected")
            return trl.DPOTrainer(args=args, train_dataset=data, **given)
        case "reward_model":
            del shared["model_init_kwargs"]
            given["model"] = str(classifier(side.model, Path(shared["output_dir"])))
            args = trl.RewardConfig(**shared, center_rewards_coefficient=CENTERING)
            data = columns("prompt", "chosen", "rejected")
            return trl.RewardTrainer(args=args, train_dataset=data, **given)
    del shared["max_length"]
    args = trl.GRPOConfig(**shared, num_generations=8, per_device_train_batch_size=8)
    return trl.GRPOTrainer(
        args=args,
        train_dataset=columns("prompt"),
        reward_funcs=lambda prompts, **_: [0.0] * len(prompts),
        **given,
    )


def trl_batch(trainer: Any, side: Side, work: Work, part: Sequence[int]) -> dict[str, Any]:
    """One micro-batch, as TRL's collator makes it of token ids."""
    import torch

    rows, half = work.rows, len(work.rows) // 2
    device = trainer.accelerator.device
    match work.objective:
        case "sft":
            examples = [
                {"input_ids": [*p, *c], "labels": [-100] * len(p) + list(c)}
                for p, c in (rows[i] for i in part)
            ]
        case "kto":
            examples = [
                {
                    "prompt_ids": list(rows[i][0]),
                    "completion_ids": list(rows[i][1]),
                    # Each completion after the next prompt of the micro-batch.
                    "KL_completion_ids": list(rows[part[n - 1]][1]),
                    "label": i % 2 == 0,
                }
                for n, i in enumerate(part)
            ]
        case "dpo":
            examples = [
                {
                    "prompt_ids": list(rows[i][0]),
                    "chosen_ids": list(rows[i][1]),
                    "rejected_ids": list(rows[half + i][1]),
                }
                for i in part
            ]
        case "reward_model":
            from tuneloop.models.reward_model import encode_text

            tokenizer = trainer.processing_class
            ids = [
                encode_text(tokenizer, *pair)["input_ids"] for pair in texts_of(side.model, work)
            ]
            examples = [{"chosen_ids": ids[i], "rejected_ids": ids[half + i]} for i in part]
        case _:
            return grpo_batch(work, part, device)
    batch = {
        k: v.to(device) if isinstance(v, torch.Tensor) else v
        for k, v in trainer.data_collator(examples).items()
    }
    if side.name == "trl_tuned" and work.objective == "dpo":
        chosen, rejected = trainer.compute_ref_log_probs(trainer.model, batch)
        batch |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    if side.name == "trl_tuned" and work.objective == "kto":
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
        with torch.no_grad():
            known = trainer.model(**inputs, labels=labels, fused_lm_head=True).log_probs
        batch["ref_logps"] = known.sum(-1)
    return batch


def grpo_batch(work: Work, part: Sequence[int], device: Any) -> dict[str, Any]:
    """What TRL's GRPO has after generation and scoring."""
    import torch

    rewards = torch.tensor(work.rewards)
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    prompts = torch.tensor([work.prompts[i] for i in part], device=device)
    completions = torch.tensor([work.completions[i] for i in part], device=device)
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
        "advantages": advantages[list(part)].to(device),
        "num_items_in_batch": torch.tensor(sum(map(len, work.completions)), device=device),
    }
