"""Checkpoints: what the learner resumes from, bit for bit.

A checkpoint is a folder of safetensors and JSON, nothing that runs code when it is read:

    checkpoint.json     format, and size and SHA-256 of every other file; written last
    state.json          position, schedules, random state
    random.safetensors  torch's random state
    <trainer>/          what is trained, and the optimizer's moments, a few files from each rank

It is written under a temporary name, flushed to disk and renamed: a folder with the final name is
whole. Every byte is checked all the same before it is used. The first rank does all of it but the
trainers' folders (`checkpoint_shards`).
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file

from tuneloop.errors import CorruptData
from tuneloop.files import sync
from tuneloop.learner.trainer.checkpoint_shards import Digest, Saved, digest_of, problem_of
from tuneloop.learner.trainer.random_state import RandomState

FORMAT = "tuneloop-checkpoint"
FORMAT_VERSION = 2
INDEX = "checkpoint.json"
STATE = "state.json"
RANDOM = "random.safetensors"
UNFINISHED = ".unfinished-"


class Checkpointed(Protocol):
    """A trainer whose state can be kept and put back."""

    def stage_state(self) -> Callable[[Path], Saved]:
        """Copy what is to be kept into main memory.

        What is returned writes the tensors into a folder, through to the disk, and gives what else
        is to be kept. It may be called in any thread, while training goes on; of several ranks at
        once, in this one.
        """
        ...

    def read_state(self, folder: Path, saved: Saved) -> None:
        """Resume from there; raises `CorruptData`, and nothing has changed then."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk; its trainers' tensors are not read yet."""

    folder: Path
    trainers: Mapping[str, Saved]
    """By name: `policy`, `reward_model`."""
    position: Mapping[str, Any]
    """Where the loop was: step, epoch, whatever else is JSON."""
    random: RandomState

    def put_back(self, name: str, trainer: Checkpointed) -> None:
        """Restore a trainer and the random generators from this checkpoint.

        Raises:
            CorruptData: it does not fit, or is cut short, changed or foreign; nothing has changed.

        """
        if name not in self.trainers:
            raise CorruptData(f"checkpoint {self.folder.name}: not of the {name}")
        trainer.read_state(self.folder / name, self.trainers[name])
        self.random.restore()


def save(
    folder: Path, trainers: Mapping[str, Checkpointed], position: Mapping[str, Any] | None = None
) -> None:
    """Write a checkpoint at `folder`, which appears whole or not at all; replaces an older one."""
    stage(trainers, position)(folder)


def stage(
    trainers: Mapping[str, Checkpointed], position: Mapping[str, Any] | None = None
) -> Callable[[Path], None]:
    """Copy everything as it is now; what is returned does `save` with it, when and where it may."""
    random = RandomState.capture()
    staged = {name: trainer.stage_state() for name, trainer in trainers.items()}
    return partial(_write, staged, dict(position or {}), random)


def _write(
    staged: Mapping[str, Callable[[Path], Saved]],
    position: Mapping[str, Any],
    random: RandomState,
    folder: Path,
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(UNFINISHED + folder.name)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    saved = {name: write(unfinished / name) for name, write in staged.items()}
    save_file(dict(random.torch), unfinished / RANDOM)
    document = {
        "position": position,
        "schedulers": {name: dict(of.scheduler) for name, of in saved.items()},
        "random": random.to_document(),
    }
    (unfinished / STATE).write_text(json.dumps(document))
    files = {name: digest_of(unfinished / name) for name in (STATE, RANDOM)}
    files |= {f"{name}/{file}": d for name, of in saved.items() for file, d in of.files.items()}
    index = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "files": {name: asdict(digest) for name, digest in sorted(files.items())},
    }
    (unfinished / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    for name in (INDEX, STATE, RANDOM, *saved, "."):
        sync(unfinished / name)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    sync(folder.parent)


def load(folder: Path) -> Checkpoint:
    """Open a checkpoint.

    Raises:
        CorruptData: it is cut short, changed, foreign or not there; the message says which file.

    """
    files = _read_index(folder)
    try:
        document = json.loads(_read_verified(folder, STATE, files))
        tensors = load_tensors(_read_verified(folder, RANDOM, files))
        trainers = {
            name: Saved(scheduler=scheduler, files=_under(name, files))
            for name, scheduler in document["schedulers"].items()
        }
        return Checkpoint(
            folder=folder,
            trainers=trainers,
            position=document["position"],
            random=RandomState.from_document(document["random"], tensors),
        )
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise CorruptData(f"checkpoint {folder.name}: {error!r}") from error


def latest(folder: Path) -> Path | None:
    """Return the newest checkpoint of `folder` by name (`step-00000012`), or None."""
    checkpoints = found(folder)
    return checkpoints[-1] if checkpoints else None


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints of `folder`, and what was never finished."""
    checkpoints = found(folder)
    for path in checkpoints[: max(0, len(checkpoints) - keep)]:
        # First out of the way, so that a crash leaves no half-deleted checkpoint behind.
        condemned = path.with_name(UNFINISHED + path.name)
        shutil.rmtree(condemned, ignore_errors=True)
        path.rename(condemned)
    for path in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def found(folder: Path) -> list[Path]:
    """Return the checkpoints of `folder`, oldest first; damaged ones are among them."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(p for p in folder.iterdir() if (p / INDEX).is_file() and p.name[0] != ".")
    return []


def _read_index(folder: Path) -> dict[str, Digest]:
    try:
        index = json.loads((folder / INDEX).read_bytes())
        known = (index["format"], index["format_version"]) == (FORMAT, FORMAT_VERSION)
        files = {name: Digest(**entry) for name, entry in index["files"].items()} if known else {}
    except OSError as error:
        raise CorruptData(f"checkpoint {folder.name}: no readable {INDEX}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptData(f"checkpoint {folder.name}: {INDEX} does not parse: {error}") from error
    if not known:
        raise CorruptData(f"checkpoint {folder.name}: not {FORMAT} version {FORMAT_VERSION}")
    for name in files:
        path = Path(name)
        if ".." in path.parts or path.is_absolute() or path.suffix not in {".safetensors", ".json"}:
            raise CorruptData(f"checkpoint {folder.name}: {INDEX} names a foreign file: {name!r}")
    return files


def _under(name: str, files: Mapping[str, Digest]) -> dict[str, Digest]:
    """Return the entries of the index for a trainer's folder."""
    paths = {Path(path): digest for path, digest in files.items()}
    return {path.name: digest for path, digest in paths.items() if path.parent == Path(name)}


def _read_verified(folder: Path, name: str, files: Mapping[str, Digest]) -> bytes:
    if problem := problem_of(folder, name, files[name]):
        raise CorruptData(f"checkpoint {folder.name}: {problem}")
    return (folder / name).read_bytes()
