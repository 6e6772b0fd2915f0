"""Lineage and guards ask the same of both databases and are answered alike."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.learner_events import (
    START,
    make_comparison,
    make_rollout,
    make_score,
    make_thumb,
    make_turn,
)
from support.postgres_server import Postgres

from tuneloop.learner.guards.alarms import Alarm
from tuneloop.learner.guards.raters import Vote
from tuneloop.learner.ledger.accounting import (
    downstream,
    forget_user,
    senders,
    steps,
    versions,
)
from tuneloop.learner.ledger.accounting.downstream import Downstream
from tuneloop.learner.ledger.accounting.forget_user import PersonalData
from tuneloop.learner.ledger.accounting.senders import Sender
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.queue import ready
from tuneloop.learner.ledger.reports import (
    alarm_figures,
    alarms,
    feedback,
    rater_votes,
    sessions,
)
from tuneloop.learner.ledger.reports.feedback import FeedbackFilters
from tuneloop.learner.ledger.reports.rater_votes import Owner


@pytest.fixture(params=["sqlite", "postgres"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """Four thumbs of Ann and one of Bob, of which a version learned."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'ledger.db'}"
    else:
        server: Postgres = request.getfixturevalue("postgres")
        url = server.database()
    database = Database(url, writer=True)
    names = ["ann-1", "ann-2", "ann-3", "ann-4", "bob-1"]
    rollouts = [make_rollout(name, user=name[:3]) for name in names]
    recorder.record_rollouts(database, rollouts, 0.0)
    recorder.record_scores(database, [make_score(name, n) for n, name in enumerate(names)], 0.0)
    thumbs = [
        (make_thumb(f"{name}-f", name, n != 1, user=name[:3], second=n), n)
        for n, name in enumerate(names)
    ]
    judged = make_comparison("bob-2-f", "ann-1", "ann-2", user="bob", second=9)
    recorder.record_feedback(database, [*thumbs, (judged, 9)], 0.0)
    step = steps.Step(step=1, samples={"kto": ["ann-1-f"]}, skipped=False, metrics={"kl": 0.5})
    steps.commit_steps(database, "policy", [step], "step-1", 0.0)
    versions.add_version(
        database,
        model="policy",
        version=1,
        policy="tuneloop",
        parent=0,
        first_step=0,
        last_step=1,
        manifest="{}",
        created_time=datetime.now(UTC),
    )
    yield database
    database.close()


def test_lineage_and_forgetting(ledger: Database) -> None:
    assert downstream.of_feedback(ledger, "ann-1-f").policy == Downstream(direct=(1,))
    ann = downstream.of_user(ledger, "ann")
    assert (ann.rollouts, ann.feedback, ann.rebuild_from) == (4, 4, 0)
    assert ann.samples == {"open": 13, "used": 1}
    gone = forget_user.forget_user(ledger, "ann", START.timestamp() + 20)
    assert gone == forget_user.Forgotten(rollouts=4, feedback=5, policy_versions=(1,))
    assert forget_user.row_counts(ledger) == {
        "rollouts": 1,
        "feedback": 1,
        "signals": 0,
        "scores": 1,
        "samples": 3,
        "uses": 0,
    }
    late = make_thumb("ann-1-f", "ann-1", user="ann")
    assert recorder.record_feedback(ledger, [(late, 1)], 0.0) == []
    assert downstream.of_user(ledger, "ann").policy == Downstream(direct=(1,))


def test_a_session_is_looked_up_and_forgotten(ledger: Database) -> None:
    turns = [make_turn(f"c{n}", n, user="cat") for n in range(2)]
    recorder.record_rollouts(ledger, turns, 0.0)
    judged = make_thumb("cat-f", "", user="cat", second=9, session_id="s")
    recorder.record_feedback(ledger, [(judged, 10)], 0.0)
    found = sessions.of_session(ledger, "tuneloop", "default", "s")
    assert [answer.completion_id for answer in found.answers] == ["c0", "c1"]
    assert [entry.feedback for entry in found.feedback] == [judged]
    data = PersonalData(tenant="default", session_id="s")
    gone = forget_user.forget(ledger, data, START.timestamp() + 20)
    assert gone == forget_user.Forgotten(rollouts=2, feedback=1, policy_versions=())
    assert recorder.record_rollouts(ledger, turns, 0.0) == 0
    assert recorder.record_feedback(ledger, [(judged, 10)], 0.0) == []


