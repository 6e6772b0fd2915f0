"""What a family of models can do, found out by trying; and what is done to its layers.

Families differ in ways their configurations do not tell: whether attention accepts packed
rows, what happens to the logits after the head. Each is tried once at load on a few tokens, and
what does not come out right is not used.
"""

import functools
import inspect
import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from tuneloop.errors import SettingsError
from tuneloop.learner.models.attention import PACKED, VARLEN
from tuneloop.learner.models.lm_head import float32_head
from tuneloop.learner.models.packing import TokenLayout, pack, pad
from tuneloop.learner.models.softmax.logits import LogitTransform, transformed
from tuneloop.learner.samples import TokenSequence
from tuneloop.models.reward_model import silence_loading

logger = logging.getLogger("tuneloop.learner.models")
VARIANTS = 64
"""Variants of a layer that dynamo may keep."""
COMPILE_REMEDY = (
    "the layers could not be compiled, so training is slower: it needs a C compiler (gcc) and "
    "TORCHINDUCTOR_CACHE_DIR and TRITON_CACHE_DIR on a file system without noexec; "
    "compile=false silences this: %s"
)
FLEX_REMEDY = (
    "no packing for %s, so prompts are computed for each answer and rows are padded: flex "
    "attention could not be built or run. It needs a C compiler (gcc) and TORCHINDUCTOR_CACHE_DIR "
    "and TRITON_CACHE_DIR on a file system without noexec; packing=false silences this: %s"
)
VARLEN_REMEDY = (
    "no varlen attention for %s, flex attention in its place; packed_attention=flex silences this: "
    "%s"
)
RUN_ERRORS = (ImportError, TypeError, ValueError, NotImplementedError, RuntimeError, KeyError)
"""What a model raises that has no use for an attention, or a kernel that does not run."""
PACKABLE_LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of layers that know of other tokens only what attention tells them."""


def run_body(model: Any, layout: TokenLayout) -> Tensor:
    """Return (R·T, H), the states before the head."""
    output = model.base_model(**inputs_of(layout), use_cache=False)
    return torch.flatten(output.last_hidden_state, 0, 1)


def run_whole(model: Any, layout: TokenLayout) -> tuple[Tensor, Tensor]:
    """Return (N, V) logits of what `layout.sources` predict, and (N, H) the states there."""
    kept: dict[str, Any] = {}
    one_row = layout.input_ids.shape[0] == 1
    if one_row and "logits_to_keep" in inspect.signature(model.forward).parameters:
        kept = {"logits_to_keep": layout.sources}
    with float32_head(model.get_output_embeddings()):
        output = model(**inputs_of(layout), use_cache=False, output_hidden_states=True, **kept)
    hidden = output.hidden_states[-1].flatten(0, 1)[layout.sources]
    logits = output.logits.flatten(0, 1)
    return logits if kept else logits[layout.sources], hidden


def inputs_of(layout: TokenLayout) -> dict[str, Any]:
    """Return the arguments that put `layout` before a model of transformers."""
    if layout.visible is not None:
        return {
            "input_ids": layout.input_ids,
            "position_ids": layout.position_ids,
            "attention_mask": layout.visible,
        }
    if not layout.segments:
        return {"input_ids": layout.input_ids}
    # A mask of four dimensions is handed on as it is: none is made for the row, which would be as
    # large as its square.
    unused = torch.zeros((1, 1, 1, 1), device=layout.input_ids.device)
    return {
        "input_ids": layout.input_ids,
        "position_ids": layout.position_ids,
        "attention_mask": unused,
        "layout": layout,
    }


@torch.no_grad()
def take_packed_rows(model: Any, kernel: str = "flex") -> bool:
    """Give `model` packed attention if it then computes the same; return whether it does.

    `kernel` is that of a GPU; without success flex attention is tried in its place.
    """
    config = model.config.get_text_config()
    if not set(getattr(config, "layer_types", None) or ()) <= PACKABLE_LAYERS:
        return False
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    slides = slides or bool(getattr(config, "sliding_window", None))
    before = config._attn_implementation
    packed = pack(_probe(model), model.device)
    padded = pad(_probe(model), model.device)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
        expected = run_body(model, padded)[padded.sources].float()
        for name in (VARLEN, PACKED) if kernel == "varlen" else (PACKED,):
            off = _difference(model, packed, expected, name)
            # The probe is shorter than any window: layers that keep theirs to themselves come out
            # right.
            uses_window = not slides or any(packed.windows)
            if uses_window and off < (1e-4 if model.device.type == "cpu" else 3e-2):
                return True
            if name == VARLEN and not math.isnan(off):
                logger.warning(VARLEN_REMEDY, type(model).__name__, f"states differ by {off:.1%}")
            packed.windows.clear()
    with silence_loading():
        model.set_attn_implementation(before)
    return False


def _difference(model: Any, packed: TokenLayout, expected: Tensor, name: str) -> float:
    """Return how far a packed row's states are off with an attention; NaN if it does not run."""
    try:
        with silence_loading():
            model.set_attn_implementation(name)
        found = run_body(model, packed)[packed.sources].float()
    except RUN_ERRORS as error:
        if name == VARLEN:
            logger.warning(VARLEN_REMEDY, type(model).__name__, error)
        elif model.device.type != "cpu" or isinstance(error, TorchDynamoException):
            logger.error(FLEX_REMEDY, type(model).__name__, error)
        return math.nan
    return float(torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected))


