"""Settings of the gateway: what stops it at start."""

from pathlib import Path

import pytest

from tuneloop.errors import SettingsError
from tuneloop.gateway.keys.store import KeyFile, Limits, Scope, new_key
from tuneloop.gateway.settings import GatewaySettings
from tuneloop.settings import load

SECRET = {"secret": "sixteen bytes or more"}


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNELOOP_API_KEY", raising=False)


def test_loopback_needs_no_key() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3"):
        assert load(GatewaySettings, {}, host=host, **SECRET).key is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_a_network_needs_a_key(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="TUNELOOP_API_KEY"):
        load(GatewaySettings, {}, host=host, **SECRET)
    monkeypatch.setenv("TUNELOOP_API_KEY", "k")
    assert load(GatewaySettings, host=host, **SECRET).key == "k"


def test_the_key_of_the_process_wins_and_an_empty_one_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TUNELOOP_API_KEY", "")
    assert load(GatewaySettings, **SECRET).key is None
    monkeypatch.setenv("TUNELOOP_API_KEY", "shared")
    monkeypatch.setenv("TUNELOOP_GATEWAY_API_KEY", "own")
    assert load(GatewaySettings, **SECRET).key == "own"


def test_exactly_one_secret(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="TUNELOOP_GATEWAY_SECRET_FILE"):
        load(GatewaySettings, {})
    with pytest.raises(SettingsError, match="16 bytes"):
        load(GatewaySettings, {}, secret="short")
    with pytest.raises(SettingsError, match="No such file"):
        load(GatewaySettings, {}, secret_file=tmp_path / "none")
    file = tmp_path / "secret"
    file.write_bytes(b"0123456789abcdef\n")
    assert load(GatewaySettings, {}, secret_file=file).secret_bytes() == b"0123456789abcdef"
    with pytest.raises(SettingsError):
        load(GatewaySettings, {}, secret_file=file, **SECRET)


def test_a_misspelt_setting_is_named() -> None:
    with pytest.raises(SettingsError, match="did you mean TUNELOOP_GATEWAY_PORT"):
        load(GatewaySettings, {"TUNELOOP_GATEWAY_PROT": "1"}, **SECRET)


def test_a_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELOOP_GATEWAY_PORT", "eighty")
    with pytest.raises(SettingsError, match=r"TUNELOOP_GATEWAY_PORT='eighty'.*0 to 65535"):
        load(GatewaySettings, **SECRET)


def test_prices_name_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "TUNELOOP_GATEWAY_PRICES"
    monkeypatch.setenv(name, '{"tuneloop": {"input": 0.5, "output": 1.5}, "other": '
                             '{"input": 0, "output": 0}}')  # fmt: skip
    price = load(GatewaySettings, **SECRET).prices["tuneloop"]
    assert price.cost(2_000_000, 1_000_000) == 2.5
    for wrong in (
        '{"tunelop": {"input": 0.5, "output": 1.5}}',
        '{"tuneloop": {"input": -1, "output": 1.5}}',
        '{"tuneloop": {"input": 1}}',
        '{"tuneloop": {"input": 1, "output": 1, "cached": 0}}',
        '{"tuneloop": {"input": 1, "output": Infinity}}',
        "0.5",
    ):
        monkeypatch.setenv(name, wrong)
        with pytest.raises(SettingsError, match=r"(?i)prices"):
            load(GatewaySettings, **SECRET)


def test_the_key_is_not_shown() -> None:
    settings = GatewaySettings(api_key="very secret key", **SECRET)
    assert "very secret key" not in repr(settings)
    assert SECRET["secret"] not in repr(settings)


def test_the_gateway_refuses_a_network_without_an_active_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TUNELOOP_API_KEY", raising=False)
    file = KeyFile(tmp_path / "keys.json")
    values = SECRET | {"host": "0.0.0.0", "keys_file": file.path}
    with pytest.raises(SettingsError, match=f"--file {file.path}"):
        load(GatewaySettings, {}, **values)
    file.add(new_key("app", [Scope.INFER], Limits())[1])
    assert load(GatewaySettings, {}, **values).key is None
    with pytest.raises(SettingsError, match="require_key"):
        load(GatewaySettings, {}, require_key=False, **values)
    file.path.write_text("no json")
    with pytest.raises(SettingsError, match=str(file.path)):
        load(GatewaySettings, {}, **values)


def test_what_is_wrong_together_is_told_without_the_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TUNELOOP_API_KEY", raising=False)
    monkeypatch.setenv("TUNELOOP_GATEWAY_SECRET", "sixteen bytes or more")
    monkeypatch.setenv("TUNELOOP_GATEWAY_HOST", "0.0.0.0")
    with pytest.raises(SettingsError) as refused:
        load(GatewaySettings)
    assert "sixteen bytes" not in refused.value.message
    assert refused.value.message.startswith("host is 0.0.0.0")
