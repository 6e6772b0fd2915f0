"""How a process reaches NATS: settings that all four processes share."""

from pathlib import Path

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings

from tuneloop.bus.access import Access


class BusSettings(BaseSettings):
    """Part of each process's settings."""

    nats_url: str = Field(
        "nats://127.0.0.1:4222",
        description="URL of NATS; several of a cluster with commas between; tls:// with TLS",
    )
    nats_user: str = Field("", description="user of NATS, with nats_password_file")
    nats_password_file: Path | None = Field(None, description="file with that user's password")
    nats_nkey_seed_file: Path | None = Field(
        None, description="file with the seed of an nkey, in place of a password"
    )
    nats_credentials_file: Path | None = Field(
        None, description=".creds file of NATS (a JWT and its seed), in place of a password"
    )
    nats_tls_ca_file: Path | None = Field(
        None, description="PEM file of the authority that signed the NATS server's certificate"
    )
    nats_tls_cert_file: Path | None = Field(
        None, description="PEM file of this process's certificate for NATS, with its key"
    )
    nats_tls_key_file: Path | None = Field(None, description="PEM file of that certificate's key")
    nats_replicas: int = Field(
        1, ge=1, le=5, description="copies of each stream in a NATS cluster: 1, 3 or 5"
    )

    @model_validator(mode="after")
    def whole_access(self) -> "BusSettings":
        """Refuse an identity or TLS that is set only in part."""
        if bool(self.nats_user) != (self.nats_password_file is not None):
            raise ValueError("nats_user and nats_password_file: set both or neither")
        identities = ("nats_password_file", "nats_nkey_seed_file", "nats_credentials_file")
        if len([name for name in identities if getattr(self, name) is not None]) > 1:
            raise ValueError(f"{', '.join(identities)}: set at most one")
        if (self.nats_tls_cert_file is None) != (self.nats_tls_key_file is None):
            raise ValueError("nats_tls_cert_file and nats_tls_key_file: set both or neither")
        if self.nats_tls_cert_file is not None and self.nats_tls_ca_file is None:
            raise ValueError("nats_tls_ca_file: set it where nats_tls_cert_file is set")
        encrypted = all(
            url.strip().startswith(("tls://", "wss://")) for url in self.nats_url.split(",")
        )
        if encrypted != (self.nats_tls_ca_file is not None):
            raise ValueError("nats_url: begins with tls:// where nats_tls_ca_file is set, and only")
        if self.nats_replicas % 2 == 0:
            raise ValueError("nats_replicas: must be odd, for a majority")
        return self

    @property
    def nats_access(self) -> Access:
        """The identity to connect with."""
        return Access(
            user=self.nats_user,
            password_file=self.nats_password_file,
            nkey_seed_file=self.nats_nkey_seed_file,
            credentials_file=self.nats_credentials_file,
            tls_ca_file=self.nats_tls_ca_file,
            tls_cert_file=self.nats_tls_cert_file,
            tls_key_file=self.nats_tls_key_file,
        )
