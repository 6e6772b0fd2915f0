"""How old a rollout is: counted along the tree of versions, not by their numbers."""

from pathlib import Path

import pytest
from sqlalchemy import update
from support.learner_events import make_rollout, make_score
from support.learner_parts import Parts

from tuneloop.learner.ledger.accounting import lineage, promotions, quarantine, steps, versions
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.events.sample_rules import SampleRules
from tuneloop.learner.ledger.queue import ready
from tuneloop.learner.ledger.schema import rollouts
from tuneloop.policies import ReleaseState


def publish(parts: Parts, *, parent: int, state: str = "candidate") -> int:
    """Add a version that grew from `parent` by one step."""
    version = versions.newest_version(parts.database, "policy") + 1
    versions.add_version(
        parts.database,
        model="policy",
        version=version,
        policy="tuneloop",
        parent=parent,
        first_step=version - 1,
        last_step=version,
        manifest="{}",
        created_time=versions.moment(0),
    )
    versions.mark_stage(parts.database, "policy", version, "released")
    versions.mark_place(parts.database, "policy", version, f"file:///{version}")
    if state == "stable":
        promotions.record_promotion(
            parts.database, "policy", version, previous=0, action="promote", actor="gate", now=0.0
        )
    if state == "quarantined":
        put_back(parts, version)
    return version


def put_back(parts: Parts, version: int) -> None:
    """Quarantine a version and what grew from it, and undo its steps."""
    quarantined = promotions.QuarantineRange(
        first=version, last=version, reason="worse", numbers={}, actor="gate", kind="quarantine"
    )
    promotions.quarantine_versions(parts.database, quarantined, 0.0)
    quarantine.put_back(parts.database, 0.0, 9)


def score(parts: Parts, version: int, count: int = 8) -> None:
    """Put scored rollouts of a version into the ledger: a batch."""
    names = [f"v{version}-{n}" for n in range(count)]
    group = [make_rollout(i, version=version, group_id=f"g{version}", n=count) for i in names]
    recorder.record_rollouts(parts.database, group, 0.0)
    scores = [make_score(name, float(n)) for n, name in enumerate(names)]
    objective = parts.settings.scored_objective
    recorder.record_scores(parts.database, scores, 0.0, SampleRules(scored_objective=objective))


@pytest.fixture(params=["ppo", "grpo"])
def parts(tmp_path: Path, request: pytest.FixtureRequest) -> Parts:
    options = {"policy_gradient": request.param, "release": "gate"}
    return Parts(folder=tmp_path, options=options)


async def test_rollouts_of_the_stable_version_are_fresh_after_five_quarantines(
    parts: Parts,
) -> None:
    publish(parts, parent=0, state="stable")
    for _ in range(5):
        publish(parts, parent=1, state="quarantined")
    head = versions.head(parts.database, "policy")
    assert head is not None
    assert (head.version, versions.newest_version(parts.database, "policy")) == (1, 6)
    score(parts, 1)
    assert await parts.turn()
    assert len(parts.used()) == 8


async def test_rollouts_of_the_version_that_serves_are_fresh_while_others_wait(
    parts: Parts,
) -> None:
    """Five candidates were held: nothing but version 1 can be sampled from."""
    publish(parts, parent=0, state="stable")
    for parent in range(1, 6):
        publish(parts, parent=parent)
    score(parts, 1)
    assert await parts.turn()


async def test_rollouts_of_the_base_model_are_fresh_until_a_version_serves(parts: Parts) -> None:
    for parent in range(6):
        publish(parts, parent=parent)
    score(parts, 0)
    assert await parts.turn()


def test_the_distance_is_counted_to_the_common_ancestor_and_back(parts: Parts) -> None:
    """0 ← 1 ← 2 ← 5 ← 6, the head, and 2 ← 3 ← 4, which is quarantined."""
    publish(parts, parent=0, state="stable")
    publish(parts, parent=1, state="stable")
    publish(parts, parent=2)
    publish(parts, parent=3)
    put_back(parts, 3)
    assert [publish(parts, parent=p, state="stable") for p in (2, 5)] == [5, 6]
    database = parts.database
    expected = {6: 0, 5: 1, 2: 2, 1: 3, 3: 3, 0: 4, 4: 4}
    for version, away in expected.items():
        assert lineage.distance(database, 6, version) == away
        assert lineage.distance(database, version, 6) == away
    for limit in range(5):
        near = {version for version, away in expected.items() if away <= limit}
        assert lineage.fresh_versions(database, limit) == near
    state = versions.get_version(database, "policy", 4).state
    assert state is not ReleaseState.CANDIDATE


async def test_the_metric_counts_as_the_limit_does(parts: Parts) -> None:
    publish(parts, parent=0, state="stable")
    for _ in range(5):
        publish(parts, parent=1, state="quarantined")
    publish(parts, parent=1)
    score(parts, 1)
    parts.training_run.step = 7
    assert await parts.turn()
    assert steps.staleness(parts.database) == 1


def test_a_rollout_of_several_versions_is_fresh_if_all_of_them_are(parts: Parts) -> None:
    """With full weights a swap falls into a request, here a roll-back from version 3 to 1."""
    for parent in range(3):
        publish(parts, parent=parent)
    score(parts, 1)
    with parts.database.write() as connection:
        connection.execute(update(rollouts).values(policy_version=3))
    objective = parts.settings.scored_objective
    assert ready.readiness(parts.database, objective, fresh_versions={1, 3}).count == 8
    assert ready.readiness(parts.database, objective, fresh_versions={1, 2}).count == 0
    assert ready.readiness(parts.database, objective, fresh_versions={2, 3}).count == 0
    assert ready.mark_stale(parts.database, objective, {1, 3}) == 0
    assert ready.mark_stale(parts.database, objective, {1}) == 8
