"""API keys: what one is, and the file that holds them.

A key is `tl-` and 256 random bits; the file has its SHA-256 and never the key. A plain hash is
enough: 2^256 keys cannot be tried, and salt or a slow hash only helps if people choose secrets.
A look-up by hash tells nothing through its time either, as a caller cannot steer the hash.

The file is JSON, mode 0600, replaced in one piece under a lock, so that `tuneloop keys` works while
the gateway runs or before its first start. Revoked keys stay in the file, marked, as a record.
"""

import fcntl
import hashlib
import os
import secrets
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from tuneloop.errors import Conflict, CorruptData, InvalidRequest, NotFound
from tuneloop.files import write_file
from tuneloop.gateway.keys.scopes import Scope

PREFIX = "tl-"
FILE_NAME = "api_keys.json"
NAME = r"^[A-Za-z0-9._@-]{1,64}$"

Count = Annotated[int, Field(ge=1, le=10**15)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a key; None means no limit."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    """Of prompts and completions together, as for each that follows."""
    requests_per_day: Count | None = None
    """Days begin at 00:00 UTC."""
    tokens_per_day: Count | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key without its secret."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    """Public; the key's usage is kept under it."""
    name: Annotated[str, Field(pattern=NAME)]
    """What people call it: one active key has it at a time."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    ends_with: Annotated[str, Field(max_length=8)]
    """Its last characters, to tell keys apart."""
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]
    limits: Limits = field(default_factory=Limits)
    created_time: datetime
    revoked_time: datetime | None = None

    @property
    def is_active(self) -> bool:
        """Whether the key is not revoked."""
        return self.revoked_time is None

    def allows(self, scope: Scope) -> bool:
        """Return whether the key has a scope."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


documents: TypeAdapter[list[ApiKey]] = TypeAdapter(list[ApiKey])


def hash_key(key: str) -> str:
    """Return the hash that is stored for a key."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


def new_key(name: str, scopes: Sequence[Scope], limits: Limits) -> tuple[str, ApiKey]:
    """Return a new key, to be shown once, and its record. Raises `InvalidRequest`."""
    secret = PREFIX + secrets.token_urlsafe(32)
    document = {
        "id": f"key-{secrets.token_hex(6)}",
        "name": name,
        "sha256": hash_key(secret),
        "ends_with": secret[-4:],
        "scopes": scopes,
        "limits": limits,
        "created_time": datetime.now(UTC).replace(microsecond=0),
    }
    try:
        return secret, TypeAdapter(ApiKey).validate_python(document)
    except ValidationError as error:
        problem = error.errors()[0]
        param = str(problem["loc"][-1])
        raise InvalidRequest(f"{param}: {problem['msg']}", param=param) from error


def create_command(name: str, scope: Scope, path: Path | None) -> str:
    """Return the command that creates a key on this machine."""
    installed = shutil.which("tuneloop") is not None
    program = "tuneloop" if installed else str(Path(sys.executable).with_name("tuneloop"))
    words = [program, "keys", "create", "--name", name, "--scope", scope.value]
    return shlex.join([*words, *(() if path is None else ("--file", str(path)))])


class KeyFile:
    """The keys file at a path; no file means no keys."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()

    def read(self) -> list[ApiKey]:
        """Return all keys, including revoked ones. Raises `CorruptData`."""
        try:
            return documents.validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return []
        except (OSError, ValidationError) as error:
            raise CorruptData(f"keys file {self.path}: {error}", param="keys_file") from error

    def add(self, key: ApiKey) -> None:
        """Add a key. Raises `Conflict` if an active one has its name."""
        with self.locked():
            keys = self.read()
            if any(k.is_active and k.name == key.name for k in keys):
                raise Conflict(
                    f"a key named {key.name!r} exists: choose another name, or revoke it first",
                    param="name",
                )
            self.write([*keys, key])

    def revoke(self, wanted: str) -> ApiKey:
        """Revoke the active key with this id or name. Raises `NotFound`."""
        with self.locked():
            keys = self.read()
            for index, key in enumerate(keys):
                if key.is_active and wanted in (key.id, key.name):
                    keys[index] = replace(
                        key, revoked_time=datetime.now(UTC).replace(microsecond=0)
                    )
                    self.write(keys)
                    return keys[index]
        raise NotFound(f"no active key with the id or name {wanted!r}", param="key")

    def write(self, keys: Sequence[ApiKey]) -> None:
        """Replace the file, all or nothing."""
        content = documents.dump_json(list(keys), indent=2)
        write_file(self.path, content, mode=0o600)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock out other writers; creates the folder if needed."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The file itself is replaced, and a lock on it would stay with the old one.
        lock = self.path.with_name(f".{self.path.name}.lock")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
