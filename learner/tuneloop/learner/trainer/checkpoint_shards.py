"""A trainer's tensors on disk: every rank writes and reads its own part.

It is `torch.distributed.checkpoint` that does it, in files of safetensors whose headers say which
part of which tensor they hold: what some ranks wrote any other number of ranks can read, one alone
too. Ranks on several machines need one file system.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from tuneloop.errors import CorruptData
from tuneloop.learner.models.world import World
from tuneloop.learner.trainer.base import TrainerState

MODEL = "model."
OPTIMIZER = "optimizer."
FILE_OF = {"exp_avg": 2, "exp_avg_sq": 3}
"""Moments are in files of their own: a file is put together in memory before it is written."""

Shapes = Mapping[str, torch.Size]


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """Size and hash that a file must have."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """The part of a trainer's state that is not in its folder."""

    scheduler: Mapping[str, Any]
    files: Mapping[str, Digest]
    """By name, all of the folder."""


def save(folder: Path, state: TrainerState, world: World) -> Saved:
    """Write a state into `folder`, through to the disk; every rank calls it with its part.

    Raises `OSError` on every rank where one cannot write.
    """
    tensors = _tensors_of(state)
    writer = HuggingFaceStorageWriter(
        str(folder),
        fqn_to_index_mapping={n: FILE_OF.get(n.rpartition(".")[2], 1) for n in tensors},
        save_distributed=True,
    )
    try:
        with _alone_or_not():
            save_tensors(
                tensors,
                storage_writer=writer,
                process_group=world.commands,
                no_dist=world.size == 1,
            )
    except CheckpointException as error:
        raise OSError(f"checkpoint {folder}: {error}") from error
    mine = _mine((path.name for path in folder.iterdir()), world)
    parts = world.gather({name: digest_of(folder / name) for name in mine})
    return Saved(scheduler=state.scheduler, files={n: d for part in parts for n, d in part.items()})


def load(
    folder: Path, saved: Saved, blank: Callable[[Shapes, Shapes], TrainerState], world: World
) -> TrainerState:
    """Read a state; every rank calls it and gets its part.

    `blank` makes empty tensors, laid out as this rank has them, for shapes of model and optimizer.

    Raises:
        CorruptData: on every rank: a file is cut short, changed, foreign or not there.

    """
    found = [problem_of(folder, name, saved.files[name]) for name in _mine(saved.files, world)]
    if strangers := _names(folder) - saved.files.keys():
        found.append(f"{min(strangers)} is a foreign file")
    if problem := next((p for part in world.gather(found) for p in part if p), ""):
        raise CorruptData(f"checkpoint {folder.parent.name}: {folder.name}: {problem}")
    try:
        reader = HuggingFaceStorageReader(str(folder))
        stored = reader.read_metadata().state_dict_metadata
        shapes = {name: entry.size for name, entry in stored.items()}  # type: ignore[union-attr]
        state = blank(_under(MODEL, shapes), _under(OPTIMIZER, shapes))
        with _alone_or_not():
            load_tensors(
                _tensors_of(state),
                storage_reader=reader,
                process_group=world.commands,
                no_dist=world.size == 1,
            )
    except (CheckpointException, SafetensorError, OSError, KeyError, ValueError) as error:
        raise CorruptData(f"checkpoint {folder.parent.name}: {error!r}") from error
    return TrainerState(model=state.model, optimizer=state.optimizer, scheduler=saved.scheduler)


def digest_of(path: Path) -> Digest:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return Digest(bytes=file.tell(), sha256=sha256)


def problem_of(folder: Path, name: str, wanted: Digest) -> str:
    """Return what is wrong with a file; empty if nothing is."""
    path = folder / name
    try:
        size = path.stat().st_size
        if size != wanted.bytes:
            return f"{name} has {size} bytes, not {wanted.bytes}"
        return "" if digest_of(path) == wanted else f"{name} has another SHA-256"
    except OSError as error:
        return str(error)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _mine(names: Iterable[str], world: World) -> list[str]:
    """Return the files that this rank hashes."""
    return sorted(names)[world.rank :: world.size]


def _tensors_of(state: TrainerState) -> dict[str, Any]:
    """Return all tensors by name; loading fills them in place."""
    model = {MODEL + name: tensor for name, tensor in state.model.items()}
    return model | {OPTIMIZER + name: tensor for name, tensor in state.optimizer.items()}


def _under(prefix: str, shapes: Shapes) -> Shapes:
    return {n.removeprefix(prefix): shape for n, shape in shapes.items() if n.startswith(prefix)}


@contextmanager
def _alone_or_not() -> Iterator[None]:
    """Silence the warning that one process saves without a process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
