"""The identity with which a process connects to NATS, and how it verifies the server."""

import importlib.util
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Files with secrets, read at each start; with nothing set the server is open, without TLS."""

    user: str = ""
    password_file: Path | None = None
    nkey_seed_file: Path | None = None
    credentials_file: Path | None = None
    """As the NATS tools write it: a JWT and the seed that signs it."""
    tls_ca_file: Path | None = None
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None

    def options(self) -> dict[str, Any]:
        """Return the options of the nats-py client. Raises `SettingsError`."""
        return self._identity() | self._tls()

    @property
    def is_encrypted(self) -> bool:
        """Whether connections are encrypted."""
        return self.tls_ca_file is not None or self.tls_cert_file is not None

    def _identity(self) -> dict[str, Any]:
        if self.password_file is not None:
            try:
                password = self.password_file.read_text().strip()
            except OSError as error:
                raise file_error("nats_password_file", error) from error
            return {"user": self.user, "password": password}
        for name, option in (
            ("nkey_seed_file", "nkeys_seed"),
            ("credentials_file", "user_credentials"),
        ):
            path: Path | None = getattr(self, name)
            if path is None:
                continue
            try:
                path.read_bytes()
            except OSError as error:
                raise file_error(f"nats_{name}", error) from error
            if importlib.util.find_spec("nkeys") is None:
                problem = f'nats_{name}: needs nkeys: pip install "tuneloop[nkeys]"'
                raise SettingsError(problem, param=f"nats_{name}")
            return {option: str(path)}
        return {}

    def _tls(self) -> dict[str, Any]:
        if not self.is_encrypted:
            return {}
        try:
            context = ssl.create_default_context(cafile=self.tls_ca_file)
            if self.tls_cert_file is not None:
                context.load_cert_chain(self.tls_cert_file, self.tls_key_file)
        except OSError as error:
            raise file_error("nats_tls_ca_file, _cert_file, _key_file", error) from error
        # Without this the client trusts what the server says before TLS starts, and an attacker
        # could say that no TLS is needed.
        return {"tls": context, "tls_handshake_first": True}


def file_error(name: str, error: OSError) -> SettingsError:
    """Return the error for a file that a setting names."""
    return SettingsError(f"{name}: {error}", param=name)