def test_feedback_and_lineage_of_a_tag(ledger: Database) -> None:
    # Names and values that have to be quoted somewhere.
    tags = {"feature": "search", 'say "hi"': "it's, 100% \\ {a: b}", "zero": "\0"}
    tagged = [replace(make_rollout(f"c{n}", user="cat"), tags=tags) for n in range(2)]
    other = replace(make_rollout("c2", user="cat"), tags={"search": "feature", 'a,"feature': "s"})
    recorder.record_rollouts(ledger, [*tagged, other], 0.0)
    thumbs = [make_thumb(f"cat-{n}", f"c{n}", user="cat", second=9 + n) for n in range(3)]
    recorder.record_feedback(ledger, [(thumb, 0) for thumb in thumbs], 0.0)

    def found(**wanted: str) -> list[str]:
        filters = FeedbackFilters(tags=wanted)
        entries, _ = feedback.browse(ledger, "tuneloop", filters, limit=9)
        return [entry.feedback.feedback_id for entry in entries]

    assert found(feature="search") == found(**{'say "hi"': tags['say "hi"']}) == ["cat-1", "cat-0"]
    assert found(feature="search", zero="\N{REPLACEMENT CHARACTER}") == ["cat-1", "cat-0"]
    assert found(search="feature") == ["cat-2"]
    assert found(feature="s") == found(feature="Search") == found(feature="search", a="b") == []
    [entry], _ = feedback.browse(ledger, "tuneloop", FeedbackFilters(feedback_id="cat-0"), limit=9)
    assert entry.tags["feature"] == "search"

    step = steps.Step(step=2, samples={"kto": ["cat-0"]}, skipped=False, metrics={})
    steps.commit_steps(ledger, "policy", [step], "step-2", 0.0)
    lineage = senders.of_sender(ledger, Sender(tag=("feature", "search")))
    assert (lineage.feedback, lineage.users) == (2, 1)
    assert [(part.version, part.samples) for part in lineage.shares] == [(0, 1)]
    forget_user.forget_user(ledger, "cat", START.timestamp() + 20)
    assert found(feature="search") == []
    assert senders.of_sender(ledger, Sender(tag=("feature", "search"))).feedback == 0


def test_votes_and_owners(ledger: Database) -> None:
    votes = rater_votes.votes(ledger)
    said = Vote(topic="pair:ann-1|ann-2", rater="bob", up=True, family="pair")
    assert votes[:6][-1] == said
    machine = {v.topic: v.up for v in votes if v.rater == rater_votes.REWARD_MODEL}
    # One in five is bad to people, and so it is to the reward model.
    assert machine == {
        **{f"thumb:{name}": name != "ann-1" for name in ("ann-1", "ann-2", "ann-3", "ann-4")},
        "thumb:bob-1": True,
        "pair:ann-1|ann-2": False,
    }
    assert rater_votes.active(ledger, 10) == (2, 1)
    assert rater_votes.owners(ledger, "kto", ["bob-1-f"]) == {
        "bob-1-f": Owner(user="bob", tenant="default", has_judged=True)
    }
    assert rater_votes.owners(ledger, "ppo", ["ann-1"])["ann-1"].user == "ann"


def test_one_of_each_user_goes_first(ledger: Database) -> None:
    taken, _ = ready.take_samples(ledger, "kto", 2, of_each_user=1)
    assert [sample.sample_id for sample in taken] == ["ann-2-f", "bob-1-f"]


def test_figures_and_alarms(ledger: Database) -> None:
    seen = alarm_figures.seen(ledger, least=2, window=10)
    assert (seen.newest.thumbs.mean, seen.newest.reward.mean, seen.newest.length.mean) == (
        0.8,
        2.0,
        3.0,
    )
    assert (seen.before.thumbs.count, seen.kl) == (0, 0.5)
    assert seen.thumbs_by_user == {"ann": 4, "bob": 1}
    found = [Alarm(name="kl", numbers={"kl": 3.0})]
    raised, new, ended = alarms.record_alarms(ledger, found, 5.0)
    assert ([a.since.timestamp() for a in raised], new, ended) == ([5.0], ["kl"], [])
    assert alarms.record_alarms(ledger, found, 6.0)[0][0].since.timestamp() == 5.0
    assert alarms.record_alarms(ledger, [], 7.0) == ([], [], ["kl"])
    assert alarms.record_alarms(ledger, found, 8.0)[0][0].since.timestamp() == 8.0
