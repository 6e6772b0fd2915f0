"""A weight store in a folder: local, or any file system fsspec knows (`s3://bucket/prefix`).

A version is `<root>/<policy>/<version:08d>/`. On a local disk it appears by one rename of a synced
folder; elsewhere by its manifest, which is written last and only if there is none. Readers copy a
version into their cache and verify the copy, so that what was verified is what is loaded.
"""

import contextlib
import dataclasses
import hashlib
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec.core
from fsspec.implementations.local import LocalFileSystem

from tuneloop.errors import (
    Conflict,
    FailedPrecondition,
    NotFound,
    SettingsError,
    Unavailable,
    WeightsRefused,
)
from tuneloop.files import rename_folder
from tuneloop.policies import WeightsKind, WeightsReference
from tuneloop.weights.files import check_names, describe_folder, verify_file
from tuneloop.weights.manifest import MANIFEST_NAME, Manifest, from_json, to_json
from tuneloop.weights.signing import Signer, Verifier

MAX_MANIFEST_BYTES = 1_000_000
CACHED_VERSIONS = {WeightsKind.LORA: 8, WeightsKind.FULL: 2}
"""Versions of a policy to keep in the cache; full weights are large."""
POLICY = re.compile(r"[A-Za-z0-9_-]{1,128}")
REMOTE_ERRORS = frozenset({"botocore.exceptions", "aiohttp.client_exceptions"})


