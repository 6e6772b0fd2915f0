"""TLS between the processes: certificates of servers and, if required, of clients."""

from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tuneloop.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """A process's certificate and the authority that it trusts, as PEM; either may be missing."""

    ca: bytes | None = None
    cert: bytes | None = None
    key: bytes | None = None

    @classmethod
    def from_files(cls, *, ca: Path | None, cert: Path | None, key: Path | None) -> "Tls":
        """Read and check the files. Raises `SettingsError` naming the setting."""
        tls = cls(
            ca=_read("grpc_tls_ca_file", ca),
            cert=_read("grpc_tls_cert_file", cert),
            key=_read("grpc_tls_key_file", key),
        )
        for name, pem in (("grpc_tls_ca_file", tls.ca), ("grpc_tls_cert_file", tls.cert)):
            if pem is not None:
                try:
                    x509.load_pem_x509_certificates(pem)
                except ValueError as error:
                    problem = f"{name}: not a PEM certificate: {error}"
                    raise SettingsError(problem, param=name) from error
        tls._check_key()
        return tls

    def _check_key(self) -> None:
        if self.cert is None or self.key is None:
            return
        name = "grpc_tls_key_file"
        try:
            key = load_pem_private_key(self.key, password=None)
        except (ValueError, TypeError) as error:
            problem = f"{name}: not an unencrypted PEM key: {error}"
            raise SettingsError(problem, param=name) from error
        if x509.load_pem_x509_certificates(self.cert)[0].public_key() != key.public_key():
            raise SettingsError(f"{name}: not the key of grpc_tls_cert_file", param=name)

    def server_credentials(self) -> grpc.ServerCredentials:
        """Return a server's credentials; with an authority only clients that it signed may call."""
        assert self.cert is not None
        assert self.key is not None
        return grpc.ssl_server_credentials(
            [(self.key, self.cert)],
            root_certificates=self.ca,
            require_client_auth=self.ca is not None,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Return a client's credentials: the authority must vouch for the server's name."""
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca, private_key=self.key, certificate_chain=self.cert
        )


def _read(name: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{name}: {error}", param=name) from error
