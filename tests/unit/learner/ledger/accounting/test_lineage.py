"""Lineage in the ledger: of versions, of feedback, of users; and forgetting."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select
from support.learner_events import (
    START,
    make_comparison,
    make_feedback,
    make_ranking,
    make_rollout,
    make_score,
    make_thumb,
)

from tuneloop.errors import NotFound
from tuneloop.feedback import Comment
from tuneloop.learner.ledger.accounting import downstream, forget_user, lineage, steps, versions
from tuneloop.learner.ledger.accounting.downstream import Downstream
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.queue import ref_logprobs
from tuneloop.learner.ledger.reports.export import Wanted, pages
from tuneloop.learner.ledger.schema import forgotten, metadata, samples, scores
from tuneloop.rollouts import RolloutSource


@pytest.fixture
def ledger(tmp_path: Path) -> Database:
    """Ann's and Bob's thumbs in two versions, of which 2 grew from 1, and 3 from 2."""
    database = Database.at(tmp_path / "ledger.db")
    rollouts = [make_rollout(f"{user}-c{n}", user=user) for user in ("ann", "bob") for n in (1, 2)]
    recorder.record_rollouts(database, rollouts, 0.0)
    thumbs = [
        (make_thumb(f"{r.completion_id}-f", r.completion_id, user=r.user_hash), 1) for r in rollouts
    ]
    recorder.record_feedback(database, thumbs, 0.0)
    publish(database, 1, "bob-c1-f")
    publish(database, 2, "ann-c1-f")
    publish(database, 3, "bob-c2-f")
    return database


def publish(database: Database, version: int, *sample_ids: str, model: str = "policy") -> None:
    objective = "kto" if model == "policy" else "reward_model"
    step = steps.Step(
        step=version, samples={objective: list(sample_ids)}, skipped=False, metrics={}
    )
    steps.commit_steps(database, model, [step], f"step-{version}", 0.0)
    versions.add_version(
        database,
        model=model,
        version=version,
        policy="tuneloop",
        parent=version - 1,
        first_step=version - 1,
        last_step=version,
        manifest="{}",
        created_time=datetime.now(UTC),
        settings='{"batch_size": 4}',
    )


def test_feedback_reaches_versions_that_used_it_and_what_grew_from_them(ledger: Database) -> None:
    publish(ledger, 1, "ann-c1-f", model="reward_model")
    found = downstream.of_feedback(ledger, "ann-c1-f")
    assert found.policy == Downstream(direct=(2,), descended=(3,))
    assert found.reward_model == Downstream(direct=(1,))
    assert (found.kind, found.status, found.user_hash) == ("thumb", "accepted", "ann")
    assert [(s.objective, s.state, s.steps) for s in found.samples] == [
        ("kto", "used", (2,)),
        ("reward_model", "used", (1,)),
    ]
    assert downstream.of_feedback(ledger, "ann-c2-f").policy == Downstream()
    with pytest.raises(NotFound, match="no feedback 'f9'"):
        downstream.of_feedback(ledger, "f9")


def test_a_pair_of_siblings_is_of_both_its_thumbs(ledger: Database) -> None:
    pair = [make_rollout(f"s{n}", group_id="g", user="cat", n=2) for n in (1, 2)]
    recorder.record_rollouts(ledger, pair, 0.0)
    thumbs = [(make_thumb(f"s{n}-f", f"s{n}", n == 1, user="cat"), n) for n in (1, 2)]
    recorder.record_feedback(ledger, thumbs, 0.0)
    for feedback_id in ("s1-f", "s2-f"):
        found = downstream.of_feedback(ledger, feedback_id)
        assert [s.objective for s in found.samples] == ["dpo", "kto", "reward_model"]


def test_a_user_reaches_what_learned_from_their_judgements_and_of_their_answers(
    ledger: Database,
) -> None:
    judged = make_comparison("cat-f", "ann-c1", "bob-c1", user="cat")
    recorder.record_feedback(ledger, [(judged, 1)], 0.0)
    found = downstream.of_user(ledger, "ann")
    assert (found.rollouts, found.feedback) == (2, 2)
    # The comparison of two answers, of which one was made for her, is of her too.
    assert found.samples == {"open": 5, "used": 1}
    assert found.policy == Downstream(direct=(2,), descended=(3,))
    assert found.rebuild_from == 1
    assert downstream.of_user(ledger, "bob").rebuild_from == 0
    nobody = downstream.of_user(ledger, "dan")
    assert (nobody.rollouts, nobody.policy, nobody.rebuild_from) == (0, Downstream(), None)


def test_a_version_names_its_feedback_its_rollouts_and_its_settings(ledger: Database) -> None:
    (use,) = lineage.uses_of(ledger, "policy", 2)
    assert (use.feedback_id, use.completion_id, use.rejected_id) == ("ann-c1-f", "ann-c1", None)
    assert json.loads(versions.get_version(ledger, "policy", 2).settings) == {"batch_size": 4}


def test_forgetting_keeps_only_that_it_happened(ledger: Database) -> None:
    publish(ledger, 1, "ann-c1-f", "ann-c2-f", model="reward_model")
    recorder.record_feedback(
        ledger,
        [
            (make_ranking("cat-r", "bob-c1", "ann-c1", "bob-c2", user="cat"), 1),
            (make_comparison("cat-f", "bob-c1", "ann-c2", user="cat"), 1),
            (make_thumb("cat-t", "bob-c1", user="cat"), 1),
        ],
        0.0,
    )
    recorder.record_scores(ledger, [make_score("ann-c1"), make_score("bob-c1")], 0.0)
    ref_logprobs.save_logprobs(ledger, {"key": (-1.0,)})
    now = START.timestamp() + 10
    gone = forget_user.forget_user(ledger, "ann", now)
    assert gone == forget_user.Forgotten(
        rollouts=2, feedback=4, policy_versions=(2,), reward_model_versions=(1,)
    )
    with ledger.read() as connection:
        for table in metadata.sorted_tables:
            if table is forgotten:
                continue
            text = json.dumps([list(map(str, row)) for row in connection.execute(select(table))])
            assert "ann" not in text, table.name
    for kind in ("thumbs", "pairs", "rollouts"):
        rows = [row for page in pages(ledger, Wanted(kind=kind)) for row in page]
        assert "ann" not in "".join(rows)
    found = downstream.of_user(ledger, "ann")
    assert (found.rollouts, found.feedback, found.samples) == (0, 0, {})
    assert found.policy == Downstream(direct=(2,), descended=(3,))
    assert found.reward_model == Downstream(direct=(1,))
    assert found.rebuild_from == 1
    assert [(r.forgotten, r.time.timestamp()) for r in found.forgotten] == [(gone, now)]


def test_nothing_that_a_forgotten_user_wrote_is_left_on_disk(tmp_path: Path) -> None:
    ledger = Database.at(tmp_path / "ledger.db")
    said = "a text that nobody else wrote"
    for number in range(200):
        name = f"ann-{number}"
        rollout = make_rollout(name, user="ann", text=f"{said} {number}")
        recorder.record_rollouts(ledger, [rollout], 0.0)
        comment = make_feedback(f"{name}-f", name, Comment(text=said), user="ann")
        recorder.record_feedback(ledger, [(comment, number)], 0.0)
    recorder.record_rollouts(ledger, [make_rollout("bob-c", user="bob", text="of bob")], 0.0)

    def on_disk(text: str) -> int:
        return sum(file.read_bytes().count(text.encode()) for file in tmp_path.iterdir())

    assert on_disk(said) >= 400
    forget_user.forget_user(ledger, "ann", START.timestamp() + 10)
    assert on_disk(said) == 0
    assert on_disk("of bob") == 1


def test_what_was_on_its_way_when_a_user_was_forgotten_is_not_kept(ledger: Database) -> None:
    forget_user.forget_user(ledger, "ann", START.timestamp() + 10)
    late = make_thumb("ann-c1-f", "ann-c1", user="ann", second=9)
    assert recorder.record_feedback(ledger, [(late, 1)], 0.0) == []
    assert recorder.record_rollouts(ledger, [make_rollout("ann-c1", user="ann")], 0.0) == 0
    # Who comes back is a user like any other.
    back = make_thumb("ann-back", "bob-c1", user="ann", second=11)
    assert len(recorder.record_feedback(ledger, [(back, 2)], 0.0)) == 1


def test_a_score_that_came_too_late_goes_when_they_are_forgotten_again(ledger: Database) -> None:
    forget_user.forget_user(ledger, "ann", 0.0)
    recorder.record_scores(ledger, [make_score("ann-c1"), make_score("bob-c1")], 0.0)
    forget_user.forget_user(ledger, "ann", 0.0)
    with ledger.read() as connection:
        assert connection.execute(select(scores.c.completion_id)).scalars().all() == ["bob-c1"]
        open_scores = select(samples.c.sample_id).where(samples.c.kind == "score")
        assert connection.execute(open_scores).scalars().all() == ["bob-c1"]


def test_eval_answers_of_a_user_are_forgotten_too(ledger: Database) -> None:
    asked = make_rollout("ann-eval", user="ann", source=RolloutSource.EVAL)
    recorder.record_rollouts(ledger, [asked], 0.0)
    assert forget_user.forget_user(ledger, "ann", 0.0).rollouts == 3


def test_nothing_is_to_be_built_again_where_the_line_was_left(ledger: Database) -> None:
    steps.roll_back(ledger, "policy", 1, 0.0)
    assert downstream.of_user(ledger, "ann").rebuild_from is None
