"""The data folder keeps its model and its secrets."""

from pathlib import Path

import pytest

from tuneloop.errors import FailedPrecondition
from tuneloop.policies import WeightsKind
from tuneloop.supervisor.data_dir import check_model, open_data_dir


def test_another_model_on_the_same_data_is_refused(
    tmp_path: Path, tiny_policy: Path, tiny_reward_model: Path
) -> None:
    data = open_data_dir(tmp_path)
    for _ in range(2):
        check_model(data, folder=tiny_policy, name="tiny", weights=WeightsKind.LORA)
    with pytest.raises(FailedPrecondition, match="does not fit other"):
        check_model(data, folder=tiny_reward_model, name="other", weights=WeightsKind.LORA)
    with pytest.raises(FailedPrecondition, match="full weights"):
        check_model(data, folder=tiny_policy, name="tiny", weights=WeightsKind.FULL)


def test_secrets_are_made_once_and_for_the_owner_only(tmp_path: Path) -> None:
    data = open_data_dir(tmp_path)
    secret = data.gateway_secret.read_text()
    assert len(secret) == 64
    assert open_data_dir(tmp_path).gateway_secret.read_text() == secret
    assert data.gateway_secret.stat().st_mode & 0o077 == 0
    assert data.private_key.stat().st_mode & 0o077 == 0
