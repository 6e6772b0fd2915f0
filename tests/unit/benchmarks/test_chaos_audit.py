"""The audit after chaos finds what is wrong; it must not be content with anything."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from chaos.audit import audit, open_thumbs
from chaos.clients import Failure, Memory, Thumb
from chaos.faults import Outage
from support.learner_parts import Parts

COUNT = 12
DOWN = [Outage(what="generation", start=10.0, end=20.0)]


@pytest.fixture
async def learned(tmp_path: Path) -> Memory:
    """Thumbs that were taken in, learned from and published; what their users remember."""
    parts = Parts(folder=tmp_path, options={"publish_every_steps": 1})
    parts.thumbs(0, COUNT)
    while await parts.turn():
        pass
    parts.database.close()
    thumbs = {
        f"f{n}": Thumb(feedback_id=f"f{n}", completion_id=f"c{n}", up=n % 2 == 0)
        for n in range(COUNT)
    }
    answers = {thumb.completion_id: 1.0 for thumb in thumbs.values()}
    return Memory(answers=answers, acknowledged=dict(thumbs), attempted=dict(thumbs))


def test_a_good_run_has_counts_and_no_problems(learned: Memory, tmp_path: Path) -> None:
    found = audit(tmp_path, learned, DOWN)
    assert found.problems == []
    assert found.counts["thumbs in the ledger"] == COUNT
    assert found.counts["thumbs trained"] == COUNT
    assert found.counts["policy: versions"] == COUNT // 4
    assert open_thumbs(tmp_path, learned, set()) == []


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("DELETE FROM feedback WHERE feedback_id = 'f3'", "acknowledged but not in the ledger"),
        ("UPDATE feedback SET up = 1 - up WHERE feedback_id = 'f3'", "with another verdict"),
        ("UPDATE feedback SET feedback_id = 'x' WHERE feedback_id = 'f3'", "never pressed"),
        ("DELETE FROM uses WHERE sample_id = 'f3'", "could be trained but was not"),
        ("DELETE FROM steps WHERE step = 2", "a step that does not exist"),
        ("UPDATE steps SET step = 9 WHERE step = 3", "policy: steps missing"),
        ("UPDATE versions SET version = 9 WHERE version = 3", "policy: versions missing"),
        ("UPDATE versions SET first_step = 0 WHERE version = 3", "where their parent ended"),
        ("UPDATE versions SET manifest_sha256 = '0' WHERE version = 2", "that do not verify"),
        ("UPDATE uses SET policy_version = 1 WHERE policy_version = 2", "counts other samples"),
        ("DELETE FROM versions WHERE version = 3", "versions in the store only"),
        (
            "CREATE TABLE u AS SELECT * FROM uses; DROP TABLE uses; ALTER TABLE u RENAME TO uses;"
            "INSERT INTO uses SELECT * FROM uses WHERE sample_id = 'f3'",
            "trained more than once",
        ),
    ],
    ids=lambda value: value[:24],
)
def test_damage_is_found(learned: Memory, tmp_path: Path, damage: str, problem: str) -> None:
    with closing(sqlite3.connect(tmp_path / "learner" / "ledger.db")) as ledger:
        ledger.executescript(damage)
    assert problem in " ".join(audit(tmp_path, learned, DOWN).problems)


def test_a_changed_file_is_found(learned: Memory, tmp_path: Path) -> None:
    file = next((tmp_path / "weights" / "tuneloop" / "00000002").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x00\x01")
    assert "that do not verify" in " ".join(audit(tmp_path, learned, DOWN).problems)


@pytest.mark.parametrize(
    ("what", "start", "end", "excused"),
    [
        ("chat", 9.0, 10.5, True),
        ("chat", 19.9, 25.0, True),
        ("chat", 5.0, 9.9, False),
        ("chat", 20.1, 21.0, False),
        ("thumb", 12.0, 13.0, False),
    ],
)
def test_a_failure_is_excused_only_by_what_it_needed(
    learned: Memory, tmp_path: Path, what: str, start: float, end: float, excused: bool
) -> None:
    learned.failures.append(Failure(what=what, start=start, end=end, problem="503"))
    problems = audit(tmp_path, learned, DOWN).problems
    assert (problems == []) is excused
    assert excused or "requests that failed otherwise" in problems[0]
