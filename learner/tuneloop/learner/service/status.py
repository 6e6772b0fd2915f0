"""What the learner waits for, in words for people."""

from collections.abc import Mapping

from tuneloop.learner.ledger.queue.ready import SampleCounts
from tuneloop.learner.samples import Objective


def waiting_for(
    *, state: str, connected: bool, hold: str, gate: str, counts: Mapping[str, SampleCounts]
) -> str:
    """Return one line; empty while it waits for nothing."""
    if state == "paused":
        return "somebody to resume it"
    if not connected:
        return "the event bus, which cannot be reached"
    if state != "waiting":
        return ""
    if gate:
        return gate
    if hold:
        return f"a promotion ({hold}): new versions stay candidates"
    judgements = [counts[objective] for objective in (Objective.SFT, Objective.KTO, Objective.DPO)]
    ready = sum(count.ready for count in judgements)
    waiting = sum(count.waiting for count in judgements)
    without = "the rollouts that feedback speaks of" if waiting else "feedback"
    return "more feedback, or a few seconds" if ready else without
