"""Who may call which method: by a secret that all share, and by the names in certificates.

The gateway calls all three services, the learner calls generation and reward, generation and reward
call nobody; `callers` has the methods. An operator may call everything, and everybody may ask for
the health of a server. A certificate may have several roles. Where no client certificate is asked
for, every caller may call every method: see `tuneloop.rpc.settings`.
"""

import hmac
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tuneloop import audit
from tuneloop.errors import CallerRefused

OURS = "/tuneloop.v1."
AUTHORIZATION, BEARER = "authorization", "Bearer "
QUIET_SECONDS = 1.0
"""After the record of a refusal; those that follow in this time are only counted."""


class Role(StrEnum):
    """What a caller is; also the name that its certificate has, unless settings say otherwise."""

    GATEWAY = "gateway"
    GENERATION = "generation"
    REWARD = "reward"
    LEARNER = "learner"
    OPERATOR = "operator"


Peers = Mapping[Role, tuple[str, ...]]
"""The names that the certificates of a role have."""

callers: Mapping[str, frozenset[Role]] = {
    "GenerationService/Generate": frozenset({Role.GATEWAY, Role.LEARNER}),
    "GenerationService/ChooseCandidate": frozenset({Role.GATEWAY}),
    "GenerationService/CountTokens": frozenset({Role.GATEWAY}),
    "GenerationService/LoadWeights": frozenset({Role.LEARNER}),
    "GenerationService/GetPolicy": frozenset({Role.GATEWAY, Role.LEARNER}),
    "GenerationService/ListPolicies": frozenset({Role.GATEWAY}),
    "RewardService/ScoreRollouts": frozenset({Role.GATEWAY, Role.LEARNER}),
    "LearnerService": frozenset({Role.GATEWAY}),
}
"""The roles that may call a method, or all methods of a service; operators aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The holder of a client certificate."""

    name: str
    """The certificate's common name, else the first of its alternative names."""
    roles: frozenset[Role]

    @property
    def speaks_for_others(self) -> bool:
        """Whether it passes on what its own callers ask for, whom it has authenticated."""
        return Role.GATEWAY in self.roles


peer_of_call: ContextVar[Peer | None] = ContextVar("peer_of_call", default=None)
"""The caller of the current call; None where no client certificate was asked for."""


def actor_of(claimed: str) -> str:
    """Return who is to be recorded for the current call, in which the caller named `claimed`.

    Only the gateway is believed; another holder of a certificate is recorded by its name.
    """
    peer = peer_of_call.get()
    if peer is None or (peer.speaks_for_others and claimed):
        return claimed
    return f"cert:{peer.name}"


class AccessControl:
    """Lets callers pass by a secret, if there is one, and by certificates, if they are demanded."""

    def __init__(
        self, *, token: str = "", certified: bool = False, peers: Peers | None = None
    ) -> None:
        """`peers` are the certificate names of roles that are not named as the role itself."""
        self._token = token.encode()
        self._certified = certified
        given = peers or {}
        self._quiet_until = 0.0
        self._left_out = 0
        self.names = {role: frozenset(given.get(role, (role.value,))) for role in Role}

    def admit(self, method: str, context: Any) -> None:
        """Note who calls. Raises `CallerRefused` if it may not call."""
        if not method.startswith(OURS):
            return
        if self._token and not hmac.compare_digest(given_token(context), self._token):
            raise CallerRefused(
                "the service refuses this process: it has no, or another, token than that of "
                "grpc_token_file (`tuneloop up`: keys/grpc_token in the data folder)"
            )
        if not self._certified:
            return
        peer = self.peer(context.auth_context())
        peer_of_call.set(peer)
        if not peer.roles.isdisjoint({Role.OPERATOR, *roles_for(method)}):
            return
        roles = " and ".join(sorted(peer.roles)) or "nobody here"
        raise CallerRefused(
            f"{method.removeprefix(OURS)}: the certificate {peer.name!r} is {roles}; this is for "
            f"{', '.join(sorted({Role.OPERATOR, *roles_for(method)}))}"
        )

    def record(self, method: str, outcome: str) -> None:
        """Record in the audit log what others than processes of the service called, or tried to."""
        peer = peer_of_call.get()
        if peer is None or not method.startswith(OURS):
            return
        denied = outcome == "PERMISSION_DENIED"
        if not denied and not peer.roles.isdisjoint({Role.GATEWAY, Role.LEARNER}):
            return
        if denied and time.monotonic() < self._quiet_until:
            self._left_out += 1
            return
        audit.record(
            actor=f"cert:{peer.name}",
            action=method.removeprefix(OURS),
            outcome=outcome.lower(),
            left_out=self._left_out,
        )
        self._left_out = 0
        if denied:
            self._quiet_until = time.monotonic() + QUIET_SECONDS

    def peer(self, auth_context: Mapping[str, Any]) -> Peer:
        """Return the holder of the client's certificate, from gRPC's description of it."""
        common = texts(auth_context, "x509_common_name")
        names = [*common, *texts(auth_context, "x509_subject_alternative_name")]
        roles = frozenset(role for role in Role if not self.names[role].isdisjoint(names))
        return Peer(name=names[0] if names else "without a name", roles=roles)


def given_token(context: Any) -> bytes:
    """Return the token in a call's metadata; empty without one."""
    for name, value in context.invocation_metadata() or ():
        if name == AUTHORIZATION and isinstance(value, str) and value.startswith(BEARER):
            return value.removeprefix(BEARER).encode()
    return b""


def roles_for(method: str) -> frozenset[Role]:
    """Return the roles that may call `/tuneloop.v1.Service/Method`, operators aside."""
    name = method.removeprefix(OURS).removesuffix("/")
    service, _, _ = name.partition("/")
    return callers.get(name) or callers.get(service) or frozenset()


def texts(auth_context: Mapping[str, Any], key: str) -> Iterator[str]:
    """Yield the values of a property that are not empty."""
    for value in auth_context.get(key, ()):
        if value:
            yield value.decode(errors="replace") if isinstance(value, bytes) else str(value)
