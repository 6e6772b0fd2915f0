"""The supervisor's nats-server."""

from pathlib import Path

import pytest

from tuneloop.errors import SettingsError
from tuneloop.supervisor import nats


def test_a_missing_nats_server_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no program at .*nothing"):
        nats.find_binary(tmp_path / "nothing")
