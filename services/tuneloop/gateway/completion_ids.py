"""Completion ids: capabilities that the gateway can check without a look-up.

`chatcmpl-`, `cmpl-` or `resp_`, then 22 hexadecimal digits, random or of an HMAC of a name, 2 of
how many choices were asked for, 16 of the user's hash and 20 of an HMAC over tenant and all of
these. Further choices of a request append their number (`rollouts.choice_id`). A caller with a
valid id has seen the completion, so its feedback is accepted; an id cannot be forged.

A receipt is the same for feedback: its id, a dot, and 32 hexadecimal digits of an HMAC over tenant
and id. Its holder may see what became of the feedback, and retract it.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

from tuneloop.gateway.errors import CompletionNotFound, FeedbackNotFound

ANONYMOUS = "anonymous"
FORM = re.compile(
    r"(?:chatcmpl-|cmpl-|resp_)(?P<body>[0-9a-f]{22}(?P<n>[0-9a-f]{2})(?P<user>[0-9a-f]{16}))"
    r"(?P<mac>[0-9a-f]{20})"
    r"(?:\.(?P<index>[1-9][0-9]{0,2}))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionId:
    """An id whose signature was checked."""

    value: str
    """As the caller gave it, with the choice's suffix."""
    user_hash: str
    """Of the user for whom the completion was made."""


class CompletionIds:
    """Makes and checks ids with one secret."""

    def __init__(self, secret: bytes) -> None:
        self.secret = secret

    def user_hash(self, tenant: str, user: str | None) -> str:
        """Return the keyed hash of an end user: 16 hexadecimal digits."""
        return self.sign(f"user\0{tenant}\0{user or ANONYMOUS}")[:16]

    def make(
        self, prefix: str, tenant: str, user_hash: str, n: int = 1, *, name: str | None = None
    ) -> str:
        """Return a new id of a request for `n` choices; `prefix` is what it begins with.

        With a `name` it is the same id each time. The caller vouches that nothing else has it.
        """
        digits = (
            secrets.token_hex(11) if name is None else self.sign(f"name\0{tenant}\0{name}")[:22]
        )
        body = f"{digits}{n:02x}{user_hash}"
        mac = self.sign(f"{tenant}\0{body}")[:20]
        separator = "_" if prefix == "resp" else "-"
        return f"{prefix}{separator}{body}{mac}"

    def check(self, tenant: str, value: str, param: str) -> CompletionId:
        """Verify an id. Raises `CompletionNotFound` if this gateway did not make it."""
        match = FORM.fullmatch(value)
        if match is not None:
            expected = self.sign(f"{tenant}\0{match['body']}")[:20]
            index_fits = int(match["index"] or 0) < int(match["n"], 16)
            if hmac.compare_digest(expected, match["mac"]) and index_fits:
                return CompletionId(value=value, user_hash=match["user"])
        raise CompletionNotFound(
            f"no completion {value[:100]!r}: this service did not return that id", param=param
        )

    def receipt(self, tenant: str, feedback_id: str) -> str:
        """Return the receipt of feedback; it is the same each time."""
        mac = self.sign(f"receipt\0{tenant}\0{feedback_id}")[:32]
        return f"{feedback_id}.{mac}"

    def feedback_of_receipt(self, tenant: str, receipt: str) -> str:
        """Return the id in a receipt. Raises `FeedbackNotFound` if this gateway did not sign it."""
        feedback_id = receipt.rpartition(".")[0]
        expected = self.receipt(tenant, feedback_id)
        if not hmac.compare_digest(expected.encode(), receipt.encode()):
            raise FeedbackNotFound(
                f"no receipt {receipt[:100]!r}: this service did not sign it", param="receipt"
            )
        return feedback_id

    def sign(self, text: str) -> str:
        return hmac.new(self.secret, text.encode(), hashlib.sha256).hexdigest()


def user_hash_in(completion_id: str) -> str:
    """Return the user's hash in an id that was checked."""
    match = FORM.fullmatch(completion_id)
    assert match is not None
    return match["user"]
