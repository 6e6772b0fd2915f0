"""Policies, versions and references to weights. Frozen, slotted, standard library only."""

import enum
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self


class WeightsKind(enum.StrEnum):
    """The content of a version's files: a LoRA adapter, or all the weights."""

    LORA = "lora"
    FULL = "full"


class ReleaseState(enum.StrEnum):
    """The state of a version's release."""

    CANDIDATE = "candidate"
    CANARY = "canary"
    STABLE = "stable"
    RETIRED = "retired"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsReference:
    """The place of a version and its manifest's hash: weights are passed on only as this."""

    policy: str
    policy_version: int
    uri: str
    """Folder of the version in the weight store."""
    manifest_sha256: str
    traceparent: str = field(default="", compare=False)
    """The trace it belongs to; empty without tracing."""

    @classmethod
    def base_model(cls, policy: str) -> Self:
        """Return version 0, which no store holds."""
        return cls(policy=policy, policy_version=0, uri="", manifest_sha256="")


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryRoute:
    """A version that answers a share of the users beside the stable one."""

    weights: WeightsReference
    share: float
    """Above 0 to 1."""
    salt: str
    """Hashed with each user, so that every canary has its own share of users."""

    def takes(self, key: str) -> bool:
        """Return whether a user (by hash) is in the share: always the same for one salt."""
        digest = hashlib.sha256(f"{self.salt}\0{key}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.share * 2**64


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedVersion:
    """A version in an engine's memory."""

    policy_version: int
    leases: int
    loaded_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionOutcomes:
    """How one version's answers to users ended, since the replica started."""

    policy_version: int
    answered: int
    failed: int
    """Requests the service failed on; what the caller did wrong or cancelled is in neither."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedPolicy:
    """A policy as one generation replica has it."""

    name: str
    policy_version: int
    """The version served now."""
    weights_kind: str
    """One of `WeightsKind`."""
    leases: Mapping[int, int] = field(default_factory=dict)
    """By version in memory: requests that hold it."""
    outcomes: tuple[VersionOutcomes, ...] = ()
    """Of the newest versions only."""
    counted_by: str = ""
    """Names the process that counted the outcomes; another after each start."""
    loaded_canary: int | None = None
    """The canary's version, once it is in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerStep:
    """The learner committed an optimizer step."""

    policy: str
    step: int
    metrics: Mapping[str, float]
    stepped_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """A generation replica started to serve a version."""

    policy: str
    policy_version: int
    replica: str
    activated_time: datetime
    swap_seconds: float
    traceparent: str = field(default="", compare=False)
    """The trace it belongs to; empty without tracing."""
