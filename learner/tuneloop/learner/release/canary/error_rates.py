"""The arms' error rates, from counters that generation keeps by version."""

from dataclasses import dataclass, field

from tuneloop.policies import ServedPolicy

BLOCKS_OF_ONE_SIZE = 50


@dataclass(slots=True, kw_only=True)
class ErrorTally:
    """Requests and failures of both arms since a canary began, cut into blocks as they came.

    The counters belong to processes, of which there may be several, and which may restart: each
    process counts from what it had counted when it was first seen.
    """

    seen: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    """By process and version: requests, failures."""
    open: dict[str, list[int]] = field(default_factory=lambda: {"canary": [0, 0], "stable": [0, 0]})
    """The block that is not complete yet: requests, failures."""
    total: dict[str, list[int]] = field(
        default_factory=lambda: {"canary": [0, 0], "stable": [0, 0]}
    )
    blocks: list[float] = field(default_factory=list)
    """Stable's error rate minus the canary's: higher is better, as with thumbs."""

    def add_counts(self, policy: ServedPolicy, *, canary: int, stable: int) -> bool:
        """Add a process's counters; return whether they have grown."""
        known = self.seen.get(policy.counted_by)
        now = {
            str(o.policy_version): [o.answered + o.failed, o.failed]
            for o in policy.outcomes
            if o.policy_version in (canary, stable)
        }
        self.seen[policy.counted_by] = now
        if known is None:
            return False
        grown = False
        for version, counts in now.items():
            arm = "canary" if version == str(canary) else "stable"
            before = known.get(version, [0, 0])
            for i in (0, 1):
                new = max(0, counts[i] - before[i])
                self.open[arm][i] += new
                self.total[arm][i] += new
                grown = grown or new > 0
        self._close_block()
        return grown

    def _close_block(self) -> None:
        """End the block once it is full. Blocks grow, so that they stay few."""
        (requests, failures), (others, failed) = self.open["canary"], self.open["stable"]
        if others == 0 or requests < 1 + len(self.blocks) // BLOCKS_OF_ONE_SIZE:
            return
        self.blocks.append(failed / others - failures / requests)
        self.open = {"canary": [0, 0], "stable": [0, 0]}
