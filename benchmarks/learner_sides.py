"""The sides of `learner_speed`, each in a process of its own that takes one step when asked.

Both train all weights, on a CPU in float32, with AdamW at one rate and one clip.
"""

import contextlib
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.learner_work import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Who computes, and how."""

    name: str
    """tuneloop, trl_default or trl_tuned."""
    model: Path
    device: str
    threads: int
    rows_at_once: int | None = None
    """TRL: `per_device_train_batch_size`, rows of like length together; None is all at once."""
    padding_free: bool = False
    """TRL's SFT: one row without padding."""


Step = Callable[[], tuple[float, float]]
"""Takes an optimizer step; returns the loss before it and the norm of its gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Of one step."""

    seconds: float
    loss: float
    gradient_norm: float
    """Before the clip. GRPO's loss is 0 at ratio 1; its gradient is not."""
    peak_bytes: int
    """Most memory the process has had so far."""


def serve(connection: Connection, side: Side, work: Work) -> None:
    """Answer each request with a step's `Measured`, until told to stop."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    torch.set_num_threads(side.threads)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        if side.name == "tuneloop":
            from benchmarks.learner_ours import tuneloop_step

            step = tuneloop_step(side, work)
        else:
            from benchmarks.learner_trl import trl_step

            step = trl_step(side, work)
    connection.send("ready")
    while connection.recv() == "step":
        started = time.perf_counter()
        loss, norm = step()
        if side.device != "cpu":
            torch.cuda.synchronize()
        connection.send(
            Measured(
                seconds=time.perf_counter() - started,
                loss=loss,
                gradient_norm=norm,
                peak_bytes=peak_bytes(side.device),
            )
        )


def peak_bytes(device: str) -> int:
    """Most memory this process has had."""
    if device != "cpu":
        import torch

        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


LEARNING_RATE = 5e-6
BETA = 0.1
CENTERING = 0.01
"""Of the reward model's loss; the learner's constant."""


def classifier(model: Path, folder: Path) -> Path:
    """Write `model` with a head that is the same every time."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    torch.manual_seed(0)
    made = AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=1, dtype=torch.float32, pad_token_id=tokenizer.pad_token_id
    )
    torch.nn.init.normal_(made.score.weight, std=0.02)
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def texts_of(model: Path, work: Work) -> list[tuple[str, str]]:
    """The rows as texts, which is what a reward model is given."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return [(tokenizer.decode(prompt), tokenizer.decode(ids)) for prompt, ids in work.rows]
