"""What the ledger should hold of feedback, said as simply as it can be: lists and loops."""

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

Key = tuple[str, str]
"""Sample id and objective."""


@dataclass
class Given:
    """One accepted feedback, in the order of acceptance."""

    id: str
    body: dict[str, Any]
    user: str
    retracted: bool = False
    """On the stream; the ledger may not know yet."""


@dataclass
class Verdict:
    """What one feedback says on one topic."""

    key: Key
    feedback: Given
    topic: str
    says: str
    about: tuple[str, ...]
    """The completions that must be known before it can be learned from."""


def verdicts_of(given: Given) -> list[Verdict]:
    """The table of `docs/feedback.md`."""
    body, found = given.body, []

    def add(
        objective: str, topic: str, says: str, about: tuple[str, ...], suffix: str = ""
    ) -> None:
        key = (given.id + suffix, objective)
        found.append(Verdict(key, given, f"{objective} {topic}", says, about))

    def pair(objective: str, better: str, worse: str, suffix: str) -> None:
        topic = " ".join(sorted((better, worse)))
        add(objective, topic, better, (better, worse), suffix)

    about = body.get("completion_id")
    match body["kind"]:
        case "thumb":
            for objective in ("kto", "reward_model"):
                add(objective, f"thumb {about}", body["value"], (about,))
        case "rating":
            add("reward_model", f"rating {about}", str(float(body["value"])), (about,))
        case "demonstration":
            for objective in ("sft", "dpo", "reward_model"):
                add(objective, f"edit {about}", body["text"], (about,))
        case "comment":
            add("sdft", f"comment {about}", body["text"], (about,))
        case "comparison":
            for number, worse in enumerate(body["rejected"]):
                for objective in ("dpo", "reward_model"):
                    pair(objective, body["chosen"], worse, f".{number}" if number else "")
        case "ranking":
            ids = body["ranking"]
            for one, other in combinations(range(len(ids)), 2):
                pair("dpo", ids[one], ids[other], f".{one}-{other}")
            add("reward_model", "ranking " + " ".join(sorted(ids)), " ".join(ids), tuple(ids))
    return found


@dataclass
class LedgerModel:
    """What was recorded, and what follows from it."""

    recorded: dict[str, Given] = field(default_factory=dict)
    retracted: set[str] = field(default_factory=set)
    rollouts: set[str] = field(default_factory=set)
    used: list[Key] = field(default_factory=list)
    expired: set[Key] = field(default_factory=set)
    recorded_day: dict[str, float] = field(default_factory=dict)

    def record(self, given: Given, day: float) -> None:
        if given.id not in self.recorded:
            self.recorded[given.id] = given
            self.recorded_day[given.id] = day

    def verdicts(self, order: list[Given]) -> list[Verdict]:
        """Of all that is recorded, as they were accepted."""
        return [v for given in order if given.id in self.recorded for v in verdicts_of(given)]

    def states(self, order: list[Given]) -> dict[Key, str]:
        """The state of every sample but those of siblings."""
        states: dict[Key, str] = {}
        topics: dict[tuple[str, str], list[Verdict]] = defaultdict(list)
        for verdict in self.verdicts(order):
            if verdict.feedback.id in self.retracted:
                states[verdict.key] = "retracted"
            else:
                topics[verdict.topic, verdict.feedback.user].append(verdict)
        for said in topics.values():
            learned = [verdict.says for verdict in said if verdict.key in self.used]
            for verdict in said:
                if verdict.key in self.used:
                    states[verdict.key] = "used"
                elif verdict.key in self.expired:
                    states[verdict.key] = "expired"
                elif verdict is said[-1] and learned[-1:] != [verdict.says]:
                    states[verdict.key] = "open"
                else:
                    states[verdict.key] = "superseded"
        return states

    def ready(self, order: list[Given]) -> set[Key]:
        """What can be learned from now, but siblings."""
        states = self.states(order)
        return {
            verdict.key
            for verdict in self.verdicts(order)
            if states[verdict.key] == "open" and self.rollouts.issuperset(verdict.about)
        }

    def statuses(self, order: list[Given]) -> dict[str, str]:
        """The status of every feedback."""
        states = self.states(order)
        found = {}
        for given in order:
            if given.id not in self.recorded:
                continue
            own = {states[verdict.key] for verdict in verdicts_of(given)}
            found[given.id] = "expired" if own == {"expired"} else "accepted"
            if given.id in self.retracted:
                found[given.id] = "retracted"
        return found

    def siblings(self, order: list[Given], group: set[str]) -> set[tuple[str, str, str]]:
        """(user, better, worse) of each pair that opposite thumbs on one request imply."""
        statuses = self.statuses(order)
        last: dict[tuple[str, str], Given] = {}
        for given in order:
            if given.body["kind"] == "thumb" and statuses.get(given.id) in ("accepted", "expired"):
                last[given.user, given.body["completion_id"]] = given
        counted = {who: given for who, given in last.items() if statuses[given.id] == "accepted"}
        known = group & self.rollouts
        return {
            (user, better, worse)
            for (user, better), up in counted.items()
            for (other, worse), down in counted.items()
            if user == other
            and {better, worse} <= known
            and (up.body["value"], down.body["value"]) == ("up", "down")
        }

    def expire(self, order: list[Given], day: float, wait: float) -> None:
        """End what has waited longer than `wait` days for a rollout."""
        states = self.states(order)
        for verdict in self.verdicts(order):
            waiting = not self.rollouts.issuperset(verdict.about)
            long = self.recorded_day[verdict.feedback.id] < day - wait
            if states[verdict.key] == "open" and waiting and long:
                self.expired.add(verdict.key)
