"""The checks that a version must pass before the engine loads it."""

from pathlib import Path

from tuneloop.errors import WeightsRefused
from tuneloop.policies import WeightsKind, WeightsReference
from tuneloop.weights import shapes
from tuneloop.weights.finite import check_finite
from tuneloop.weights.manifest import Manifest


def check_manifest(manifest: Manifest, reference: WeightsReference, kind: WeightsKind) -> None:
    """Raise `WeightsRefused` unless the manifest describes the version asked for, of this kind."""
    expected = {
        "policy": (manifest.policy, reference.policy),
        "version": (manifest.version, reference.policy_version),
        "kind": (manifest.kind.value, kind.value),
    }
    for name, (given, wanted) in expected.items():
        if given != wanted:
            raise WeightsRefused(f"manifest.json: {name} is {given}, not {wanted}", param=name)


def check_fits(manifest: Manifest, folder: Path, base_model: Path, max_lora_rank: int) -> None:
    """Raise `WeightsRefused` unless the version is of this base model and every tensor fits.

    Weights that are not finite are refused too.
    """
    if manifest.base_model_sha256 != shapes.base_model_sha256(base_model):
        raise WeightsRefused(
            f"base_model: the version was made from {manifest.base_model}, which is not the "
            "model served here",
            param="base_model_sha256",
        )
    if manifest.kind is WeightsKind.LORA:
        shapes.check_adapter(base_model, folder, max_lora_rank)
    else:
        shapes.check_full(base_model, folder)
    check_finite(folder)
