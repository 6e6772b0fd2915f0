"""Tokens/s and model FLOPs utilization of SFT on random models of real shapes, on a GPU.

    python -m benchmarks.learner_mfu [--shape 0.6b] [--kind full] [--device cuda]

FLOPs of a token are 6 for each weight that multiplies it (LoRA: 4, frozen weights have no gradient,
and 6 for the adapter's) plus attention's own, 12 · layers · width · the mean length of what is
attended to (half the row); prompts do not pass the head. Recomputation does not count. Utilization
is of the dense bfloat16 peak.
"""

import argparse
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
"""Dense bfloat16 FLOPs/s, from NVIDIA's data sheets (SXM where there are several)."""
SHAPES: dict[str, dict[str, Any]] = {
    "0.6b": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151_936,
    },
    "4b": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151_936,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 512,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Utilization:
    """What a shape came to."""

    shape: str
    kind: str
    tokens_per_second: float
    flops_per_second: float
    utilization: float | None
    """Of the peak; None where the peak is not known."""
    peak_bytes: int
    parameters: int


def make_model(shape: str, folder: Path) -> int:
    """Write a random Qwen3 of a shape; returns the weights that multiply every token."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(**SHAPES[shape], max_position_embeddings=8192, tie_word_embeddings=True)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    embedding = model.get_input_embeddings().weight.numel()
    return sum(p.numel() for p in model.parameters()) - embedding


def measure_utilization(
    shape: str, *, kind: str, device: str, rows: int, length: int, steps: int, checkpointing: bool
) -> Utilization:
    """Time SFT steps on rows with half prompt and half completion, after two to warm up."""
    import torch

    from tuneloop.learner.samples import DemonstrationSample, TokenSequence
    from tuneloop.learner.trainer.base import peak_memory_bytes
    from tuneloop.learner.trainer.policy import PolicyTrainer
    from tuneloop.learner.trainer.settings import TrainerSettings
    from tuneloop.policies import WeightsKind

    on_gpu = device.startswith("cuda")
    with tempfile.TemporaryDirectory() as folder:
        body = make_model(shape, Path(folder))
        settings = TrainerSettings(
            kind=WeightsKind(kind),
            device=device,
            compile=on_gpu,
            gradient_checkpointing=checkpointing,
            spike_factor=None,
        )
        trainer = PolicyTrainer(Path(folder), settings)
        numbers = random.Random(0)
        vocabulary = SHAPES[shape]["vocab_size"]

        def tokens(count: int) -> tuple[int, ...]:
            return tuple(numbers.randrange(vocabulary) for _ in range(count))

        samples = [
            DemonstrationSample(
                sample_id=str(row),
                sequence=TokenSequence(
                    prompt_token_ids=tokens(length // 2),
                    completion_token_ids=tokens(length - length // 2),
                    generation_logprobs=(),
                    temperature=1.0,
                ),
            )
            for row in range(rows)
        ]
        seconds: list[float] = []
        for _ in range(steps + 2):
            started = time.perf_counter()
            trainer.step({"sft": samples})
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        trained = sum(p.numel() for p in trainer.model.parameters().values())
    width = SHAPES[shape]["num_attention_heads"] * SHAPES[shape]["head_dim"]
    attention = 12 * SHAPES[shape]["num_hidden_layers"] * width * length / 2
    head = vocabulary * SHAPES[shape]["hidden_size"] / 2
    of_token = 6 * (body + head) if kind == "full" else 4 * (body + head) + 6 * trained
    rate = rows * length / statistics.median(seconds[2:])
    name = torch.cuda.get_device_name() if on_gpu else ""
    peak = next((flops for gpu, flops in PEAKS.items() if gpu in name), None)
    achieved = (of_token + attention) * rate
    return Utilization(
        shape=shape,
        kind=kind,
        tokens_per_second=rate,
        flops_per_second=achieved,
        utilization=None if peak is None else achieved / peak,
        peak_bytes=peak_memory_bytes(),
        parameters=trained,
    )


def main() -> None:
    """Measure one shape and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="0.6b")
    parser.add_argument("--kind", choices=["full", "lora"], default="full")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    options = parser.parse_args()
    found = measure_utilization(
        options.shape,
        kind=options.kind,
        device=options.device,
        rows=options.rows,
        length=options.length,
        steps=options.steps,
        checkpointing=options.gradient_checkpointing,
    )
    Console().print(found)


if __name__ == "__main__":
    main()