class FilesystemStore:
    """Weights under `root`; publishing needs a signer, fetching a verifier and a cache folder."""

    def __init__(
        self,
        root: str,
        *,
        verifier: Verifier,
        cache_dir: Path | None = None,
        signer: Signer | None = None,
    ) -> None:
        self._fs, self._root = open_root(root)
        self._local = isinstance(self._fs, LocalFileSystem)
        self._verifier = verifier
        self._signer = signer
        self._cache_dir = cache_dir

    def publish(self, folder: Path, manifest: Manifest) -> WeightsReference:
        """See `WeightStore.publish`."""
        if self._signer is None:
            raise FailedPrecondition("this process has no signing key to publish weights with")
        if manifest.version < 1:
            raise WeightsRefused("version: published versions start at 1", param="version")
        for name, value in manifest.metrics.items():
            if not math.isfinite(value):
                raise WeightsRefused(f"metrics: {name} is {value}", param="metrics")
        target = self._version_path(manifest.policy, manifest.version)
        manifest = self._signer.sign(dataclasses.replace(manifest, files=describe_folder(folder)))
        with store_errors(target):
            existing = self._read_manifest(target)
            if existing is None:
                existing = self._store(folder, manifest, target)
        return self._reference(manifest, existing, target)

    def _store(self, folder: Path, manifest: Manifest, target: str) -> bytes:
        """Write the version; return its manifest, perhaps written by another publisher."""
        if not self._local:
            return self._store_remotely(folder, manifest, target)
        final = Path(target)
        partial = final.with_name(f".publishing-{final.name}-{uuid.uuid4().hex}")
        partial.mkdir(parents=True)
        try:
            for file in manifest.files:
                shutil.copyfile(folder / file.name, partial / file.name)
            (partial / MANIFEST_NAME).write_bytes(to_json(manifest))
            rename_folder(partial, final)
        except OSError:
            if not (final / MANIFEST_NAME).exists():
                raise
        finally:
            # Including what a crash left behind while publishing this version.
            for leftover in final.parent.glob(f".publishing-{final.name}-*"):
                shutil.rmtree(leftover, ignore_errors=True)
        return (final / MANIFEST_NAME).read_bytes()

    def _store_remotely(self, folder: Path, manifest: Manifest, target: str) -> bytes:
        """Write the version; files need a manifest to count, and the first one stays."""
        for file in manifest.files:
            self._fs.put_file(str(folder / file.name), f"{target}/{file.name}")
        document = to_json(manifest)
        try:
            self._fs.pipe_file(f"{target}/{MANIFEST_NAME}", document, mode="create")
        except FileExistsError:
            return self._read_manifest(target) or document
        return document

    def _reference(self, manifest: Manifest, stored: bytes, target: str) -> WeightsReference:
        """Return a reference to the stored version. Raises `Conflict` if it is not `manifest`'s."""
        there = from_json(stored)
        same = dataclasses.replace(
            there, created_time=manifest.created_time, signature=manifest.signature
        )
        if same != manifest:
            raise Conflict(
                f"{manifest.policy} version {manifest.version} exists with other content",
                param="version",
            )
        return WeightsReference(
            policy=manifest.policy,
            policy_version=manifest.version,
            uri=self._fs.unstrip_protocol(target),
            manifest_sha256=hashlib.sha256(stored).hexdigest(),
        )

    def fetch(self, reference: WeightsReference) -> tuple[Manifest, Path]:
        """See `WeightStore.fetch`."""
        if self._cache_dir is None:
            raise FailedPrecondition("this process has no cache folder to fetch weights into")
        source = self._version_path(reference.policy, reference.policy_version)
        if self._fs._strip_protocol(reference.uri).rstrip("/") != source:
            raise WeightsRefused(
                f"{reference.uri} is not {source}, where this process keeps that version",
                param="uri",
            )
        with store_errors(source):
            stored = self._read_manifest(source)
        if stored is None:
            raise NotFound(f"{reference.uri}: no such version", param="policy_version")
        if hashlib.sha256(stored).hexdigest() != reference.manifest_sha256:
            raise WeightsRefused(f"{MANIFEST_NAME}: wrong SHA-256", param="manifest_sha256")
        manifest = self._verified(stored, reference.policy, reference.policy_version)
        name = f"{reference.policy_version:08d}-{reference.manifest_sha256[:16]}"
        cached = self._cache_dir.absolute() / reference.policy / name
        if not is_whole(cached, manifest):
            self._copy(source, manifest, stored, cached)
        with store_errors(str(cached)):
            os.utime(cached)
        self._prune(cached.parent, keep=CACHED_VERSIONS[manifest.kind])
        return manifest, cached

    def _copy(self, source: str, manifest: Manifest, stored: bytes, cached: Path) -> None:
        """Copy a version into the cache, verify the copy, and rename it only then."""
        partial = cached.with_name(f".fetching-{cached.name}-{uuid.uuid4().hex}")
        try:
            with store_errors(source):
                partial.mkdir(parents=True)
                for file in manifest.files:
                    with contextlib.suppress(FileNotFoundError):
                        self._fs.get_file(f"{source}/{file.name}", str(partial / file.name))
                    verify_file(partial / file.name, file)
                (partial / MANIFEST_NAME).write_bytes(stored)
                shutil.rmtree(cached, ignore_errors=True)
                rename_folder(partial, cached)
        except Unavailable:
            # Another process of this machine may have been faster.
            if not is_whole(cached, manifest):
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _prune(self, folder: Path, keep: int) -> None:
        """Remove the cached versions that were fetched longest ago."""
        versions = [path for path in folder.iterdir() if not path.name.startswith(".")]
        versions.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for path in versions[keep:]:
            shutil.rmtree(path, ignore_errors=True)

    def manifest(self, policy: str, version: int) -> Manifest:
        """See `WeightStore.manifest`."""
        source = self._version_path(policy, version)
        with store_errors(source):
            stored = self._read_manifest(source)
        if stored is None:
            raise NotFound(f"{policy} has no version {version}", param="policy_version")
        return self._verified(stored, policy, version)

    def versions(self, policy: str) -> list[int]:
        """See `WeightStore.versions`."""
        folder = self._policy_path(policy)
        with store_errors(folder):
            self._fs.invalidate_cache()
            if not self._fs.exists(folder):
                return []
            names = [str(path).rsplit("/", 1)[-1] for path in self._fs.ls(folder, detail=False)]
            numbers = [int(name) for name in names if len(name) == 8 and name.isdigit()]
            return sorted(n for n in numbers if self._fs.exists(self._manifest_path(policy, n)))

    def delete(self, policy: str, version: int) -> None:
        """See `WeightStore.delete`."""
        source = self._version_path(policy, version)
        with store_errors(source):
            self._fs.invalidate_cache()
            # First: without it the rest is no version.
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._manifest_path(policy, version))
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm(source, recursive=True)

    def _verified(self, stored: bytes, policy: str, version: int) -> Manifest:
        """Parse and verify the manifest of a version."""
        manifest = from_json(stored)
        self._verifier.verify(manifest)
        if (manifest.policy, manifest.version) != (policy, version):
            raise WeightsRefused(
                f"{MANIFEST_NAME} is of {manifest.policy} version {manifest.version}, "
                f"not {policy} version {version}",
                param="version",
            )
        check_names(manifest.files)
        return manifest

    def _read_manifest(self, folder: str) -> bytes | None:
        path = f"{folder}/{MANIFEST_NAME}"
        try:
            data: bytes = self._fs.cat_file(path, start=0, end=MAX_MANIFEST_BYTES + 1)
        except FileNotFoundError:
            return None
        if len(data) > MAX_MANIFEST_BYTES:
            raise WeightsRefused(f"{path}: larger than {MAX_MANIFEST_BYTES} bytes")
        return data

    def _policy_path(self, policy: str) -> str:
        if POLICY.fullmatch(policy) is None:
            raise WeightsRefused(f"policy name {policy[:40]!r} is not allowed", param="policy")
        return f"{self._root.rstrip('/')}/{policy}"

    def _version_path(self, policy: str, version: int) -> str:
        return f"{self._policy_path(policy)}/{version:08d}"

    def _manifest_path(self, policy: str, version: int) -> str:
        return f"{self._version_path(policy, version)}/{MANIFEST_NAME}"


def open_root(root: str) -> tuple[Any, str]:
    """Return the file system of a folder or URL, and the path there. Raises `SettingsError`."""
    try:
        fs, path = fsspec.core.url_to_fs(root)
    except ImportError as error:
        hint = ': pip install "tuneloop[s3]"' if root.startswith(("s3:", "s3a:")) else ""
        raise SettingsError(f"weights_uri: {error}{hint}", param="weights_uri") from error
    except ValueError as error:
        raise SettingsError(f"weights_uri: {error}", param="weights_uri") from error
    return fs, str(path)


def is_whole(folder: Path, manifest: Manifest) -> bool:
    """Return whether a cached copy has every file of the manifest, unchanged."""
    try:
        for file in manifest.files:
            verify_file(folder / file.name, file)
    except (WeightsRefused, OSError):
        return False
    return True


@contextlib.contextmanager
def store_errors(where: str) -> Iterator[None]:
    """Raise `Unavailable` naming the place if the file system fails."""
    try:
        yield
    except Exception as error:
        # The S3 client has its own errors for a server that is down and for a missing key.
        if not isinstance(error, OSError) and type(error).__module__ not in REMOTE_ERRORS:
            raise
        raise Unavailable(f"weight store: {where}: {error}", retry_after=5) from error
