"""The audit log: who did what that matters later, one JSON object a line, without users' texts.

A process writes it to a file of its own, or among its other log lines.
"""

import json
import logging
import os
import pwd
from collections.abc import Mapping
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from tuneloop.errors import SettingsError

logger = logging.getLogger("tuneloop.audit")

COMMANDS = "audit-commands.jsonl"
"""File of what commands did to files, which no process of the service sees."""
FILE_BYTES = 10 * 1024 * 1024
FILES = 10
"""Kept besides the current one: `audit.jsonl.1` is the youngest of them."""


class PrivateFile(RotatingFileHandler):
    """Appends to a file that only its owner may read, and starts a new one when it is full."""

    def _open(self) -> Any:
        def opener(path: str, flags: int) -> int:
            return os.open(path, flags, 0o600)

        return open(self.baseFilename, self.mode, encoding="utf-8", opener=opener)


def write_to(path: Path) -> None:
    """Write to a file from now on, in place of the process's log. Raises `SettingsError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = PrivateFile(path, maxBytes=FILE_BYTES, backupCount=FILES)
    except OSError as error:
        raise SettingsError(f"AUDIT_FILE={path}: {error.strerror}", param="audit_file") from error
    handler.setFormatter(logging.Formatter("%(message)s"))
    for earlier in logger.handlers:
        earlier.close()
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def record(
    *,
    actor: str,
    action: str,
    outcome: str,
    key: str = "",
    address: str = "",
    about: Mapping[str, str] | None = None,
    status: int = 0,
    left_out: int = 0,
) -> None:
    """Record that `actor` did, or tried, something; what is empty is left out.

    `outcome` is `ok`, or says why not. `left_out` events of the kind before it have no record.
    """
    fields = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "actor": actor,
        "key": key,
        "address": address,
        "action": action,
        "about": about,
        "outcome": outcome,
        "status": status,
        "left_out": left_out,
    }
    logger.info("%s", json.dumps({name: value for name, value in fields.items() if value}))


def record_command(folder: Path, action: str, about: Mapping[str, str], outcome: str) -> None:
    """Record what this machine's user did with a command, in a file in `folder`.

    Raises `SettingsError`.
    """
    write_to(folder / COMMANDS)
    record(actor=f"os:{user_name(os.getuid())}", action=action, outcome=outcome, about=about)


def user_name(uid: int) -> str:
    """Return the name of a user of this machine, or the number of one without a name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
