"""What must be true after any chaos: read from the ledger, the weight store and the users."""

import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.clients import Failure, Memory
from chaos.faults import PAST_ACK_WAIT, Outage

from tuneloop.errors import TuneloopError
from tuneloop.policies import WeightsReference
from tuneloop.weights.filesystem import FilesystemStore
from tuneloop.weights.manifest import from_json
from tuneloop.weights.signing import Verifier

ANSWERS = {"gateway", "generation", "network of gateway to generation"}
FEEDBACK = {"gateway", "nats", "disk", "network of gateway", "feedback stream"}
NEEDED = {
    "chat": ANSWERS,
    "stream": ANSWERS,
    "thumb": FEEDBACK,
    "retraction": FEEDBACK,
}
"""What must be up for a request to be answered."""
RECORDS = {"generation": 5.0, "rollouts": PAST_ACK_WAIT}
"""What takes records of answers with it, and how old they may be then. The stream's consumers may
wait for `ack_wait`."""
HOLDS_RECORDS = {
    *("nats", "disk", "learner", "generation"),
    *("network of generation", "network of learner"),
}
"""While these are down records stay where they are."""
SHOWN = 5
"""Examples of each problem."""


@dataclass(slots=True)
class Audit:
    """Counts to print, and everything that should not be."""

    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def expect_none(self, what: str, found: Iterable[Any]) -> None:
        """Note a count that must be 0, with some examples where it is not."""
        every = list(found)
        self.counts[what] = len(every)
        if every:
            examples = ", ".join(str(one) for one in every[:SHOWN])
            self.problems.append(f"{what}: {len(every)} ({examples})")


class Ledger:
    """The learner's ledger, read only."""

    def __init__(self, data_dir: Path) -> None:
        self._uri = f"file:{data_dir / 'learner' / 'ledger.db'}?mode=ro"

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with closing(sqlite3.connect(self._uri, uri=True, timeout=30)) as ledger:
            return ledger.execute(query, values).fetchall()


def recorded_feedback(data_dir: Path) -> set[str]:
    """Return the ids of all feedback in the ledger."""
    return {row[0] for row in Ledger(data_dir).rows("SELECT feedback_id FROM feedback")}


def open_thumbs(data_dir: Path, memory: Memory, lost: Set[str]) -> list[str]:
    """Acknowledged thumbs that the learner still has to take in, or to use."""
    ledger = Ledger(data_dir)
    recorded = recorded_feedback(data_dir) | lost
    waiting = ledger.rows(
        "SELECT samples.feedback_id FROM samples"
        " JOIN rollouts ON rollouts.completion_id = samples.completion_id"
        " WHERE samples.kind = 'thumb' AND samples.objective = 'kto' AND samples.state = 'open'"
    )
    return sorted((memory.acknowledged.keys() - recorded) | {row[0] for row in waiting})


def audit(
    data_dir: Path, memory: Memory, outages: Sequence[Outage], lost: Set[str] = frozenset()
) -> Audit:
    """Check everything; the service may run or not. `lost` feedback was only in a lost stream."""
    done, ledger = Audit(), Ledger(data_dir)
    check_answers(done, memory, outages, lost)
    check_feedback(done, ledger, memory, lost)
    check_training(done, ledger, memory, outages)
    for model in ("policy", "reward_model"):
        check_steps(done, ledger, model)
        check_versions(done, ledger, data_dir, model)
    return done


def check_answers(done: Audit, memory: Memory, outages: Sequence[Outage], lost: Set[str]) -> None:
    """No request failed but in the seconds in which what it needs was down."""
    done.counts["answers"] = len(memory.answers)
    done.counts["requests that failed while what they need was down"] = sum(
        1 for failure in memory.failures if excused(failure, outages)
    )
    unexcused = [failure for failure in memory.failures if not excused(failure, outages)]
    done.expect_none("requests that failed otherwise", map(described, unexcused))
    # With its stream the bus lost which ids it had.
    broken = [f"{name}: {told}" for name, told in memory.broken_promises if name not in lost]
    done.expect_none("answers that contradict an earlier one", broken)


def excused(failure: Failure, outages: Sequence[Outage]) -> bool:
    """Whether something the request needs was down while it ran."""
    return any(
        outage.what in NEEDED[failure.what]
        and outage.start <= failure.end
        and failure.start <= outage.end
        for outage in outages
    )


def described(failure: Failure) -> str:
    """A failure in a few words."""
    return f"{failure.what} after {failure.end - failure.start:.1f} s: {failure.problem}"


def check_feedback(done: Audit, ledger: Ledger, memory: Memory, lost: Set[str]) -> None:
    """Every acknowledged thumb is in the ledger once, as it was said."""
    rows = ledger.rows("SELECT feedback_id, completion_id, up FROM feedback")
    recorded = {row[0]: (row[1], bool(row[2])) for row in rows}
    done.counts["thumbs acknowledged"] = len(memory.acknowledged)
    done.counts["thumbs in the ledger"] = len(rows)
    missing = memory.acknowledged.keys() - recorded
    done.counts["thumbs that were lost with their stream"] = len(missing & lost)
    done.expect_none("acknowledged but not in the ledger", missing - lost)
    done.expect_none("in the ledger more than once", repeated(row[0] for row in rows))
    done.expect_none("in the ledger but never pressed", recorded.keys() - memory.attempted.keys())
    done.expect_none(
        "in the ledger with another verdict",
        (
            name
            for name, thumb in memory.acknowledged.items()
            if name not in lost
            and recorded.get(name, (thumb.completion_id, thumb.up))
            != (thumb.completion_id, thumb.up)
        ),
    )


