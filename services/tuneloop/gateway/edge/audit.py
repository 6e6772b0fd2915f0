"""What the gateway writes into the audit log: admins' actions, reading of texts, refusals.

Requests that neither change anything nor show what users wrote leave no record. Refusals are
limited, so that nobody without a key can fill a disk: what was left out is counted.
"""

import hashlib
import hmac
import re
import time
from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl

from starlette.types import Scope

from tuneloop import audit
from tuneloop.errors import TuneloopError
from tuneloop.gateway import metrics
from tuneloop.gateway.completion_ids import CompletionIds
from tuneloop.gateway.edge.caller import Caller, address_of, network_of
from tuneloop.gateway.edge.limits import AddressLimits, Bucket
from tuneloop.gateway.errors import RateLimitExceeded
from tuneloop.gateway.keys.scopes import Scope as KeyScope
from tuneloop.gateway.settings import GatewaySettings

REFUSALS_PER_MINUTE = 60
REFUSALS_OF_ADDRESS_PER_MINUTE = 10

shows_no_text = re.compile(
    r"/v1/(policies(/[^/]+)?|learner|lineage/(feedback|keys|tenants|tags)/.+)"
)
"""What admins may read without a record."""
one_feedback = re.compile(r"/v1/feedback/(?!batch$).+")
"""Reading or retracting it needs no admin, and is recorded all the same."""
plain = re.compile(r"[\w.:+-]{1,128}")
"""What is quoted of a request; anything else might be anybody's text."""
told = ("kind", "policy_version", "since", "user_hash", "status", "value")
"""Parameters of queries that are recorded."""


def is_recorded(method: str, path: str, needed: KeyScope | None) -> bool:
    """Return whether a request that may pass is recorded."""
    if needed is KeyScope.ADMIN:
        return method not in ("GET", "HEAD") or shows_no_text.fullmatch(path) is None
    if path.startswith("/v1/receipts/"):
        # Reading one shows no text, and is what a page does again and again.
        return method == "DELETE"
    return method != "POST" and one_feedback.fullmatch(path) is not None


class Audit:
    """Records requests. A user's id stands in it as the hash that events have."""

    def __init__(
        self, settings: GatewaySettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.tenant = settings.tenant
        self.ids = CompletionIds(settings.secret_bytes())
        self.all_refusals = Bucket(REFUSALS_PER_MINUTE, clock)
        self.of_address = AddressLimits(REFUSALS_OF_ADDRESS_PER_MINUTE, clock)
        self.left_out = 0
        """Refusals without a record since the last that has one."""

    def answered(self, scope: Scope, caller: Caller, status: int) -> None:
        """Record a request that was let in, once its status is known."""
        route = getattr(scope.get("route"), "path", None)
        audit.record(
            actor=caller.name,
            key=caller.id,
            address=address_of(scope),
            action=f"{scope['method']} {route or 'unknown'}",
            outcome="ok" if status < 400 else "refused" if status < 500 else "failed",
            status=status,
            about=self.details(scope),
        )

    def details(self, scope: Scope) -> Mapping[str, str]:
        """Return what a request was about: its path's parameters and some of its query's."""
        query = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1")))
        found = {name: value for name, value in query.items() if name in told}
        given = {name: str(value) for name, value in scope.get("path_params", {}).items()}
        user = given.pop("user_id", None) or query.get("user")
        if (receipt := given.pop("receipt", None)) is not None:
            # Without the signature, with which a reader of the log could retract it.
            found["feedback_id"] = receipt.rpartition(".")[0]
        if user is not None:
            found["user_hash"] = self.ids.user_hash(self.tenant, user)
        return {name: value for name, value in (found | given).items() if plain.fullmatch(value)}

    def refused(
        self, scope: Scope, caller: Caller | None, given: str, error: TuneloopError
    ) -> None:
        """Record a request that was not let in; `given` is the key it showed, if any."""
        metrics.refused.labels(error.reason.lower()).inc()
        try:
            self.of_address.admit(network_of(address_of(scope)))
        except RateLimitExceeded:
            self.left_out += 1
            return
        if self.all_refusals.level < 1:
            self.left_out += 1
            return
        self.all_refusals.take(1)
        begin = re.match(r"/v1/[a-z]{1,20}", scope["path"])
        audit.record(
            actor="nobody" if caller is None else caller.name,
            key=self.fingerprint(given) if caller is None else caller.id,
            address=address_of(scope),
            action=f"{scope['method'][:10]} {begin.group() if begin else 'other'}",
            outcome=error.reason.lower(),
            left_out=self.left_out,
        )
        self.left_out = 0

    def fingerprint(self, key: str) -> str:
        """Return what tells wrong keys apart and lets nobody guess them."""
        if not key:
            return ""
        secret, data = self.ids.secret, key.encode(errors="surrogateescape")
        return f"wrong-{hmac.new(secret, b'key' + data, hashlib.sha256).hexdigest()[:8]}"
