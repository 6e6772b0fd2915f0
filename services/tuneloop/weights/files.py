"""The files of a version: their allowed names and their hashes.

Only data is allowed: safetensors, JSON and tokenizer text. A pickle runs code when it is opened, so
a folder or manifest with one is refused.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tuneloop.errors import WeightsRefused
from tuneloop.weights.manifest import MANIFEST_NAME, ManifestFile
from tuneloop.weights.shapes import read_header

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
TOKENIZER_FILES = frozenset({"vocab.txt", "merges.txt", "tokenizer.model", "chat_template.jinja"})
NOT_WEIGHTS = frozenset({"README.md", ".gitattributes", "LICENSE", MANIFEST_NAME})
"""Files that other programs write beside weights; not published."""
CHUNK_BYTES = 1 << 20


def check_name(name: str) -> None:
    """Raise `WeightsRefused` unless a version may have a file of this name."""
    if NAME.fullmatch(name) is None:
        raise WeightsRefused(f"file name {name!r} is not allowed", param="files")
    data = name.endswith((".safetensors", ".json")) or name in TOKENIZER_FILES
    if not data or name == MANIFEST_NAME:
        raise WeightsRefused(
            f"{name}: a version holds only safetensors, JSON and tokenizer files", param="files"
        )


def check_names(files: Sequence[ManifestFile]) -> None:
    """Raise `WeightsRefused` unless the names are allowed, distinct, and include weights."""
    names = [file.name for file in files]
    for name in names:
        check_name(name)
    if len(set(names)) != len(names):
        raise WeightsRefused("manifest.json: files: a name appears twice", param="files")
    if not any(name.endswith(".safetensors") for name in names):
        raise WeightsRefused("manifest.json: files: no safetensors file", param="files")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_folder(folder: Path) -> tuple[ManifestFile, ...]:
    """List the files of `folder` to publish. Raises `WeightsRefused` for other files."""
    if not folder.is_dir():
        raise WeightsRefused(f"{folder}: no such folder", param="folder")
    files = []
    for path in sorted(folder.iterdir()):
        if path.name in NOT_WEIGHTS:
            continue
        check_name(path.name)
        if not path.is_file() or path.is_symlink():
            raise WeightsRefused(f"{path.name}: not a plain file", param="files")
        if path.suffix == ".safetensors":
            read_header(path)
        files.append(
            ManifestFile(name=path.name, sha256=sha256_of(path), bytes=path.stat().st_size)
        )
    check_names(files)
    return tuple(files)


def verify_file(path: Path, expected: ManifestFile) -> None:
    """Raise `WeightsRefused` unless the file has the size and the hash of the manifest."""
    if not path.is_file():
        raise WeightsRefused(f"{expected.name}: missing", param=expected.name)
    size = path.stat().st_size
    if size != expected.bytes:
        raise WeightsRefused(
            f"{expected.name}: {size} bytes, the manifest says {expected.bytes}",
            param=expected.name,
        )
    if sha256_of(path) != expected.sha256:
        raise WeightsRefused(f"{expected.name}: wrong SHA-256", param=expected.name)


def check_weights(folder: Path, sha256: Mapping[str, str]) -> None:
    """Raise `WeightsRefused` unless the safetensors files have these hashes by name.

    Without any hash, as for version 0, nothing is checked.
    """
    for path in list_weights(folder, sha256):
        check_hash(path, sha256, sha256_of(path) if sha256 else "")


def list_weights(folder: Path, sha256: Mapping[str, str]) -> list[Path]:
    """List the weights of a folder. Raises `WeightsRefused` unless they are those with hashes."""
    paths = sorted(folder.glob("*.safetensors"))
    known = {name for name in sha256 if name.endswith(".safetensors")}
    for name in sorted(known.symmetric_difference(path.name for path in paths) if known else ()):
        problem = "missing" if name in known else "not in the manifest"
        raise WeightsRefused(f"{name}: {problem}", param=name)
    return paths


def check_hash(path: Path, sha256: Mapping[str, str], found: str) -> None:
    """Raise `WeightsRefused` if the file's hash is known and another."""
    if sha256.get(path.name, found) != found:
        raise WeightsRefused(f"{path.name}: wrong SHA-256", param=path.name)
