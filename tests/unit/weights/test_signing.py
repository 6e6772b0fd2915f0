"""Keys, signatures, and the manifest they are over."""

import dataclasses
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.errors import SettingsError, WeightsRefused
from tuneloop.policies import WeightsKind
from tuneloop.weights.manifest import Manifest, ManifestData, ManifestFile, from_json, to_json
from tuneloop.weights.signing import Signer, Verifier, write_key_pair

names = st.text(st.characters(codec="utf-8"), max_size=20)
counts = st.integers(0, 2**53)
times = st.datetimes(
    datetime(2000, 1, 1),
    datetime(2200, 1, 1),
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=2))]),
)
files = st.builds(ManifestFile, name=names, sha256=names, bytes=counts)
data = st.builds(
    ManifestData,
    samples=st.dictionaries(names, counts, max_size=3),
    first_step=counts,
    last_step=counts,
    oldest_feedback_time=st.none() | times,
    newest_feedback_time=st.none() | times,
)
manifests = st.builds(
    Manifest,
    policy=names,
    version=counts,
    parent=counts,
    kind=st.sampled_from(WeightsKind),
    base_model=names,
    base_model_sha256=names,
    algorithms=st.lists(names, max_size=3).map(tuple),
    metrics=st.dictionaries(names, st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    data=data,
    files=st.lists(files, max_size=3).map(tuple),
    created_time=times,
    signature=names,
)


@given(manifests)
def test_a_manifest_survives_json(manifest: Manifest) -> None:
    document = to_json(manifest)
    assert from_json(document) == manifest
    assert to_json(from_json(document)) == document


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_key_pair(tmp_path_factory.mktemp("keys"))


def test_a_signature_survives_json(keys: tuple[Path, Path]) -> None:
    signer, verifier = Signer.from_file(keys[0]), Verifier.from_file(keys[1])

    @given(manifests)
    def check(manifest: Manifest) -> None:
        verifier.verify(from_json(to_json(signer.sign(manifest))))

    check()


def test_every_field_is_signed(keys: tuple[Path, Path]) -> None:
    signer, verifier = Signer.from_file(keys[0]), Verifier.from_file(keys[1])
    now = datetime(2026, 1, 1, tzinfo=UTC)
    signed = signer.sign(
        Manifest(
            policy="p",
            version=1,
            parent=0,
            kind=WeightsKind.LORA,
            base_model="b",
            base_model_sha256="s",
            files=(),
            created_time=now,
        )
    )
    changes = {
        "policy": "q",
        "version": 2,
        "parent": 1,
        "kind": WeightsKind.FULL,
        "base_model": "c",
        "base_model_sha256": "t",
        "algorithms": ("kto",),
        "metrics": {"a": 1.0},
        "data": ManifestData(first_step=1),
        "files": (ManifestFile(name="x.json", sha256="0", bytes=1),),
        "created_time": now + timedelta(seconds=1),
        "signature": "AAAA",
    }
    assert set(changes) == {field.name for field in dataclasses.fields(Manifest)}
    verifier.verify(signed)
    for field, value in changes.items():
        with pytest.raises(WeightsRefused, match="wrong signature"):
            verifier.verify(dataclasses.replace(signed, **{field: value}))


def test_a_key_pair_is_private_and_kept(tmp_path: Path) -> None:
    private, public = write_key_pair(tmp_path / "keys")
    assert private.stat().st_mode & 0o777 == 0o600
    before = private.read_bytes(), public.read_bytes()
    assert write_key_pair(tmp_path / "keys") == (private, public)
    assert (private.read_bytes(), public.read_bytes()) == before


def test_a_pair_cut_short_is_made_again(tmp_path: Path) -> None:
    private, public = write_key_pair(tmp_path)
    public.unlink()
    write_key_pair(tmp_path)
    Signer.from_file(private)
    Verifier.from_file(public)


def test_wrong_key_files_are_named(keys: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.pem"):
        Signer.from_file(tmp_path / "absent.pem")
    with pytest.raises(SettingsError, match=r"manifest_public\.pem"):
        Signer.from_file(keys[1])
    with pytest.raises(SettingsError, match=r"manifest_private\.pem"):
        Verifier.from_file(keys[0])


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (b"", "document"),
        (b"{}", "policy"),
        (b'{"policy": "p", "extra": 1}', "version"),
        (b"\xff", "document"),
    ],
)
def test_a_manifest_that_does_not_parse_names_its_field(document: bytes, field: str) -> None:
    with pytest.raises(WeightsRefused, match=r"manifest\.json") as refused:
        from_json(document)
    assert refused.value.param == field
