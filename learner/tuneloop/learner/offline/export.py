"""`tuneloop export`: a version as a plain model folder."""

import shutil
from pathlib import Path

from tuneloop.errors import FailedPrecondition
from tuneloop.learner.durable import write_folder
from tuneloop.learner.offline.merge import copy_model_files, merge_adapter
from tuneloop.learner.offline.versions import Version


def export(version: Version, output: Path) -> None:
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
