"""Bytes that serving and training a model take on a GPU.

Weights are bfloat16 unless they are quantized, activations are bfloat16, and what the optimizer
holds is float32. The counts of activations are of the tensors that transformers' Qwen3 blocks save;
other Llama-like models save a little less.
"""

from tuneloop.gpus.quantization import PLAIN_BITS
from tuneloop.gpus.shapes import ModelShape

GIB = 1024**3
HALF, FULL = 2, 4
"""Bytes of a bfloat16 and of a float32."""
CONTEXT = GIB // 2
"""What CUDA, its libraries and the allocator keep of each process."""
GRAPHS = GIB
"""Of vLLM's CUDA graphs; an estimate."""
SCHEDULED_TOKENS = 8192
"""Tokens that vLLM computes in one pass."""
SCHEDULED_SEQUENCES = 256
HEAD_TOKENS = 1024
"""Tokens whose logits the learner holds at a time."""


def weight_bytes(shape: ModelShape) -> int:
    """Return the bytes of the weights as generation holds them."""
    stored = shape.quantization
    return _weight_bytes(shape, PLAIN_BITS if stored is None else stored.stored_bits)


def learner_weight_bytes(shape: ModelShape) -> int:
    """Return the bytes of the weights as the learner holds them.

    Of most formats that is bfloat16, since it computes with the dequantized values.
    """
    stored = shape.quantization
    return _weight_bytes(shape, PLAIN_BITS if stored is None else stored.learner_bits)


def _weight_bytes(shape: ModelShape, linear_bits: float) -> int:
    others = shape.parameters - shape.linear_parameters
    return others * HALF + int(shape.linear_parameters * linear_bits / 8)


def cache_bytes_per_token(shape: ModelShape) -> int:
    """Return the bytes of a token's keys and values in bfloat16."""
    return shape.layers * 2 * shape.keys * HALF


def workspace_bytes(shape: ModelShape) -> int:
    """Return what vLLM computes with: one pass through a block, and logits to sample from."""
    block = SCHEDULED_TOKENS * (4 * shape.hidden + 3 * shape.intermediate) * HALF
    logits = SCHEDULED_SEQUENCES * shape.vocabulary * FULL * 2
    return block + logits


def block_bytes_per_token(shape: ModelShape, lora_rank: int | None) -> int:
    """Return the bytes that one block saves of a token for its backward pass.

    Norms save float32, and each adapter a copy of its input; `lora_rank` None is full weights.
    """
    middle = 8 * shape.intermediate * shape.experts_per_token
    if lora_rank is None:
        return 16 * shape.hidden + middle + 10 * (shape.queries + shape.keys)
    return 18 * shape.hidden + middle + 10 * shape.queries + 8 * shape.keys + 14 * lora_rank


def activation_bytes(
    shape: ModelShape, tokens: int, *, checkpointing: bool, lora_rank: int | None
) -> int:
    """Return the bytes that a training pass over `tokens` saves for its backward pass.

    With checkpointing each block saves its input, and one block at a time is computed again.
    """
    block = block_bytes_per_token(shape, lora_rank)
    if checkpointing:
        return tokens * (shape.layers * HALF * shape.hidden + block)
    return tokens * shape.layers * block


def head_bytes(shape: ModelShape) -> int:
    """Return the bytes of the logits that are held at a time, and of their gradient."""
    return HEAD_TOKENS * shape.vocabulary * FULL * 2


def lora_training_bytes(shape: ModelShape, rank: int) -> int:
    """Return an adapter's weights, gradients and Adam's two moments, all in float32."""
    return shape.lora_parameters(rank) * 4 * FULL


def full_training_bytes(shape: ModelShape) -> int:
    """Return what training all weights holds besides them.

    Master weights, gradients and Adam's two moments in float32, and the reference in bfloat16.
    """
    return shape.parameters * (4 * FULL + HALF)


def open_batch_bytes(parameters: int) -> int:
    """Return what an open batch of the learner keeps of so many trained weights, in float32.

    Where they began, Adam's two moments there, and gradients (`tuneloop.learner.trainer`).
    """
    return parameters * 4 * FULL
