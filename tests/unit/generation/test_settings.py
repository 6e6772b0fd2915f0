"""Settings of the generation process."""

import pytest

from tuneloop.errors import SettingsError
from tuneloop.generation.settings import GenerationSettings
from tuneloop.settings import load


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ENGINE", "tensorflow", "auto"),
        ("POLICY", "a.b", "letters"),
        ("MAX_LORA_RANK", "0", "1 to 512"),
        ("MODLE", "/x", "TUNELOOP_GENERATION_MODEL"),
    ],
)
def test_a_wrong_setting_is_named_with_what_it_accepts(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv("TUNELOOP_GENERATION_MODEL", "/models/x")
    monkeypatch.setenv(f"TUNELOOP_GENERATION_{name}", value)
    with pytest.raises(SettingsError, match=message):
        load(GenerationSettings)
