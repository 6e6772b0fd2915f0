"""TLS between the processes: settings that all four processes share, and those of servers."""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings

from tuneloop.errors import SettingsError
from tuneloop.ports import is_loopback
from tuneloop.rpc.access import Role

if TYPE_CHECKING:
    from tuneloop.rpc.tls import Tls


class RpcSettings(BaseSettings):
    """Part of each process's settings; with nothing set gRPC has no TLS."""

    serves_grpc: ClassVar[bool] = False
    calls_grpc: ClassVar[bool] = False

    grpc_tls_cert_file: Path | None = Field(
        None, description="PEM file of this process's certificate for gRPC, with its key"
    )
    grpc_tls_key_file: Path | None = Field(None, description="PEM file of that certificate's key")
    grpc_tls_ca_file: Path | None = Field(
        None,
        description="PEM file of the authority of the other processes' certificates: a server "
        "takes only clients that show one, a client only such servers",
    )

    grpc_token_file: Path | None = Field(
        None,
        description="file with a secret that the processes share: servers refuse calls without it",
    )

    @model_validator(mode="after")
    def whole_tls(self) -> "RpcSettings":
        """Refuse TLS that is set only in part."""
        if (self.grpc_tls_cert_file is None) != (self.grpc_tls_key_file is None):
            raise ValueError("grpc_tls_cert_file and grpc_tls_key_file: set both or neither")
        certified, believes = self.grpc_tls_cert_file is not None, self.grpc_tls_ca_file is not None
        if self.serves_grpc and believes and not certified:
            raise ValueError("grpc_tls_cert_file: set it where grpc_tls_ca_file is set")
        if self.calls_grpc and certified and not believes:
            raise ValueError("grpc_tls_ca_file: set it where grpc_tls_cert_file is set")
        return self

    @property
    def grpc_token(self) -> str:
        """The secret in its file; empty without one. Raises `SettingsError`."""
        if self.grpc_token_file is None:
            return ""
        try:
            token = self.grpc_token_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"grpc_token_file: {error}", param="grpc_token_file") from error
        if not token.isascii() or not token.isprintable() or not token:
            problem = f"grpc_token_file {self.grpc_token_file}: must hold ASCII text"
            raise SettingsError(problem, param="grpc_token_file")
        return token

    @property
    def grpc_tls(self) -> "Tls | None":
        """The certificates and the key, read from their files. Raises `SettingsError`."""
        if self.grpc_tls_cert_file is None and self.grpc_tls_ca_file is None:
            return None
        # gRPC is imported only where it is used.
        from tuneloop.rpc.tls import Tls

        return Tls.from_files(
            ca=self.grpc_tls_ca_file, cert=self.grpc_tls_cert_file, key=self.grpc_tls_key_file
        )


class RpcServerSettings(RpcSettings):
    """The same for a process that serves gRPC."""

    serves_grpc = True

    host: str = Field(
        "127.0.0.1", description="address to listen on; others than loopback need TLS for gRPC"
    )
    grpc_plaintext: bool = Field(
        False,
        description="whether to serve gRPC without TLS on other addresses than loopback, where "
        "everybody who reaches it may call everything",
    )
    grpc_peers: dict[Role, tuple[str, ...]] = Field(
        {},
        description="names in the clients' certificates by role, where they are not named as the "
        'role itself: a JSON object like {"gateway": ["gw.example"], "operator": ["ann"]}',
    )

    @model_validator(mode="after")
    def encrypted_beyond_loopback(self) -> "RpcServerSettings":
        """Refuse to serve a network without TLS."""
        if is_loopback(self.host) or self.grpc_plaintext or self.grpc_tls_cert_file is not None:
            return self
        raise ValueError(
            f"host is {self.host}, which others can reach, and gRPC has no TLS. Set "
            "grpc_tls_cert_file, grpc_tls_key_file and grpc_tls_ca_file, or grpc_plaintext=true "
            "where nobody else is on that network, or listen on 127.0.0.1"
        )