def check_training(done: Audit, ledger: Ledger, memory: Memory, outages: Sequence[Outage]) -> None:
    """Every sample was trained at most once in an epoch, and every thumb that could be was."""
    uses = ledger.rows("SELECT sample_id, objective, epoch FROM uses")
    done.counts["uses in training"] = len(uses)
    done.expect_none("trained more than once in an epoch", repeated(uses))
    kto = {row[0] for row in uses if row[1] == "kto"}
    known = "SELECT feedback_id FROM feedback JOIN rollouts USING (completion_id)"
    learnable = {row[0] for row in ledger.rows(known)} & memory.acknowledged.keys()
    done.counts["thumbs trained"] = len(kto)
    check_records(done, ledger, memory, outages)
    done.expect_none("could be trained but was not", learnable - memory.retracted - kto)
    done.expect_none(
        "trained in a step that does not exist",
        ledger.rows(
            "SELECT uses.model, uses.step FROM uses LEFT JOIN steps USING (model, step)"
            " WHERE steps.step IS NULL"
        ),
    )


def check_records(done: Audit, ledger: Ledger, memory: Memory, outages: Sequence[Outage]) -> None:
    """Of answers that were judged, the ledger has all but those whose record was taken."""
    recorded = {row[0] for row in ledger.rows("SELECT completion_id FROM rollouts")}
    judged = {thumb.completion_id for thumb in memory.acknowledged.values()} - recorded
    lost = {name for name in judged if not was_taken(memory.answers[name], outages)}
    done.counts["judged answers whose record was lost with generation or its stream"] = len(
        judged - lost
    )
    done.expect_none("judged answers whose record is missing otherwise", lost)


def was_taken(answered: float, outages: Sequence[Outage]) -> bool:
    """Whether the record of an answer was where something was lost, as far as is known."""
    held = sorted((o for o in outages if o.what in HOLDS_RECORDS), key=lambda o: -o.end)
    for outage in outages:
        age = RECORDS.get(outage.what)
        if age is None:
            continue
        start = outage.start - age
        for earlier in held:
            if earlier.start < start <= earlier.end:
                start = earlier.start - age
        if start <= answered <= outage.end + age:
            return True
    return False


def check_steps(done: Audit, ledger: Ledger, model: str) -> None:
    """Steps are numbered without a gap."""
    steps = [row[0] for row in ledger.rows("SELECT step FROM steps WHERE model = ?", model)]
    done.counts[f"{model}: steps"] = len(steps)
    done.expect_none(f"{model}: steps missing", gaps(steps))


def check_versions(done: Audit, ledger: Ledger, data_dir: Path, model: str) -> None:
    """Versions are numbered without a gap, each grows from one before, and each verifies."""
    rows = ledger.rows(
        "SELECT version, policy, parent, first_step, last_step, uri, manifest_sha256, manifest"
        " FROM versions WHERE model = ? AND stage = 'released' ORDER BY version",
        model,
    )
    numbers = [row[0] for row in rows]
    done.counts[f"{model}: versions"] = len(numbers)
    done.expect_none(f"{model}: versions missing", gaps(numbers))
    last_steps = {0: 0} | {row[0]: row[4] for row in rows}
    done.expect_none(
        f"{model}: versions that do not go on where their parent ended",
        (row[0] for row in rows if row[2] >= row[0] or last_steps.get(row[2]) != row[3]),
    )
    uses = ledger.rows(
        "SELECT version, COUNT(*) FROM ("
        " SELECT policy_version AS version FROM uses WHERE model = ? AND epoch = 0 UNION ALL"
        " SELECT version FROM undone_uses WHERE model = ? AND epoch = 0) GROUP BY 1",
        model,
        model,
    )
    used = {row[0]: row[1] for row in uses}
    done.expect_none(
        f"{model}: versions whose manifest counts other samples than the ledger",
        (
            row[0]
            for row in rows
            if sum(from_json(row[7].encode()).data.samples.values()) != used.get(row[0], 0)
        ),
    )
    if rows:
        policy = rows[0][1]
        store = sorted(
            int(path.name) for path in (data_dir / "weights" / policy).iterdir() if is_version(path)
        )
        done.expect_none(f"{model}: versions in the store only", set(store) - set(numbers))
    references = [
        WeightsReference(policy=row[1], policy_version=row[0], uri=row[5], manifest_sha256=row[6])
        for row in rows
    ]
    done.expect_none(f"{model}: versions that do not verify", unverified(data_dir, references))


def is_version(path: Path) -> bool:
    """Whether a folder of the store has a version's name."""
    return len(path.name) == 8 and path.name.isdigit()


def unverified(data_dir: Path, references: Sequence[WeightsReference]) -> Iterator[str]:
    """Versions with a manifest, a signature or a file that is not what it should be."""
    verifier = Verifier.from_file(data_dir / "keys" / "manifest_public.pem")
    with tempfile.TemporaryDirectory() as cache:
        store = FilesystemStore(str(data_dir / "weights"), verifier=verifier, cache_dir=Path(cache))
        for reference in references:
            try:
                store.fetch(reference)
            except TuneloopError as error:
                yield f"version {reference.policy_version}: {error.message}"


def repeated(values: Iterable[Any]) -> list[Any]:
    """What occurs more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


def gaps(numbers: Sequence[int]) -> list[int]:
    """What is missing between 1 and the greatest."""
    return sorted(set(range(1, max(numbers, default=0) + 1)) - set(numbers))
