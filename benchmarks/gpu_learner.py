"""Parts of `python -m benchmarks.gpu learner`: steps, memory, and precision."""

import functools
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.learner_mfu import SHAPES, make_model, measure_utilization
from tuneloop.gpus.memory import activation_bytes, lora_training_bytes, weight_bytes
from tuneloop.gpus.shapes import ModelShape, shape_of

FULL_RUN = (("0.6b", "full"), ("0.6b", "lora"), ("4b", "lora"))
QUICK_RUN = (("tiny", "full"), ("tiny", "lora"))


def parts(device: str, *, quick: bool) -> dict[str, Any]:
    """Return the parts by name."""
    found: dict[str, Any] = {}
    for shape, kind in QUICK_RUN if quick else FULL_RUN:
        for checkpointing in (False, True):
            name = f"{shape} {kind}{', checkpointing' if checkpointing else ''}"
            found[name] = functools.partial(
                step_part, shape, kind, device, checkpointing=checkpointing, quick=quick
            )
    found["log-probs against float32"] = functools.partial(
        precision_part, "tiny" if quick else "0.6b", device
    )
    return found


def step_part(
    shape: str, kind: str, device: str, *, checkpointing: bool, quick: bool
) -> Mapping[str, Any]:
    """Measure SFT steps: tokens/s, FLOPs/s of the step, and memory beside its estimate."""
    rows, length = (4, 32) if quick else (32, 1024)
    reset_peak(device)
    done = measure_utilization(
        shape,
        kind=kind,
        device=device,
        rows=rows,
        length=length,
        steps=2 if quick else 5,
        checkpointing=checkpointing,
    )
    config = {**SHAPES[shape], "tie_word_embeddings": True, "model_type": "qwen3"}
    sizes = shape_of(SimpleNamespace(**config))
    return {
        "tokens_per_second": done.tokens_per_second,
        "flops_per_second": done.flops_per_second,
        "utilization_of_data_sheet": done.utilization,
        "peak_bytes": done.peak_bytes,
        "estimated_bytes": estimate(sizes, kind, rows * length, checkpointing=checkpointing),
    }


def estimate(shape: ModelShape, kind: str, tokens: int, *, checkpointing: bool) -> int:
    """Return what the plan of `tuneloop doctor` would expect of such a step."""
    held = weight_bytes(shape)
    held += lora_training_bytes(shape, 16) if kind == "lora" else shape.parameters * 16
    rank = 16 if kind == "lora" else None
    tokens = min(tokens, 16_384)
    return held + activation_bytes(shape, tokens, checkpointing=checkpointing, lora_rank=rank)


def reset_peak(device: str) -> None:
    """Begin to measure peak memory."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def sequences(vocabulary: int, rows: int, length: int) -> Iterator[Any]:
    """Yield random sequences, half of each prompt and half completion."""
    import random

    from tuneloop.learner.samples import TokenSequence

    numbers = random.Random(1)
    for _ in range(rows):
        ids = [numbers.randrange(vocabulary) for _ in range(length)]
        yield TokenSequence(
            prompt_token_ids=tuple(ids[: length // 2]),
            completion_token_ids=tuple(ids[length // 2 :]),
            generation_logprobs=(),
            temperature=1.0,
        )


def precision_part(shape: str, device: str) -> Mapping[str, Any]:
    """Compare log-probs on the device with those of a float32 forward pass on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    from tuneloop.learner.trainer.policy import PolicyTrainer
    from tuneloop.learner.trainer.settings import TrainerSettings

    with tempfile.TemporaryDirectory() as folder:
        make_model(shape, Path(folder))
        rows = list(sequences(SHAPES[shape]["vocab_size"], 4, 64))
        trainer = PolicyTrainer(Path(folder), TrainerSettings(device=device))
        ours = trainer.reference_logprobs(rows)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        differences: list[float] = []
        for row, found in zip(rows, ours, strict=True):
            ids = torch.tensor([[*row.prompt_token_ids, *row.completion_token_ids]])
            with torch.no_grad():
                logits = model(ids).logits[0, len(row.prompt_token_ids) - 1 : -1].float()
            right = torch.log_softmax(logits, -1)
            right = right.gather(1, torch.tensor(row.completion_token_ids)[:, None])[:, 0]
            differences += (right - torch.tensor(found)).abs().tolist()
    return {
        "mean_difference": sum(differences) / len(differences),
        "largest_difference": max(differences),
        "tokens": len(differences),
    }
