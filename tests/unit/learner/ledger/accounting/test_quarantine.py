"""Quarantine: the learner goes back to the last good version, and what it used is put back."""

from pathlib import Path

import pytest
from sqlalchemy import select
from support.learner_parts import Parts

from tuneloop.learner.ledger.accounting import decisions, forget_user, quarantine, versions
from tuneloop.learner.ledger.queue import ready
from tuneloop.learner.ledger.schema import samples, undone_uses
from tuneloop.learner.training_run import BEGINNING


@pytest.fixture
async def parts(tmp_path: Path) -> Parts:
    """Version 1 is stable, learned from f0 to f7; version 2 is a candidate, from f8 to f15."""
    parts = Parts(folder=tmp_path, options={"release": "gate"})
    parts.training_run.restore()
    await publish(parts, 0)
    await parts.release.promote(1, "gate")
    await publish(parts, 8)
    return parts


async def publish(parts: Parts, start: int) -> None:
    parts.thumbs(start, 8)
    await learn(parts)


async def learn(parts: Parts) -> None:
    """Two steps, which make a version."""
    await parts.turn()
    await parts.turn()


def states(parts: Parts) -> dict[int, str]:
    found = versions.list_versions(parts.database, "policy", limit=9)
    return {version.version: version.state.value for version in found}


def open_samples(parts: Parts) -> list[str]:
    return [sample.sample_id for sample in ready.take_samples(parts.database, "kto", 99)[0]]


def numbered(first: int, last: int) -> list[str]:
    return [f"f{n}" for n in range(first, last)]


