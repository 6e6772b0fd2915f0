"""Ed25519 signatures of manifests: only versions made by this service's learner are loaded.

The signature covers the manifest without its signature, which lists the SHA-256 of every file.
"""

import base64
import binascii
import dataclasses
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from tuneloop.errors import SettingsError, WeightsRefused
from tuneloop.files import write_file
from tuneloop.weights.manifest import Manifest, to_json

PRIVATE_KEY_NAME = "manifest_private.pem"
PUBLIC_KEY_NAME = "manifest_public.pem"


def signed_bytes(manifest: Manifest) -> bytes:
    """Return the bytes that the signature covers."""
    return to_json(dataclasses.replace(manifest, signature=""))


class Signer:
    """Signs manifests with the private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def from_file(cls, path: Path) -> "Signer":
        """Read an unencrypted PEM private key. Raises `SettingsError`."""
        try:
            key = load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise SettingsError(f"signing key {path}: {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise SettingsError(f"signing key {path}: not an Ed25519 private key")
        return cls(key)

    def sign(self, manifest: Manifest) -> Manifest:
        """Return `manifest` with its signature."""
        signature = base64.b64encode(self._key.sign(signed_bytes(manifest))).decode()
        return dataclasses.replace(manifest, signature=signature)


class Verifier:
    """Verifies manifests with the public key."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key

    @classmethod
    def from_file(cls, path: Path) -> "Verifier":
        """Read a PEM public key. Raises `SettingsError`."""
        try:
            key = load_pem_public_key(path.read_bytes())
        except (OSError, ValueError) as error:
            raise SettingsError(f"verify key {path}: {error}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise SettingsError(f"verify key {path}: not an Ed25519 public key")
        return cls(key)

    def verify(self, manifest: Manifest) -> None:
        """Raise `WeightsRefused` unless the signature is of this manifest and by this key."""
        where = f"manifest of {manifest.policy} version {manifest.version}"
        if not manifest.signature:
            raise WeightsRefused(f"{where}: not signed", param="signature")
        try:
            signature = base64.b64decode(manifest.signature, validate=True)
            self._key.verify(signature, signed_bytes(manifest))
        except (binascii.Error, ValueError, InvalidSignature) as error:
            raise WeightsRefused(f"{where}: wrong signature", param="signature") from error


def write_key_pair(folder: Path) -> tuple[Path, Path]:
    """Create a key pair in `folder`; return the private and the public key's path.

    An existing pair is kept, so that versions signed before a restart still verify.
    """
    private_path, public_path = folder / PRIVATE_KEY_NAME, folder / PUBLIC_KEY_NAME
    if private_path.exists() and public_path.exists():
        return private_path, public_path
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    # The public key last: a pair that a crash cut short is made again.
    write_file(private_path, private, mode=0o600)
    write_file(public_path, public, mode=0o644)
    return private_path, public_path
