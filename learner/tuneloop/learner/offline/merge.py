"""An adapter merged into full weights: W + (alpha / r) · B · A for every layer it changes."""

import shutil
from pathlib import Path

from tuneloop.errors import WeightsRefused
from tuneloop.models.reward_model import quiet

MODEL_FILES = ("*.json", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model")
"""What of a model's folder goes with its weights, unless saving writes it anew."""


def merge_adapter(base: Path, adapter: Path, output: Path) -> None:
    """Write the model of `base` with `adapter` (a PEFT folder) merged in, ready to be loaded.

    The sum is taken in float32 and saved in the type the base is saved in. Raises `WeightsRefused`
    where the adapter does not fit the base.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM

    from tuneloop.weights.shapes import check_adapter

    check_adapter(base, adapter, max_rank=1 << 16)
    try:
        saved_type = AutoConfig.from_pretrained(base, local_files_only=True).dtype
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(
                base, dtype=torch.float32, local_files_only=True, use_safetensors=True
            )
            merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
            merged.to(saved_type or torch.float32).save_pretrained(output)
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsRefused(f"{adapter}: cannot be merged into {base}: {error}") from error
    copy_model_files(base, output)


def copy_model_files(base: Path, output: Path) -> None:
    """Copy tokenizer and other small files that `output` does not have."""
    output.mkdir(parents=True, exist_ok=True)
    for pattern in MODEL_FILES:
        for path in base.glob(pattern):
            weights_index = path.name.endswith(".index.json") or path.name.startswith("adapter_")
            run_record = path.name in ("run.json", "settings.json", "source.json", "manifest.json")
            if not weights_index and not run_record and not (output / path.name).exists():
                shutil.copyfile(path, output / path.name)