async def test_a_refused_candidate_is_forgotten_by_the_learner(parts: Parts) -> None:
    await parts.release.quarantine(2, "it babbles", {"kl": 9.0}, actor="gate")
    assert await parts.release.stable("policy") == 1
    assert states(parts) == {1: "stable", 2: "quarantined"}

    assert parts.training_run.rewind(set_aside_after=2)

    assert parts.trainer.learned == [f"kto:{name}" for name in numbered(0, 8)]
    assert (parts.training_run.step, parts.training_run.parent) == (2, 1)
    assert parts.used() == {name: 1 + n // 4 for n, name in enumerate(numbered(0, 8))}
    assert open_samples(parts) == numbered(8, 16)
    assert not parts.training_run.rewind(set_aside_after=2)
    (decision,) = decisions.of_version(parts.database, "policy", 2)
    assert (decision.kind, decision.outcome) == ("quarantine", "quarantined")
    assert (decision.reason, decision.actor) == ("it babbles", "gate")
    assert decision.numbers == {"kl": 9.0}


async def test_the_next_version_grows_from_the_good_one(parts: Parts) -> None:
    await parts.release.quarantine(2, "it babbles", actor="gate")
    await learn(parts)
    version = versions.get_version(parts.database, "policy", 3)
    assert (version.parent, version.first_step, version.last_step) == (1, 2, 4)
    assert states(parts) == {1: "stable", 2: "quarantined", 3: "candidate"}


async def test_samples_behind_two_quarantines_are_set_aside(parts: Parts) -> None:
    await parts.release.quarantine(2, "it babbles", actor="gate")
    await learn(parts)
    await parts.release.quarantine(3, "it babbles again", actor="gate")
    parts.thumbs(16, 8)
    await learn(parts)
    assert parts.store.manifest("tuneloop", 4).data.samples == {"kto": 8}
    assert set(parts.used()) == {*numbered(0, 8), *numbered(16, 24)}
    with parts.database.read() as connection:
        query = select(samples.c.sample_id, samples.c.note).where(samples.c.state == "set_aside")
        aside = {row.sample_id: row.note for row in connection.execute(query)}
    assert sorted(aside) == sorted(numbered(8, 16))
    assert aside["f8"] == "versions 2, 3 learned from it and were quarantined"


async def test_what_a_refused_version_had_learned_stays_on_record(parts: Parts) -> None:
    await parts.release.quarantine(2, "it babbles", actor="gate")
    parts.training_run.rewind(set_aside_after=2)
    with parts.database.read() as connection:
        rows = connection.execute(select(undone_uses)).all()
    assert {row.sample_id for row in rows} == set(numbered(8, 16))
    assert {(row.version, row.blamed) for row in rows} == {(2, True)}
    gone = forget_user.forget_user(parts.database, "u1", now=parts.clock())
    assert gone.policy_versions == (1, 2)
    with parts.database.read() as connection:
        assert connection.execute(select(undone_uses)).all() == []


async def test_what_grew_from_a_refused_version_goes_with_it_without_blame(parts: Parts) -> None:
    await publish(parts, 16)
    parts.thumbs(24, 4)
    await parts.turn()
    await parts.release.quarantine(2, "it babbles", actor="gate")
    assert states(parts) == {1: "stable", 2: "quarantined", 3: "retired"}
    parts.training_run.rewind(set_aside_after=1)
    # Only what version 2 knew is to blame for it.
    assert open_samples(parts) == numbered(16, 28)
    assert decisions.of_version(parts.database, "policy", 3)[0].reason == (
        "grew from version 2, which is quarantined"
    )


async def test_a_version_passed_over_is_undone_with_the_refused_one_after_it(parts: Parts) -> None:
    await publish(parts, 16)
    parts.release.supersede(2, 3, "gate")
    await parts.release.quarantine(3, "it babbles", actor="gate")
    assert states(parts) == {1: "stable", 2: "retired", 3: "quarantined"}
    parts.training_run.rewind(set_aside_after=2)
    # Version 2 never was good: nobody looked at it.
    assert parts.training_run.parent == 1
    assert open_samples(parts) == numbered(8, 24)


async def test_taking_back_data_puts_no_blame_on_the_rest(parts: Parts) -> None:
    await parts.release.promote(2, "gate")
    await parts.release.quarantine(1, "a user is forgotten", actor="ann", kind="rebuild")
    assert await parts.release.stable("policy") == 0
    assert states(parts) == {1: "quarantined", 2: "quarantined"}
    parts.training_run.rewind(set_aside_after=1)
    assert open_samples(parts) == numbered(0, 16)
    assert (parts.training_run.step, parts.training_run.parent, parts.trainer.learned) == (0, 0, [])
    assert {d.kind for d in decisions.of_version(parts.database, "policy", 1)} >= {"rebuild"}


async def test_a_person_rolls_back_and_the_learner_with_it(parts: Parts) -> None:
    await parts.release.promote(2, "gate")
    await publish(parts, 16)
    await parts.release.promote(3, "gate")
    assert await parts.release.roll_back(1, "ann") == 1
    assert states(parts) == {1: "stable", 2: "quarantined", 3: "quarantined"}
    await learn(parts)
    # The batch is the oldest of what was put back.
    assert set(parts.used()) == set(numbered(0, 16))
    assert states(parts)[4] == "candidate"
    assert versions.get_version(parts.database, "policy", 4).parent == 1
    kinds = [d.kind for d in decisions.of_version(parts.database, "policy", 1)]
    assert kinds == ["promote", "roll back"]


async def test_a_crash_before_the_learner_went_back_only_delays_it(parts: Parts) -> None:
    await parts.release.quarantine(2, "it babbles", actor="gate")
    after = parts.again()
    after.training_run.restore()
    assert len(after.trainer.learned) == 16
    assert after.training_run.rewind(set_aside_after=2)
    assert len(after.trainer.learned) == 8


async def test_a_crash_between_ledger_and_checkpoint_goes_back_as_well(parts: Parts) -> None:
    await parts.release.quarantine(2, "it babbles", actor="gate")
    quarantine.put_back(parts.database, parts.clock(), 2)
    after = parts.again()
    after.training_run.restore()
    assert after.trainer.learned == [f"kto:{name}" for name in numbered(0, 8)]
    assert after.training_run.parent == 1


async def test_checkpoints_of_what_may_be_gone_back_to_are_kept(parts: Parts) -> None:
    for start in range(16, 48, 8):
        await publish(parts, start)
    folder = parts.settings.data_dir / "checkpoints" / "policy"
    names = sorted(path.name for path in folder.iterdir())
    # The beginning, the stable version's, two candidates' (the last was none yet), the newest two.
    assert [int(name.removeprefix("step-")) for name in names] == [0, 2, 8, 10, 11, 12]
    assert names[0] == BEGINNING


async def test_a_first_version_that_is_refused_leads_back_to_the_base(tmp_path: Path) -> None:
    parts = Parts(folder=tmp_path, options={"release": "gate"})
    parts.training_run.restore()
    await publish(parts, 0)
    after = parts.again()
    await after.release.quarantine(1, "it babbles", actor="gate")
    after.training_run.restore()
    after.training_run.rewind(set_aside_after=2)
    assert (after.training_run.step, after.training_run.parent, after.trainer.learned) == (0, 0, [])
    assert open_samples(after) == numbered(0, 8)