@torch.no_grad()
def find_logit_transform(model: Any) -> LogitTransform | None:
    """Return what the model does to its logits after the head; None if that is unknown.

    The head's own logits are replaced by others, in float32 and as large as a trained model's: a
    cap leaves small ones as they are, and in bfloat16 what it does drowns in rounding.
    """
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1 / (
        getattr(config, "logits_scaling", None) or 1.0
    )
    cap = getattr(config, "final_logit_softcapping", None)
    layout = pad(_probe(model)[:1], model.device)
    states = run_body(model, layout)[layout.sources]
    seen: list[Tensor] = []

    def replace_logits(head: Any, given: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        spread = torch.linspace(-1, 1, logits.numel(), device=logits.device)
        seen.extend((given[0], spread.mul(3 * (cap or 10.0) / float(scale)).view(logits.shape)))
        return seen[-1]

    hook = model.get_output_embeddings().register_forward_hook(replace_logits)
    try:
        expected = run_whole(model, layout)[0]
    finally:
        hook.remove()
    if len(seen) != 2:
        return None
    before, logits = (_at_sources(t.flatten(0, -2), layout) for t in seen)
    near = 1e-3 if states.dtype in (torch.float32, torch.float64) else 2e-2
    if not torch.allclose(before.float(), states.float(), rtol=near, atol=near):
        return None
    for transform in (LogitTransform(), LogitTransform(scale=float(scale), cap=cap)):
        if torch.allclose(transformed(logits, transform), expected.float(), rtol=1e-3, atol=1e-3):
            return transform
    return None


def _at_sources(flat: Tensor, layout: TokenLayout) -> Tensor:
    """Return (N, …) rows of (R·T, …), or of what was cut to them already."""
    return flat if len(flat) == len(layout.sources) else flat[layout.sources]


def _probe(model: Any) -> list[TokenSequence]:
    """Return two completions of one prompt, one of a prompt that goes on from it, and another."""
    vocabulary = int(model.get_input_embeddings().weight.shape[0])

    def tokens(*seeds: int) -> tuple[int, ...]:
        return tuple((7 * seed + 3) % vocabulary for seed in seeds)

    texts = [
        (tokens(1, 2, 3), tokens(4, 5, 6)),
        (tokens(1, 2, 3), tokens(7, 8)),
        (tokens(1, 2, 3, 4), tokens(14, 15)),
        (tokens(9, 10), tokens(11, 12, 13)),
    ]
    return [
        TokenSequence(
            prompt_token_ids=prompt,
            completion_token_ids=completion,
            generation_logprobs=(),
            temperature=1.0,
        )
        for prompt, completion in texts
    ]


def prepare_layers(
    model: Any, device: torch.device, *, compile: bool | None, checkpointing: bool | None
) -> tuple[bool, bool]:
    """Compile the layers and checkpoint them; None: on a GPU.

    Returns whether activations are computed again in the backward pass, and whether those of some
    layers may be kept where there is room for them.
    """
    on_gpu = device.type == "cuda"
    if on_gpu if compile is None else compile:
        compile_layers(model, needed=compile is not None)
    saves = on_gpu if checkpointing is None else checkpointing
    checkpoints = saves and checkpoint_layers(model, needed=checkpointing is not None)
    return checkpoints, checkpoints and checkpointing is None


def checkpoint_layers(model: Any, *, needed: bool = True, kept: int = 0) -> bool:
    """Compute each layer again in the backward pass instead of keeping its activations.

    The last `kept` layers keep theirs; the backward pass frees them before it needs room to compute
    others again. Call it after `compile_layers`: dynamo runs what is around a checkpoint as it is,
    so a compiled layer belongs inside. Returns whether the family has layers for it; raises
    `SettingsError` where it has none and it is `needed`.

    What is chosen is layers, not operations (`create_selective_checkpoint_contexts`): that sees
    nothing of what inductor compiled, and would compute its products again as well. A compiled
    layer without a checkpoint is selective by itself: what is cheap is computed again from what
    products and attention gave.
    """
    layers = _layers(model, "gradient_checkpointing", needed=needed)
    for number, layer in enumerate(layers):
        forward = layer.forward
        if isinstance(forward, functools.partial) and forward.func is checkpoint:
            forward = forward.args[0]
        keeps = number >= len(layers) - kept
        checkpointed = functools.partial(checkpoint, forward, use_reentrant=False)
        layer.forward = forward if keeps else checkpointed
    return bool(layers)


def compile_layers(model: Any, *, needed: bool = True, backend: str = "inductor") -> None:
    """Compile each layer; rows differ in length, so shapes are dynamic.

    The layers have one code, and dynamo keeps what it compiled by code: with the reference's
    passes, kinds of layers and tails of one token there are more variants than it keeps by itself,
    and past the limit it would go on without compiling.
    """
    import torch._dynamo

    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, VARIANTS)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 8 * VARIANTS)
    for layer in _layers(model, "compile", needed=needed):
        layer.forward = CompiledForward(layer.forward, backend)


class CompiledForward:
    """A layer's forward pass, compiled; if it cannot be, an error says so and it runs as it was."""

    failed = False
    """Whether one could not be compiled; the others are then not tried."""

    def __init__(self, forward: Callable[..., Any], backend: str) -> None:
        """Compile at the first call."""
        self._eager = forward
        self._compiled = torch.compile(forward, dynamic=True, backend=backend)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Run the layer."""
        if not CompiledForward.failed:
            try:
                return self._compiled(*args, **named)
            except TorchDynamoException as error:
                CompiledForward.failed = True
                logger.error(COMPILE_REMEDY, error)
        return self._eager(*args, **named)


def layers_of(model: Any) -> list[Any]:
    """Return the decoder layers; empty where the family does not say what its layers are."""
    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]


def _layers(model: Any, setting: str, *, needed: bool) -> list[Any]:
    layers = layers_of(model)
    if not layers and needed:
        raise SettingsError(
            f"{setting}: {type(model).__name__} has no layers for it", param=setting
        )
    if not layers:
        logger.warning("no %s: %s has no layers for it", setting, type(model).__name__)
    return layers
