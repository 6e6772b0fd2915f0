"""Memory of a forward pass: how many tokens fit, and what is done where they do not.

Nothing here needs a GPU: what is free and what a pass took are given, or counted from shapes.
"""

import functools
import gc
import logging
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from tuneloop.gpus.memory import GIB, activation_bytes, open_batch_bytes
from tuneloop.gpus.plan import MOST_TOKENS
from tuneloop.gpus.shapes import shape_of
from tuneloop.learner.models.batch import collate
from tuneloop.learner.samples import TokenSequence

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
MARGIN_BYTES = 2 * GIB
"""Left free on a GPU: kernels' work space, what fragments, and the neighbours' small changes."""
HEAD_BYTES = 2 * GIB
"""For a chunk of logits in float32 and what is made of them."""
USED = 0.9
"""Part of what is free that activations are kept in: what they take was measured on short passes.
"""
PROBES = (256, 1024)
"""Tokens of the passes that are measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassMemory:
    """What a forward and backward pass takes beside weights and optimizer."""

    fixed: int
    """Bytes whatever its length: a chunk of logits."""
    per_token: float


def trained_bytes(parameters: int, *, has_masters: bool, keeps_open_batch: bool) -> int:
    """Return what training allocates beside the weights: gradients and moments, in float32.

    Weights in bfloat16 have masters (`trainer.master_weights`). An open batch (`trainer.optimizer`)
    keeps everything once more.
    """
    open_batch = open_batch_bytes(parameters) if keeps_open_batch else 0
    return parameters * (4 + 8 + (4 if has_masters else 0)) + open_batch


def tokens_that_fit(free: int, taken: PassMemory) -> int:
    """Return the token budget for so many free bytes: `MARGIN_BYTES` are never counted on."""
    tokens = int((free - MARGIN_BYTES - taken.fixed) / taken.per_token)
    return max(LEAST_TOKEN_BUDGET, min(MOST_TOKENS, tokens // 128 * 128))


def measured_pass(peak_of: Callable[[int], int], expected: PassMemory) -> PassMemory:
    """Return what passes of `PROBES` tokens show, `peak_of` giving the bytes each took.

    Where they cannot be told apart, or memory runs out already, it is what shapes say.
    """
    few, many = PROBES
    try:
        peak_of(few)  # what is compiled and set up once
        low, high = peak_of(few), peak_of(many)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        logger.warning("out of memory with %d tokens: the token budget is from shapes", many)
        return expected
    per_token = (high - low) / (many - few)
    if per_token <= 0:
        return expected
    return PassMemory(fixed=max(0, int(low - few * per_token)), per_token=per_token)


def layers_that_fit(
    free: int, tokens: int, layers: int, *, checkpointed: PassMemory, kept: PassMemory
) -> int:
    """Return how many layers can keep their activations in passes of so many tokens.

    `checkpointed` is what passes take where none does, `kept` where all of them do. The former has
    room for one layer, so the difference is that of the others.
    """
    spare = USED * (free - MARGIN_BYTES) - checkpointed.fixed - tokens * checkpointed.per_token
    of_layer = tokens * (kept.per_token - checkpointed.per_token) / max(1, layers - 1)
    return 0 if of_layer <= 0 else max(0, min(layers, int(spare / of_layer)))


def token_budget_of(model: Any, *, keeps_open_batch: bool, ranks: int) -> int | None:
    """Return the token budget for what is free beside a `PolicyModel`; None on a CPU.

    On one GPU passes are measured; sharded weights have every rank run, so shapes say it there.
    What passes leave free there is given to activations that need not be computed again.
    """
    device = free_device_bytes()
    if device is None:
        return None
    taken = _taken(model, checkpointing=model.checkpoints, measured=ranks == 1)
    parameters = model.parameters().values()
    trained = sum(p.numel() for p in parameters) // ranks
    has_masters = any(p.dtype.itemsize < 4 for p in parameters)
    coming = trained_bytes(trained, has_masters=has_masters, keeps_open_batch=keeps_open_batch)
    if model.lora_rank is None:
        coming += 2 * trained  # the reference, in bfloat16
    free, total = device
    budget = tokens_that_fit(free - coming, taken)
    numbers = (free / GIB, total / GIB, coming / GIB, taken.fixed / GIB, taken.per_token / 1024)
    say = logger.warning if budget == LEAST_TOKEN_BUDGET else logger.info
    say(
        "token budget %d: %.1f of %.1f GiB free, of which %.1f for the optimizer, %.1f for a pass "
        "of any length and 2 kept back; %.0f KiB a token",
        budget,
        *numbers,
    )
    if ranks == 1 and model.selects_layers and budget == MOST_TOKENS:
        _keep_activations(model, free - coming, budget, taken)
    return budget


def _taken(model: Any, *, checkpointing: bool, measured: bool) -> PassMemory:
    """Return what passes take as the model is; from shapes, if they are not `measured`."""
    config = model.text_config
    shape = shape_of(config, default_intermediate=4 * config.hidden_size)
    per_token = activation_bytes(shape, 1, checkpointing=checkpointing, lora_rank=model.lora_rank)
    expected = PassMemory(fixed=HEAD_BYTES, per_token=per_token)
    if not measured:
        return expected
    taken = measured_pass(functools.partial(_peak_of_pass, model), expected)
    for parameter in model.parameters().values():
        parameter.grad = None
    return taken


def _keep_activations(model: Any, free: int, tokens: int, checkpointed: PassMemory) -> None:
    """Have as many layers keep their activations as there is room for."""
    layers = model.text_config.num_hidden_layers
    model.keep_activations(layers)
    kept = _taken(model, checkpointing=False, measured=True)
    found = layers_that_fit(free, tokens, layers, checkpointed=checkpointed, kept=kept)
    model.keep_activations(found)
    logger.info(
        "%d of %d layers keep their activations: %.0f KiB a token if all did",
        found,
        layers,
        kept.per_token / 1024,
    )


def _peak_of_pass(model: Any, tokens: int) -> int:
    """Return the bytes that a forward and backward pass takes on a GPU.

    Its gradients stay for the next pass, which so is measured without them.
    """
    import torch

    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    batch = collate(probe_sequences(tokens, model.max_length), model.device)
    model.logprobs(batch).sum().backward()
    return int(torch.cuda.max_memory_allocated() - before)


def probe_sequences(tokens: int, max_length: int) -> list[TokenSequence]:
    """Return sequences that make a row of so many tokens, half of each to be predicted."""
    length = min(tokens, max_length, 512)
    found = []
    for start in range(0, tokens, length):
        size = max(2, min(length, tokens - start))
        # First tokens that differ: a beginning that is shared would be computed once.
        ids = (start // length, *(1 + n % 7 for n in range(size - 1)))
        found.append(
            TokenSequence(
                prompt_token_ids=ids[: size // 2],
                completion_token_ids=ids[size // 2 :],
                generation_logprobs=(),
                temperature=1.0,
            )
        )
    return found


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
    held = torch.cuda.memory_allocated()
    cached = torch.cuda.memory_reserved() - held
    # This process may have a limit of its own (`limit_gpu_memory`), which the device knows not.
    allowed = int(torch.cuda.get_per_process_memory_fraction() * total)
    return min(free + cached, allowed - held), total


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
