"""Settings of webhooks: who is told of versions and alarms, and what signs it."""

import base64
import binascii
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings

from tuneloop.ports import is_loopback

SECRET_PREFIX = "whsec_"  # noqa: S105 (of every secret)
SECRET_BYTES = range(24, 65)
"""As Standard Webhooks has it."""


class WebhookSettings(BaseSettings):
    """Part of the learner's settings."""

    webhook_urls: tuple[str, ...] = Field(
        (),
        description="URLs that are told of versions and alarms, a JSON list: https://…, or "
        "http://… on loopback",
    )
    webhook_secret: SecretStr | None = Field(
        None,
        description="signs what they are told: whsec_ and the base64 of 24 to 64 random bytes; "
        "several, with a space between them, while one replaces another",
    )
    webhook_secret_file: Path | None = Field(
        None, description="file that holds that secret, instead of the secret itself"
    )

    # One check of all of it: pydantic quotes the value of a single field that is wrong, and these
    # are secrets, often the URLs too.
    @model_validator(mode="after")
    def _can_sign(self) -> "WebhookSettings":
        for url in self.webhook_urls:
            check_url(url)
        given = self.webhook_secret is not None or self.webhook_secret_file is not None
        if given != bool(self.webhook_urls):
            raise ValueError(
                "TUNELOOP_LEARNER_WEBHOOK_URLS goes with one of TUNELOOP_LEARNER_WEBHOOK_SECRET "
                "and TUNELOOP_LEARNER_WEBHOOK_SECRET_FILE: set both or neither"
            )
        self.webhook_keys()
        return self

    def webhook_keys(self) -> list[bytes]:
        """Return the keys that sign, wherever they are kept; raises `ValueError`."""
        if self.webhook_secret is not None and self.webhook_secret_file is not None:
            raise ValueError("webhook_secret and webhook_secret_file: set one of them")
        if self.webhook_secret is not None:
            text = self.webhook_secret.get_secret_value()
        elif self.webhook_secret_file is not None:
            try:
                text = self.webhook_secret_file.read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(
                    f"webhook_secret_file {self.webhook_secret_file}: {error}"
                ) from error
        else:
            return []
        keys = [signing_key(secret) for secret in text.split()]
        if not keys:
            raise ValueError("webhook_secret: is empty; " + HOW_TO_MAKE)
        return keys


HOW_TO_MAKE = "make one with: echo whsec_$(openssl rand -base64 32)"


def signing_key(secret: str) -> bytes:
    """Return the key of a secret; raises `ValueError`, which does not quote it."""
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(SECRET_PREFIX) or len(key) not in SECRET_BYTES:
        raise ValueError(
            f"webhook_secret: must be {SECRET_PREFIX} and the base64 of 24 to 64 bytes; "
            + HOW_TO_MAKE
        )
    return key


def check_url(url: str) -> None:
    """Raise `ValueError` for a URL that would show what is sent to a network."""
    parts = urlsplit(url)
    if parts.hostname and parts.scheme == "https":
        return
    if parts.hostname and parts.scheme == "http" and is_loopback(parts.hostname):
        return
    raise ValueError(
        f"webhook_urls: {shown(url)} must be https://HOST/…, or http://… on loopback (127.0.0.1)"
    )


def shown(url: str) -> str:
    """Return a URL without what may be secret in it: its path, query and user."""
    parts = urlsplit(url)
    port = "" if parts.port is None else f":{parts.port}"
    return f"{parts.scheme}://{parts.hostname or ''}{port}"
