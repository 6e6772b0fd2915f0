"""Memory of a forward pass: how many tokens fit, and what is done where they do not.

Nothing here needs a GPU: what is free and what a pass took are given, or counted from shapes.
"""

import gc
import logging
import sys
import traceback
from collections.abc import Callable
from typing import Protocol, TypeVar

logger = logging.getLogger("tuneloop.learner.models")

T = TypeVar("T")
OUT_OF_MEMORY = (
    "can't allocate memory",  # torch on a CPU
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""What errors say that are plain `RuntimeError`s."""
LEAST_TOKEN_BUDGET = 64
"""With less, every forward pass has a single sequence anyway."""
GIB = 1 << 30


class TokenLimited(Protocol):
    """Something that runs a model on at most so many tokens at once."""

    @property
    def token_budget(self) -> int:
        """The most tokens in a forward pass."""
        ...

    def limit_tokens(self, token_budget: int) -> None:
        """Take passes of at most so many tokens from now on, and drop what a failed one left."""
        ...


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, of the device or of the process."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    said = isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)
    return said or isinstance(error, MemoryError)


def halved_token_budget(tokens: int) -> int | None:
    """Return the next smaller token budget after running out of memory; None if there is none."""
    return None if tokens <= LEAST_TOKEN_BUDGET else max(LEAST_TOKEN_BUDGET, tokens // 2)


def after_shortages(tokens: int, shortages: int) -> int:
    """Return the token budget after memory ran out so many times."""
    for _ in range(shortages):
        tokens = halved_token_budget(tokens) or tokens
    return tokens


def run_in_smaller_passes(runner: TokenLimited, attempt: Callable[[], T]) -> T:
    """Return what `attempt` gives, tried again with half the tokens whenever memory runs out.

    The smaller budget holds from then on. Where a single sequence does not fit either, the budget
    of before is put back, because halving it did not help, and `MemoryError` says what would.
    """
    before = runner.token_budget
    while True:
        try:
            return attempt()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            problem = str(error)
            _drop_frames(error)
        # Only here, where the error and the tensors in its frames are gone.
        smaller = halved_token_budget(runner.token_budget)
        runner.limit_tokens(before if smaller is None else smaller)
        free_memory()
        if smaller is None:
            raise MemoryError(_advice(problem, before))
        logger.warning("out of memory: at most %d tokens in a forward pass from now on", smaller)


def free_memory() -> None:
    """Give back what is held for nothing: cycles of Python, and the device's cached blocks."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def free_device_bytes() -> tuple[int, int] | None:
    """Return the GPU's memory that can be had, cached blocks included, and all; None on a CPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    free, total = torch.cuda.mem_get_info()
    cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return free + cached, total


def _drop_frames(error: BaseException | None) -> None:
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _advice(problem: str, token_budget: int) -> str:
    """Return what is said of a sequence that does not fit alone."""
    device = free_device_bytes()
    room = "" if device is None else f" ({device[0] / GIB:.1f} of {device[1] / GIB:.1f} GiB free)"
    return (
        f"not enough memory for one sequence at a time{room}, tried with passes of {token_budget} "
        f"down to {LEAST_TOKEN_BUDGET} tokens: use gradient_checkpointing, a smaller max_length or "
        f"LoRA, or leave the learner more memory; the last error: {problem}"
    )
