"""What a family of models can do, found out by trying; and what is done to its layers.

Families differ in ways their configurations do not tell: whether attention accepts packed
rows, what happens to the logits after the head. Each is tried once at load on a few tokens, and
what does not come out right is not used.
"""

import functools
import inspect
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from tuneloop.errors import SettingsError
from tuneloop.learner.models.attention import PACKED
from tuneloop.learner.models.lm_head import LogitTransform
from tuneloop.learner.models.packing import TokenLayout, pack, pad
from tuneloop.learner.samples import TokenSequence
from tuneloop.models.reward_model import silence_loading

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
def take_packed_rows(model: Any) -> bool:
    """Give `model` packed attention if it then computes the same; return whether it does."""
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
        try:
            with silence_loading():
                model.set_attn_implementation(PACKED)
                found = run_body(model, packed)[packed.sources].float()
        except (TypeError, ValueError, NotImplementedError, RuntimeError, KeyError):
            found = torch.full_like(expected, torch.nan)
    off = torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected)
    # The probe is shorter than any window, so layers that keep theirs to themselves come out right.
    uses_window = not slides or any(packed.windows)
    if uses_window and float(off) < (1e-4 if model.device.type == "cpu" else 3e-2):
        return True
    with silence_loading():
        model.set_attn_implementation(before)
    return False


@torch.no_grad()
def find_logit_transform(model: Any) -> LogitTransform | None:
    """Return what the model does to its logits after the head; None if that is unknown."""
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1 / (
        getattr(config, "logits_scaling", None) or 1.0
    )
    cap = getattr(config, "final_logit_softcapping", None)
    layout = pad(_probe(model)[:1], model.device)
    states = run_body(model, layout)[layout.sources]
    logits = model.get_output_embeddings()(states).float()
    expected = run_whole(model, layout)[0].float()
    for transform in (LogitTransform(), LogitTransform(scale=float(scale), cap=cap)):
        z = logits * transform.scale
        if transform.cap is not None:
            z = torch.tanh(z / transform.cap) * transform.cap
        if torch.allclose(z, expected, rtol=1e-3, atol=1e-3):
            return transform
    return None


def _probe(model: Any) -> list[TokenSequence]:
    """Return two completions of one prompt and one of another."""
    vocabulary = int(model.get_input_embeddings().weight.shape[0])

    def tokens(*seeds: int) -> tuple[int, ...]:
        return tuple((7 * seed + 3) % vocabulary for seed in seeds)

    texts = [
        (tokens(1, 2, 3), tokens(4, 5, 6)),
        (tokens(1, 2, 3), tokens(7, 8)),
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


def checkpoint_layers(model: Any) -> None:
    """Compute each layer again in the backward pass instead of keeping its activations."""
    for layer in _layers(model, "gradient_checkpointing"):
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)


def compile_layers(model: Any) -> None:
    """Compile each layer; rows differ in length, so shapes are dynamic."""
    for layer in _layers(model, "compile"):
        layer.compile(dynamic=True)


def layers_of(model: Any) -> list[Any]:
    """Return the decoder layers; empty where the family does not say what its layers are."""
    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]


def _layers(model: Any, setting: str) -> list[Any]:
    layers = layers_of(model)
    if not layers:
        raise SettingsError(
            f"{setting}: {type(model).__name__} has no layers for it", param=setting
        )
    return layers
