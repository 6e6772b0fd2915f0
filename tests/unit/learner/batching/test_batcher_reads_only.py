"""Forming a batch changes nothing in the ledger; `TrainingRun.next_batch` records what it found."""

from collections import Counter
from pathlib import Path

from sqlalchemy import select
from support.learner_events import make_comparison, make_rollout, make_score
from support.learner_parts import Parts

from tuneloop.learner.ledger.accounting import promotions, versions
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.schema import samples


def states(parts: Parts) -> Counter[str]:
    with parts.database.read() as connection:
        return Counter(connection.execute(select(samples.c.state)).scalars())


def test_refused_and_stale_samples_are_returned_and_recorded_by_the_run(tmp_path: Path) -> None:
    parts = Parts(folder=tmp_path, options={"min_batch_size": 1})
    rollouts = [make_rollout(f"c{n}", group_id="g", n=8) for n in range(8)]
    rollouts += [make_rollout(f"p{n}", prompt=(5, n)) for n in range(2)]
    recorder.record_rollouts(parts.database, rollouts, 0.0)
    recorder.record_scores(parts.database, [make_score(f"c{n}") for n in range(8)], 0.0)
    recorder.record_feedback(parts.database, [(make_comparison("f0", "p0", "p1"), 0)], 0.0)
    for version in range(1, 6):
        versions.add_version(
            parts.database,
            model="policy",
            version=version,
            policy="tuneloop",
            parent=version - 1,
            first_step=0,
            last_step=0,
            manifest="{}",
            created_time=versions.moment(0),
        )
    promotions.record_promotion(
        parts.database, "policy", 5, previous=0, action="promote", actor="gate", now=0.0
    )
    before = states(parts)
    formed = parts.batches.form(parts.training_run)
    assert formed.batch is None
    assert [(r.objective, r.reason) for r in formed.refusals] == [
        ("dpo", "the completions answer different prompts")
    ]
    assert formed.fresh_versions == {"ppo": {1, 2, 3, 4, 5}}
    assert states(parts) == before
    assert parts.training_run.next_batch(parts.batches) is None
    assert states(parts)["refused"] == 1
    assert states(parts)["stale"] == 8
