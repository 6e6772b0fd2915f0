"""Publishing and fetching of versions: whole or absent, and verified before use."""

import dataclasses
import json
from pathlib import Path

import pytest
from support.weights_parts import Place, make_manifest, make_weights

from tuneloop.errors import FailedPrecondition, Unavailable, WeightsRefused
from tuneloop.policies import WeightsReference
from tuneloop.weights.filesystem import FilesystemStore
from tuneloop.weights.manifest import ManifestFile, to_json
from tuneloop.weights.signing import Signer, Verifier, write_key_pair


@pytest.fixture
def local(tmp_path: Path) -> Place:
    root = str(tmp_path / "store")
    return Place(root=root, keys=write_key_pair(tmp_path / "keys"), cache=tmp_path / "cache")


def published(local: Place, tmp_path: Path) -> tuple[WeightsReference, Path]:
    reference = local.store().publish(make_weights(tmp_path / "w"), make_manifest())
    return reference, Path(local.root) / "tuneloop" / "00000001"


def flip_byte(path: Path, position: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_changed_byte_is_refused(local: Place, tmp_path: Path) -> None:
    reference, folder = published(local, tmp_path)
    flip_byte(folder / "model.safetensors")
    with pytest.raises(WeightsRefused, match=r"model\.safetensors: wrong SHA-256"):
        local.store().fetch(reference)
    assert not [p for p in local.cache.rglob("*") if p.is_file()]


def test_a_cut_file_is_refused(local: Place, tmp_path: Path) -> None:
    reference, folder = published(local, tmp_path)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-5])
    with pytest.raises(WeightsRefused, match="bytes, the manifest says"):
        local.store().fetch(reference)


def test_a_missing_file_is_refused(local: Place, tmp_path: Path) -> None:
    reference, folder = published(local, tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(WeightsRefused, match=r"config\.json: missing"):
        local.store().fetch(reference)


def test_a_changed_manifest_is_refused(local: Place, tmp_path: Path) -> None:
    reference, folder = published(local, tmp_path)
    document = json.loads((folder / "manifest.json").read_text())
    document["metrics"] = {"reward": 1e9}
    (folder / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(WeightsRefused, match="wrong SHA-256"):
        local.store().fetch(reference)
    with pytest.raises(WeightsRefused, match="wrong signature"):
        local.store().manifest("tuneloop", 1)


def test_another_key_is_refused(local: Place, tmp_path: Path) -> None:
    reference, _ = published(local, tmp_path)
    foreign = dataclasses.replace(local, keys=write_key_pair(tmp_path / "foreign"))
    with pytest.raises(WeightsRefused, match="wrong signature"):
        foreign.store().fetch(reference)


def test_an_unsigned_manifest_is_refused(local: Place, tmp_path: Path) -> None:
    _, folder = published(local, tmp_path)
    unsigned = dataclasses.replace(local.store().manifest("tuneloop", 1), signature="")
    (folder / "manifest.json").write_bytes(to_json(unsigned))
    with pytest.raises(WeightsRefused, match="not signed"):
        local.store().manifest("tuneloop", 1)


def test_a_version_does_not_pass_for_another(local: Place, tmp_path: Path) -> None:
    reference, folder = published(local, tmp_path)
    folder.rename(folder.with_name("00000007"))
    moved = dataclasses.replace(
        reference, policy_version=7, uri=reference.uri.replace("00000001", "00000007")
    )
    with pytest.raises(WeightsRefused, match="version 1, not tuneloop version 7"):
        local.store().fetch(moved)


def test_a_place_outside_the_store_is_refused(local: Place, tmp_path: Path) -> None:
    reference, _ = published(local, tmp_path)
    for uri in ("file:///etc", f"{reference.uri}/../../../elsewhere", "s3://bucket/00000001"):
        with pytest.raises(WeightsRefused, match="where this process keeps"):
            local.store().fetch(dataclasses.replace(reference, uri=uri))
    with pytest.raises(WeightsRefused, match="policy name"):
        local.store().fetch(dataclasses.replace(reference, policy="../.."))


@pytest.mark.parametrize(
    "name",
    ["../evil.json", "/etc/x.json", "a/b.json", "model.bin", "x.pkl", ".hidden.json", "m.py", ""],
)
def test_a_signed_manifest_with_a_bad_name_is_refused(
    local: Place, tmp_path: Path, name: str
) -> None:
    _, folder = published(local, tmp_path)
    good = local.store().manifest("tuneloop", 1)
    bad = dataclasses.replace(
        good, files=(*good.files, ManifestFile(name=name, sha256="0" * 64, bytes=1))
    )
    signed = Signer.from_file(local.keys[0]).sign(bad)
    (folder / "manifest.json").write_bytes(to_json(signed))
    with pytest.raises(WeightsRefused):
        local.store().manifest("tuneloop", 1)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "optimizer.pt", "model.pkl", "code.py"])
