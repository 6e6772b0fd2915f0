"""The weight store on a disk and in a bucket: one suite."""

import dataclasses
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import fsspec.core
import pytest
import s3fs
from support.s3_server import S3, running_s3
from support.weights_parts import NOW, Place, make_manifest, make_weights

from tuneloop.errors import Conflict, NotFound, SettingsError, Unavailable, WeightsRefused
from tuneloop.weights.manifest import MANIFEST_NAME
from tuneloop.weights.signing import write_key_pair


@pytest.fixture(scope="module")
def s3_server() -> Iterator[S3]:
    with running_s3() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


def make_place(root: str, tmp_path: Path) -> Place:
    return Place(root=root, keys=write_key_pair(tmp_path / "keys"), cache=tmp_path / "cache")


@pytest.fixture(params=["local", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    roots = {
        "local": lambda: str(tmp_path / "store"),
        "memory": lambda: f"memory://bucket-{uuid.uuid4().hex}/weights",
        "s3": lambda: f"{request.getfixturevalue('s3').bucket()}/weights",
    }
    return make_place(roots[request.param](), tmp_path)


def test_a_published_version_is_fetched_whole(place: Place, tmp_path: Path) -> None:
    weights = make_weights(tmp_path / "w")
    reference = place.store().publish(weights, make_manifest())
    manifest, folder = place.store().fetch(reference)
    assert manifest.version == 1
    assert {f.name for f in manifest.files} == {"model.safetensors", "config.json"}
    for file in manifest.files:
        assert (folder / file.name).read_bytes() == (weights / file.name).read_bytes()
    assert place.store().fetch(reference)[1] == folder
    assert place.store().manifest("tuneloop", 1) == manifest


def test_versions_are_listed_in_order(place: Place, tmp_path: Path) -> None:
    store = place.store()
    assert store.versions("tuneloop") == []
    for version in (10, 2, 1):
        store.publish(make_weights(tmp_path / "w", version), make_manifest(version))
    assert store.versions("tuneloop") == [1, 2, 10]
    assert store.versions("other") == []


def test_a_deleted_version_is_gone_and_deleting_it_again_is_nothing(
    place: Place, tmp_path: Path
) -> None:
    store = place.store()
    for number in (1, 2):
        store.publish(make_weights(tmp_path / str(number)), make_manifest(number))
    store.delete("tuneloop", 1)
    store.delete("tuneloop", 1)
    assert store.versions("tuneloop") == [2]
    with pytest.raises(NotFound):
        store.manifest("tuneloop", 1)


def test_publishing_the_same_again_gives_the_same_reference(place: Place, tmp_path: Path) -> None:
    weights = make_weights(tmp_path / "w")
    first = place.store().publish(weights, make_manifest())
    later = dataclasses.replace(make_manifest(), created_time=NOW + timedelta(hours=1))
    assert place.store().publish(weights, later) == first


def test_other_content_under_the_same_version_is_a_conflict(place: Place, tmp_path: Path) -> None:
    reference = place.store().publish(make_weights(tmp_path / "a"), make_manifest())
    with pytest.raises(Conflict, match="version 1"):
        place.store().publish(make_weights(tmp_path / "b", 2.0), make_manifest())
    assert place.store().fetch(reference)[0].version == 1


def test_an_unknown_version_is_not_found(place: Place, tmp_path: Path) -> None:
    reference = place.store().publish(make_weights(tmp_path / "w"), make_manifest())
    absent = dataclasses.replace(
        reference, policy_version=2, uri=reference.uri.replace("00000001", "00000002")
    )
    with pytest.raises(NotFound):
        place.store().fetch(absent)
    with pytest.raises(NotFound, match="no version 2"):
        place.store().manifest("tuneloop", 2)


def test_files_without_a_manifest_are_no_version(place: Place, tmp_path: Path) -> None:
    files, root = fsspec.core.url_to_fs(place.root)
    leftover = f"{root}/tuneloop/00000001"
    files.makedirs(leftover, exist_ok=True)
    files.pipe_file(f"{leftover}/model.safetensors", b"cut short by a cra")
    assert place.store().versions("tuneloop") == []
    with pytest.raises(NotFound):
        place.store().manifest("tuneloop", 1)


def test_of_two_publishers_at_once_one_manifest_stays(place: Place, tmp_path: Path) -> None:
    weights = make_weights(tmp_path / "w")
    with ThreadPoolExecutor(4) as threads:
        manifests = [
            dataclasses.replace(make_manifest(), created_time=NOW + timedelta(hours=hour))
            for hour in range(4)
        ]
        found = set(
            threads.map(lambda manifest: place.store().publish(weights, manifest), manifests)
        )
    (reference,) = found
    assert place.store().fetch(reference)[0].created_time in {m.created_time for m in manifests}


@pytest.mark.parametrize("name", ["model.safetensors", MANIFEST_NAME])
def test_what_was_changed_in_the_store_is_refused(place: Place, tmp_path: Path, name: str) -> None:
    reference = place.store().publish(make_weights(tmp_path / "w"), make_manifest())
    files, root = fsspec.core.url_to_fs(place.root)
    path = f"{root}/tuneloop/00000001/{name}"
    data = files.cat_file(path)
    files.pipe_file(path, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(WeightsRefused, match="wrong SHA-256"):
        place.store().fetch(reference)
    assert list(place.cache.rglob("*.safetensors")) == []


def test_a_version_in_the_cache_is_not_copied_again(place: Place, tmp_path: Path) -> None:
    reference = place.store().publish(make_weights(tmp_path / "w"), make_manifest())
    _, folder = place.store().fetch(reference)
    files, root = fsspec.core.url_to_fs(place.root)
    files.rm(f"{root}/tuneloop/00000001/model.safetensors")
    assert place.store().fetch(reference)[1] == folder


def test_a_bucket_that_cannot_be_reached_is_unavailable(
    tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place("s3://absent/weights", tmp_path)
    with pytest.raises(Unavailable, match="weight store"):
        place.store().publish(make_weights(tmp_path / "w"), make_manifest())
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(Unavailable, match=r"weight store.*127\.0\.0\.1:1"):
        place.store().manifest("tuneloop", 1)
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_url_that_no_file_system_knows_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"weights_uri.*gopher"):
        make_place("gopher://weights", tmp_path).store()
