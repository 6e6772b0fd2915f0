"""Names, folders and hub ids to folders; packages are verified and built once."""

from pathlib import Path

import pytest

from tuneloop.errors import InvalidRequest, NotFound
from tuneloop.models.catalog import (
    catalog,
    default_policy_model,
    default_reward_backbone,
)
from tuneloop.models.resolve import resolve


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


def test_the_catalog_pins_every_wheel() -> None:
    for model in catalog.values():
        assert len(model.wheel_sha256) == 64
        assert model.wheel_bytes > 0
        assert model.gguf is None or model.gguf in model.members.values()
