"""`tuneloop export`: a version as a plain model folder, its adapter merged."""

import shutil
from pathlib import Path

from tuneloop.errors import FailedPrecondition, WeightsRefused
from tuneloop.learner.files import write_folder
from tuneloop.learner.offline.versions import VersionFolder
from tuneloop.learner.trainer.base import Trainer
from tuneloop.models.reward_model import silence_loading

MODEL_FILES = ("*.json", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model")
"""What of a model's folder goes with its weights, unless saving writes it again."""


def merge_adapter(base: Path, adapter: Path, output: Path) -> None:
    """Write the model of `base` with `adapter` (a PEFT folder) merged in, ready to be loaded.

    The sum is taken in float32 and saved in the type the base is saved in. A quantized base is
    dequantized and the sum saved in bfloat16: the adapter was not trained to be rounded with it.
    Raises `WeightsRefused` where the adapter does not fit the base.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoConfig

    from tuneloop.models.causal_lm import load_causal_lm
    from tuneloop.weights.shapes import check_adapter, read_quantization

    check_adapter(base, adapter, max_rank=1 << 16)
    try:
        saved_type = AutoConfig.from_pretrained(base, local_files_only=True).dtype
        if read_quantization(base) is not None:
            saved_type = torch.bfloat16
        cpu = torch.device("cpu")
        with silence_loading():
            model = load_causal_lm(base, torch.float32, cpu, keep_packed=False)
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


ADAPTER = "adapter"
"""Folder of a LoRA version that holds what was trained, beside the merged weights."""


def write_version(trainer: Trainer, base: Path, folder: Path, *, adapter: bool) -> None:
    """Write what the service and plain transformers load; `adapter` says that it is merged."""
    if not adapter:
        trainer.save_weights(folder)
        return
    trainer.save_weights(folder / ADAPTER)
    merge_adapter(base, folder / ADAPTER, folder)


def export(version: VersionFolder, output: Path) -> None:
    """Write full weights, configuration and tokenizer; an adapter is merged in.

    `output` appears whole or not at all. Raises `FailedPrecondition` where it exists or
    cannot be written, `WeightsRefused` where adapter and base do not fit.
    """
    output = output.expanduser().absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FailedPrecondition(f"{output}: exists and is not empty", param="output")

    def write(folder: Path) -> None:
        if version.adapter:
            assert version.weights is not None
            merge_adapter(version.base, version.weights, folder)
            return
        for path in sorted(version.folder.glob("*.safetensors")):
            shutil.copyfile(path, folder / path.name)
        for path in sorted(version.folder.glob("*.safetensors.index.json")):
            shutil.copyfile(path, folder / path.name)
        copy_model_files(version.folder, folder)
        copy_model_files(version.base, folder)

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_folder(output, write)
    except OSError as error:
        raise FailedPrecondition(f"{output}: {error}", param="output") from error
