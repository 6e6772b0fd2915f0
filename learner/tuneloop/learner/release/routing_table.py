"""The entries of the routing table that the learner sets: what serves, and what scores."""

from dataclasses import dataclass, replace

from tuneloop.bus import Bus
from tuneloop.bus.subjects import reward_model_key, stable_policy_key
from tuneloop.errors import Conflict
from tuneloop.learner import trace_links
from tuneloop.learner.samples import ModelRole
from tuneloop.policies import WeightsReference
from tuneloop.wire import decode_routing, encode_routing


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedVersion:
    """What the table names for a model."""

    reference: WeightsReference
    revision: int | None
    """Of the entry; None if there is none, and the base model serves."""

    @property
    def version(self) -> int:
        """The version's number; 0 for the base model."""
        return self.reference.policy_version

    def is_version(self, reference: WeightsReference) -> bool:
        """Return whether it is this version with these weights, wherever they are."""
        ours = self.reference
        return (ours.policy_version, ours.manifest_sha256) == (
            reference.policy_version,
            reference.manifest_sha256,
        )


class RoutingTable:
    """The entries of one policy and of its reward model."""

    def __init__(self, bus: Bus, policy: str) -> None:
        self._bus = bus
        self._keys: dict[str, str] = {
            ModelRole.POLICY: stable_policy_key(policy),
            ModelRole.REWARD_MODEL: reward_model_key(policy),
        }
        self._names: dict[str, str] = {
            ModelRole.POLICY: policy,
            ModelRole.REWARD_MODEL: f"{policy}-reward-model",
        }

    def base_model(self, model: str) -> WeightsReference:
        """Return version 0."""
        return WeightsReference.base_model(self._names[model])

    async def named(self, model: str) -> NamedVersion:
        """Return what the table names. Raises `Unavailable`."""
        entry = await self._bus.routing(self._keys[model])
        if entry is None:
            return NamedVersion(reference=self.base_model(model), revision=None)
        return NamedVersion(reference=decode_routing(entry.value), revision=entry.revision)

    async def replace(self, model: str, named: NamedVersion, target: WeightsReference) -> bool:
        """Name `target` instead; return False if the entry has changed. Raises `Unavailable`."""
        # So that generation's loading belongs to the trace in which the version was made.
        made = trace_links.span_of_version(model, target.policy_version)
        value = encode_routing(replace(target, traceparent=made))
        try:
            await self._bus.set_routing(self._keys[model], value, revision=named.revision)
        except Conflict:
            return False
        return True
