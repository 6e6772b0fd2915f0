"""`tuneloop export --weights`: a version as a plain model, an adapter, or a GGUF file."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneloop.errors import FailedPrecondition, WeightsRefused
from tuneloop.learner.files import write_folder
from tuneloop.learner.models.weight_files import ADAPTER_WEIGHTS
from tuneloop.learner.offline.card_facts import make_card
from tuneloop.learner.offline.gguf_model import GgufType, find_architecture, write_gguf
from tuneloop.learner.offline.model_card import CARD_NAME, UNKNOWN, ModelCard, WeightsForm
from tuneloop.learner.offline.run.folder import write_json
from tuneloop.learner.offline.versions import VersionFolder
from tuneloop.learner.trainer.base import Trainer
from tuneloop.models.resolve import HUB_ID
from tuneloop.models.reward_model import silence_loading
from tuneloop.weights.shapes import read_config, read_quantization

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
    from tuneloop.weights.shapes import check_adapter

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


def export(
    version: VersionFolder,
    output: Path,
    *,
    form: WeightsForm = "merged",
    kind: GgufType = "f16",
) -> None:
    """Write a version to a folder, with a model card; `kind` is of a GGUF's matrices.

    merged    full weights, configuration and tokenizer; an adapter is merged in
    adapter   a PEFT folder
    gguf      the full weights with the tokenizer as one file

    `output` appears whole or not at all. Raises `FailedPrecondition` where it exists, cannot be
    written, or there is no adapter; `WeightsRefused` where adapter and base do not fit, or
    llama.cpp cannot take the model.
    """
    output = output.expanduser().absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FailedPrecondition(f"{output}: exists and is not empty", param="output")
    if output.suffix == ".gguf":
        raise FailedPrecondition(
            f"{output}: name a folder, which gets the file and its model card", param="output"
        )
    if form == "adapter" and not version.adapter:
        raise FailedPrecondition(
            f"version {version.name} has no adapter, as it is full weights: give --format merged "
            "or gguf; of a LoRA run of tuneloop train, name the folder adapter in its output",
            param="format",
        )
    card = make_card(version)

    def write(folder: Path) -> None:
        file = f"{version.title}-{kind.upper()}.gguf" if form == "gguf" else ""
        match form:
            case "merged":
                write_merged(version, folder)
            case "adapter":
                copy_adapter(version, folder)
            case "gguf":
                convert(version, folder / file, kind, about_of(card))
        (folder / CARD_NAME).write_text(card.text(form, file), encoding="utf-8")

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_folder(output, write)
    except OSError as error:
        raise FailedPrecondition(f"{output}: {error}", param="output") from error


def write_merged(version: VersionFolder, folder: Path) -> None:
    """Write full weights, configuration and tokenizer; an adapter is merged in."""
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


def copy_adapter(version: VersionFolder, folder: Path) -> None:
    """Write an adapter as plain `peft` loads it, with the base model's name as it was given."""
    assert version.weights is not None
    shutil.copyfile(version.weights / ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS)
    config = read_config(version.weights, "adapter_config.json")
    hub = None if Path(version.base_name).is_dir() else HUB_ID.fullmatch(version.base_name)
    name, revision = (hub[1], hub[2]) if hub is not None else (version.base_name, None)
    config |= {"base_model_name_or_path": name, "revision": revision}
    write_json(folder / "adapter_config.json", config)


def convert(version: VersionFolder, path: Path, kind: GgufType, about: Mapping[str, Any]) -> None:
    """Write a version to a GGUF file, by way of a merged copy beside it."""
    import torch
    from transformers import AutoConfig

    from tuneloop.models.causal_lm import load_causal_lm

    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        merged = Path(scratch, "merged")
        merged.mkdir()
        # Before the work of merging.
        find_architecture(AutoConfig.from_pretrained(version.base), version.base)
        write_merged(version, merged)
        if read_quantization(merged) is not None:
            whole = load_causal_lm(merged, torch.float32, torch.device("cpu"), keep_packed=False)
            merged = Path(scratch, "dequantized")
            with silence_loading():
                whole.save_pretrained(merged)
            copy_model_files(version.base, merged)
        write_gguf(merged, path, kind=kind, about=about)


def about_of(card: ModelCard) -> dict[str, Any]:
    """Return what a GGUF says of its origin, by the names of `GGUFWriter`'s methods."""
    about: dict[str, Any] = {
        "name": card.title,
        "license": card.license.get("license", UNKNOWN),
        "tags": ["tuneloop", "text-generation", *card.algorithms],
    }
    if "version" in card.facts:
        about["version"] = f"v{card.facts['version']}"
    return about
