"""Checkpoints: what the learner resumes from, bit for bit.

A checkpoint is a folder of safetensors and JSON, nothing that runs code when it is read:

    checkpoint.json                 format, and size and SHA-256 of every other file; written last
    state.json                      position, schedules, random state
    random.safetensors              torch's random state
    <trainer>.model.safetensors     what is trained
    <trainer>.optimizer.safetensors its moments

It is written under a temporary name, flushed to disk and renamed: a folder with the final name is
whole. `load` checks every byte all the same.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from torch import Tensor

from tuneloop.errors import CorruptData
from tuneloop.learner.random_state import RandomState
from tuneloop.learner.trainer_state import TrainerState

FORMAT = "tuneloop-checkpoint"
FORMAT_VERSION = 1
INDEX = "checkpoint.json"
UNFINISHED = ".unfinished-"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointState:
    """Everything a checkpoint holds."""

    trainers: Mapping[str, TrainerState]
    """By name: `policy`, `reward_model`."""
    position: Mapping[str, Any] = field(default_factory=dict)
    """Where the loop was: step, epoch, whatever else is JSON."""
    random: RandomState = field(default_factory=RandomState.capture)


def save(folder: Path, state: CheckpointState) -> None:
    """Write a checkpoint at `folder`, which appears whole or not at all; replaces an older one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(UNFINISHED + folder.name)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    _write_tensors(unfinished / "random.safetensors", state.random.torch)
    for name, trainer in state.trainers.items():
        _write_tensors(unfinished / f"{name}.model.safetensors", trainer.model)
        _write_tensors(unfinished / f"{name}.optimizer.safetensors", trainer.optimizer)
    document = {
        "position": dict(state.position),
        "schedulers": {name: dict(t.scheduler) for name, t in state.trainers.items()},
        "random": state.random.to_document(),
    }
    (unfinished / "state.json").write_text(json.dumps(document))
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(unfinished.iterdir())
    }
    index = {"format": FORMAT, "format_version": FORMAT_VERSION, "files": files}
    (unfinished / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    for path in unfinished.iterdir():
        _flush(path)
    _flush(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    _flush(folder.parent)


def load(folder: Path) -> CheckpointState:
    """Read a checkpoint; the caller restores `random`.

    Raises:
        CorruptData: it is cut short, changed, foreign or not there; the message says which file.

    """
    files = _read_index(folder)
    contents = {name: _read_verified(folder / name, entry) for name, entry in files.items()}
    try:
        document = json.loads(contents["state.json"])
        trainers = {
            name: TrainerState(
                model=load_tensors(contents[f"{name}.model.safetensors"]),
                optimizer=load_tensors(contents[f"{name}.optimizer.safetensors"]),
                scheduler=scheduler,
            )
            for name, scheduler in document["schedulers"].items()
        }
        tensors = load_tensors(contents["random.safetensors"])
        random = RandomState.from_document(document["random"], tensors)
        return CheckpointState(trainers=trainers, position=document["position"], random=random)
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise CorruptData(f"checkpoint {folder.name}: {error!r}") from error


def latest(folder: Path) -> Path | None:
    """The newest checkpoint of `folder`, by name (`step-00000012`); None if there is none."""
    every = found(folder)
    return every[-1] if every else None


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints of `folder`, and what was never finished."""
    every = found(folder)
    for path in every[: max(0, len(every) - keep)]:
        # First out of the way, so that a crash leaves no half-deleted checkpoint behind.
        condemned = path.with_name(UNFINISHED + path.name)
        shutil.rmtree(condemned, ignore_errors=True)
        path.rename(condemned)
    for path in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def found(folder: Path) -> list[Path]:
    """The checkpoints of `folder`, oldest first; a damaged one is only told by `load`."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(p for p in folder.iterdir() if (p / INDEX).is_file() and p.name[0] != ".")
    return []


def _read_index(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        index = json.loads((folder / INDEX).read_bytes())
        known = (index["format"], index["format_version"]) == (FORMAT, FORMAT_VERSION)
        files: dict[str, dict[str, Any]] = dict(index["files"])
    except OSError as error:
        raise CorruptData(f"checkpoint {folder.name}: no readable {INDEX}: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptData(f"checkpoint {folder.name}: {INDEX} does not parse: {error}") from error
    if not known:
        raise CorruptData(f"checkpoint {folder.name}: not {FORMAT} version {FORMAT_VERSION}")
    for name in files:
        if Path(name).name != name or not name.endswith((".safetensors", ".json")):
            raise CorruptData(f"checkpoint {folder.name}: {INDEX} names a foreign file: {name!r}")
    return files


def _read_verified(path: Path, entry: Any) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorruptData(f"checkpoint {path.parent.name}: {error}") from error
    wanted = entry.get("bytes") if isinstance(entry, dict) else None
    if len(content) != wanted:
        sizes = f"{len(content)} bytes, not {wanted}"
        raise CorruptData(f"checkpoint {path.parent.name}: {path.name} has {sizes}")
    if hashlib.sha256(content).hexdigest() != entry.get("sha256"):
        raise CorruptData(f"checkpoint {path.parent.name}: {path.name} has another SHA-256")
    return content


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
