"""Converts a GGUF of a SmolLM model to a plain float32 safetensors folder with tokenizer."""

import gc
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

PAD_TOKEN = "<|endoftext|>"  # noqa: S105


def convert(source: Path, gguf_file: str, folder: Path) -> None:
    """Write `source/gguf_file` to `folder` as `save_pretrained` would.

    The values are the file's, dequantized.
    """
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf_file, dtype=torch.float32)
    config = loaded.config
    # It says how the file was read; if it stayed, loading would look for the GGUF again.
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    del loaded
    gc.collect()
    tokenizer = load_tokenizer(source, gguf_file, config.max_position_embeddings)
    for settings in (model.config, model.generation_config):
        settings.eos_token_id = tokenizer.eos_token_id
        settings.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_tokenizer(source: Path, gguf_file: str, max_length: int) -> Any:
    """Load the GGUF's tokenizer, corrected to match the original.

    Two things are missing from a GGUF: digits are split one by one before merging, and the padding
    token must not be the end of a turn, or a loss mask made from padding would hide the end.
    """
    tokenizer = AutoTokenizer.from_pretrained(
        source, gguf_file=gguf_file, model_max_length=max_length
    )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.pad_token = PAD_TOKEN
    return tokenizer
