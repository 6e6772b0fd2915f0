"""As whom a process connects to NATS, and how it knows the server."""

import importlib.util
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Files with secrets are read at each start; nothing set is an open server without TLS."""

    user: str = ""
    password_file: Path | None = None
    nkey_seed_file: Path | None = None
    credentials_file: Path | None = None
    """As the NATS tools write it: a JWT and the seed that signs for it."""
    tls_ca_file: Path | None = None
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None

    def options(self) -> dict[str, Any]:
        """Options of the nats-py client; raises `SettingsError`."""
        return self._identity() | self._tls()

    @property
    def secure(self) -> bool:
        """Whether connections are encrypted."""
        return self.tls_ca_file is not None or self.tls_cert_file is not None

    def _identity(self) -> dict[str, Any]:
        if self.password_file is not None:
            try:
                password = self.password_file.read_text().strip()
            except OSError as error:
                raise unreadable("nats_password_file", error) from error
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
                raise unreadable(f"nats_{name}", error) from error
            if importlib.util.find_spec("nkeys") is None:
                problem = f'nats_{name}: needs nkeys: pip install "tuneloop[nkeys]"'
                raise SettingsError(problem, param=f"nats_{name}")
            return {option: str(path)}
        return {}

    def _tls(self) -> dict[str, Any]:
        if not self.secure:
            return {}
        try:
            context = ssl.create_default_context(cafile=self.tls_ca_file)
            if self.tls_cert_file is not None:
                context.load_cert_chain(self.tls_cert_file, self.tls_key_file)
        except OSError as error:
            raise unreadable("nats_tls_ca_file, _cert_file, _key_file", error) from error
        # Before the server has proved who it is, nothing is believed and nothing secret is sent: an
        # attacker could else say that no TLS is wanted here.
        return {"tls": context, "tls_handshake_first": True}


def unreadable(name: str, error: OSError) -> SettingsError:
    """The error of a file that a setting names."""
    return SettingsError(f"{name}: {error}", param=name)
