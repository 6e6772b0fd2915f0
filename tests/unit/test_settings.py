"""Settings stop a process at start, by name, with the accepted values."""

from typing import Literal

import pytest
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from tuneloop.errors import SettingsError
from tuneloop.settings import load, load_or_exit


class ExampleSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="TUNELOOP_EXAMPLE_", env_nested_delimiter="__")

    engine: Literal["auto", "vllm"] = "auto"
    batch_size: int = Field(16, ge=1, description="samples in a step; at least 1")


def test_values_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELOOP_EXAMPLE_BATCH_SIZE", "4")
    assert load(ExampleSettings).batch_size == 4


def test_wrong_value_names_setting_and_accepted_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELOOP_EXAMPLE_BATCH_SIZE", "none")
    monkeypatch.setenv("TUNELOOP_EXAMPLE_ENGINE", "tpu")
    with pytest.raises(SettingsError) as caught:
        load(ExampleSettings)
    assert "TUNELOOP_EXAMPLE_BATCH_SIZE='none'" in caught.value.message
    assert "samples in a step; at least 1" in caught.value.message
    assert "'auto' or 'vllm'" in caught.value.message


def test_unknown_name_is_refused_with_the_nearest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELOOP_EXAMPLE_BATCHSIZE", "4")
    with pytest.raises(SettingsError, match="did you mean TUNELOOP_EXAMPLE_BATCH_SIZE"):
        load(ExampleSettings)


def test_load_or_exit_prints_and_exits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNELOOP_EXAMPLE_BATCH_SIZE", "0")
    with pytest.raises(SystemExit) as caught:
        load_or_exit(ExampleSettings)
    assert caught.value.code == 2
    assert "TUNELOOP_EXAMPLE_BATCH_SIZE='0'" in capsys.readouterr().err
