"""The folder of a run: what it was started with, what it resumes from, what it leaves behind.

settings.json     what decides the result; a run resumes only with the same
checkpoints/      to resume from
metrics.jsonl     a line for each step
abilities.jsonl   what the ability suite found, a line for each asking
unspoilt/         the last state without a drop in abilities, where the run stops at one
verdicts.jsonl    what a judge said; kept by --restart
tensorboard/      the same for TensorBoard
curves.png        the same as a picture
run.json          the summary; written last, so where it is the run is over
model.safetensors, config.json, tokenizer …     the version
adapter/          of a LoRA run, what was trained, as a PEFT folder
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tuneloop.errors import FailedPrecondition
from tuneloop.files import write_file

FOLDERS = (
    "checkpoints",
    "unspoilt",
    "tensorboard",
    "adapter",
    "grown",
    "version",
    "version.partial",
)
FILES = (
    "settings.json",
    "metrics.jsonl",
    "abilities.jsonl",
    "curves.png",
    "run.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.jinja",
)
"""Patterns of what a run writes beside its folders."""


class RunFolder:
    """Paths of a run, and what must be true before it starts."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.settings = self.root / "settings.json"
        self.checkpoints = self.root / "checkpoints"
        self.metrics = self.root / "metrics.jsonl"
        self.tensorboard = self.root / "tensorboard"
        self.curves = self.root / "curves.png"
        self.grown = self.root / "grown"
        self.abilities = self.root / "abilities.jsonl"
        self.unspoilt = self.root / "unspoilt"
        self.reference = self.checkpoints / "reference.safetensors"
        self.verdicts = self.root / "verdicts.jsonl"
        self.adapter = self.root / "adapter"
        self.summary = self.root / "run.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second process off the folder. Raises `FailedPrecondition`."""
        if self.root.exists() and not self.root.is_dir():
            raise FailedPrecondition(f"{self.root}: a file, not a folder", param="output")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise FailedPrecondition(f"{self.root}: {error}", param="output") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            problem = f"{self.root}: another run writes here; stop it, or choose another --output"
            raise FailedPrecondition(problem, param="output") from error
        finally:
            os.close(descriptor)

    def begin(self, wanted: Mapping[str, Any], *, restart: bool) -> None:
        """Record what the run is started with, or check that it has not changed.

        Raises `FailedPrecondition` saying what differs; `restart` discards the old run. So do
        other settings if there is nothing yet to resume.
        """
        known = read_json(self.settings)
        if known is None:
            # A judge is asked before the run begins.
            ours = {".lock", self.verdicts.name}
            if any(path.name not in ours for path in self.root.iterdir()):
                raise FailedPrecondition(
                    f"{self.root}: not empty, and holds no run to resume; choose another --output",
                    param="output",
                )
        else:
            differing = differences(known, wanted)
            if differing and self.begun and not restart:
                raise FailedPrecondition(
                    f"{self.root} holds a run with other settings: {'; '.join(differing)}. Give "
                    "the same ones to resume it, --restart to discard it, or another "
                    "--output",
                    param="output",
                )
            if not differing and not restart:
                return
            self.clear()
        write_json(self.settings, wanted)

    @property
    def begun(self) -> bool:
        """Whether there is something to resume, or a result."""
        saved = any(self.checkpoints.glob("step-*"))
        return saved or self.grown.exists() or self.summary.exists()

    def recorded_settings(self) -> Mapping[str, Any] | None:
        """Return the settings of the run that is to be resumed; None where there is none."""
        known = read_json(self.settings) if self.begun else None
        return None if known is None else known.get("settings")

    def finished(self) -> dict[str, Any] | None:
        """Return the summary of a run that is over."""
        return read_json(self.summary)

    def clear(self) -> None:
        """Remove what a run wrote; files of other kinds stay."""
        for name in FOLDERS:
            shutil.rmtree(self.root / name, ignore_errors=True)
        for pattern in FILES:
            for path in self.root.glob(pattern):
                path.unlink()


def differences(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return what differs, each as `name: then, now`."""
    found = []
    for name in sorted(known.keys() | wanted.keys()):
        before, now = known.get(name), wanted.get(name)
        if before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            found.extend(differences(before, now))
        elif name.endswith("sha256"):
            found.append(f"{name.removesuffix('_sha256')} has other content")
        else:
            found.append(f"{name} was {before}, is {now}")
    return found


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object; None where there is none that is whole."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON file, all or nothing, through to the disk."""
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    write_file(path, text.encode())