def test_a_pickle_is_not_published(local: Place, tmp_path: Path, name: str) -> None:
    weights = make_weights(tmp_path / "w")
    (weights / name).write_bytes(b"\x80\x04.")
    with pytest.raises(WeightsRefused, match=name):
        local.store().publish(weights, make_manifest())
    assert local.store().versions("tuneloop") == []


def test_a_cut_safetensors_file_is_not_published(local: Place, tmp_path: Path) -> None:
    weights = make_weights(tmp_path / "w")
    data = (weights / "model.safetensors").read_bytes()
    for end in (4, 20, len(data) - 1):
        (weights / "model.safetensors").write_bytes(data[:end])
        with pytest.raises(WeightsRefused, match=r"model\.safetensors"):
            local.store().publish(weights, make_manifest())


def test_a_folder_without_weights_is_not_published(local: Place, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsRefused, match="no safetensors"):
        local.store().publish(tmp_path / "empty", make_manifest())
    with pytest.raises(WeightsRefused, match="no such folder"):
        local.store().publish(tmp_path / "absent", make_manifest())


def test_numbers_that_json_cannot_hold_are_refused(local: Place, tmp_path: Path) -> None:
    manifest = dataclasses.replace(make_manifest(), metrics={"loss": float("nan")})
    with pytest.raises(WeightsRefused, match="loss is nan"):
        local.store().publish(make_weights(tmp_path / "w"), manifest)


def test_what_a_crash_left_behind_is_not_a_version(local: Place, tmp_path: Path) -> None:
    leftover = Path(local.root) / "tuneloop" / ".publishing-00000001-dead"
    make_weights(leftover)
    assert local.store().versions("tuneloop") == []
    local.store().publish(make_weights(tmp_path / "w"), make_manifest())
    assert local.store().versions("tuneloop") == [1]
    assert not leftover.exists()


def test_a_corrupt_cached_copy_is_fetched_again(local: Place, tmp_path: Path) -> None:
    reference, folder = published(local, tmp_path)
    _, cached = local.store().fetch(reference)
    flip_byte(cached / "model.safetensors")
    _, again = local.store().fetch(reference)
    expected = (folder / "model.safetensors").read_bytes()
    assert (again / "model.safetensors").read_bytes() == expected


def test_the_cache_keeps_the_newest_versions(local: Place, tmp_path: Path) -> None:
    store = local.store()
    for version in range(1, 12):
        weights = make_weights(tmp_path / "w", version)
        _, folder = store.fetch(store.publish(weights, make_manifest(version)))
    assert folder.name.startswith("00000011")
    kept = sorted(int(path.name[:8]) for path in folder.parent.iterdir())
    assert kept == list(range(4, 12))


def test_a_store_that_fails_is_unavailable(local: Place, tmp_path: Path) -> None:
    Path(local.root).write_text("a file where the store should be")
    with pytest.raises(Unavailable, match="weight store"):
        local.store().publish(make_weights(tmp_path / "w"), make_manifest())


def test_a_process_without_keys_or_cache_says_so(local: Place, tmp_path: Path) -> None:
    reference, _ = published(local, tmp_path)
    reader = FilesystemStore(local.root, verifier=Verifier.from_file(local.keys[1]))
    with pytest.raises(FailedPrecondition, match="signing key"):
        reader.publish(make_weights(tmp_path / "w"), make_manifest(2))
    with pytest.raises(FailedPrecondition, match="cache folder"):
        reader.fetch(reference)
