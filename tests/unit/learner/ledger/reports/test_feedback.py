"""What people see of the ledger: the list of feedback, and figures of each version's traffic."""

import math
from pathlib import Path
from statistics import mean, stdev

import pytest
from support.learner_events import (
    START,
    make_comparison,
    make_feedback,
    make_rollout,
    make_score,
    make_thumb,
)

from tuneloop.errors import InvalidRequest
from tuneloop.feedback import Comment, FeedbackKind, FeedbackStatus, Retraction
from tuneloop.learner.ledger.accounting import steps, versions
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import lifecycle, recorder
from tuneloop.learner.ledger.queue import ready
from tuneloop.learner.ledger.reports.feedback import FeedbackEntry, FeedbackFilters, browse
from tuneloop.learner.ledger.reports.traffic import traffic
from tuneloop.learner.service.versions import LatestTraffic
from tuneloop.rollouts import RolloutSource


@pytest.fixture
def ledger(tmp_path: Path) -> Database:
    return Database.at(tmp_path / "ledger.db")


def give(ledger: Database, *events: object) -> None:
    recorder.record_feedback(ledger, [(event, n) for n, event in enumerate(events)], 0.0)  # type: ignore[misc]


def retract(ledger: Database, feedback_id: str, kind: FeedbackKind) -> None:
    event = Retraction(
        feedback_id=feedback_id,
        kind=kind,
        policy="tuneloop",
        tenant="default",
        user_hash="u1",
        retracted_time=START,
    )
    lifecycle.record_retractions(ledger, [(event, 9)], 0.0)


def listed(
    ledger: Database, limit: int = 50, before: str = "", **filters: object
) -> list[FeedbackEntry]:
    return browse(ledger, "tuneloop", FeedbackFilters(**filters), limit=limit, before=before)[0]  # type: ignore[arg-type]


def ids(items: list[FeedbackEntry]) -> list[str]:
    return [item.feedback.feedback_id for item in items]


def test_pages_are_newest_first_and_lose_nothing(ledger: Database) -> None:
    # Several of the same moment, and one whose time is no short number.
    given = [make_thumb(f"t{n}", f"c{n}", second=n // 3 + 0.1) for n in range(10)]
    give(ledger, *given)
    seen: list[str] = []
    before = ""
    while True:
        items, before = browse(ledger, "tuneloop", FeedbackFilters(), limit=3, before=before)
        seen += ids(items)
        if not before:
            break
    assert sorted(seen) == sorted(event.feedback_id for event in given)
    assert seen[0] == "t9"
    assert listed(ledger, limit=1)[0].feedback == given[-1]
    for wrong in ("x", "x.y", "."):
        with pytest.raises(InvalidRequest) as refused:
            listed(ledger, before=wrong)
        assert refused.value.param == "before"


def test_what_it_is_about_and_who_learned_from_it(ledger: Database) -> None:
    answers = [
        make_rollout("a", group_id="g", n=2, text="A", version=2),
        make_rollout("b", group_id="g", n=2, text="B", version=2),
    ]
    recorder.record_rollouts(ledger, answers, 0.0)
    give(
        ledger,
        make_thumb("up", "a"),
        make_thumb("down", "b", False, second=1),
        make_comparison("c", "a", "b", "x", second=2),
        make_feedback("m", "x", Comment(text="hm"), second=3),
    )
    taken, _ = ready.take_samples(ledger, "dpo", 99)
    pair = next(s.sample_id for s in taken if s.sample_id.startswith("siblings"))
    done = [
        steps.Step(step=1, samples={"kto": ["up"]}, skipped=False, metrics={}),
        steps.Step(step=2, samples={"dpo": [pair, "c"]}, skipped=False, metrics={}),
    ]
    steps.commit_steps(ledger, "policy", done, "two", 0.0)
    for number in (1, 2):
        versions.add_version(
            ledger,
            model="policy",
            version=number,
            policy="tuneloop",
            parent=number - 1,
            first_step=number - 1,
            last_step=number,
            manifest="{}",
            created_time=START,
        )
    retract(ledger, "up", FeedbackKind.THUMB)
    comment, comparison, down, up = listed(ledger)
    assert (comment.prompt_text, comment.completions, comment.used_by_versions) == ("", (), ())
    assert [c.text for c in comparison.completions] == ["A", "B"]
    assert comparison.used_by_versions == (2,)
    assert down.used_by_versions == (2,), "by the pair that it is half of"
    assert up.used_by_versions == (1, 2), "also after it was taken back"
    assert up.status is FeedbackStatus.RETRACTED
    assert up.messages[0].content == "Hi"
    assert ids(listed(ledger, kind=FeedbackKind.COMPARISON)) == ["c"]
    assert ids(listed(ledger, up=False)) == ["down"]
    assert ids(listed(ledger, status=FeedbackStatus.RETRACTED)) == ["up"]
    assert ids(listed(ledger, policy_version=2)) == ["c", "down", "up"]
    assert ids(listed(ledger, policy_version=1)) == []
    assert ids(listed(ledger, user_hash="u2")) == []


def test_traffic_by_version(ledger: Database) -> None:
    lengths = [3, 5, 10]
    rewards = [0.5, -1.0, 2.0]
    for n, (length, reward) in enumerate(zip(lengths, rewards, strict=True)):
        answer = make_rollout(f"c{n}", completion=range(length), version=1)
        recorder.record_rollouts(ledger, [answer], 0.0)
        scored = [make_score(f"c{n}", -9.0), make_score(f"c{n}", reward, reward_model_version=2)]
        recorder.record_scores(ledger, scored, 0.0)
    others = [
        make_rollout("base"),
        make_rollout("eval", version=1, source=RolloutSource.EVAL),
        make_rollout("prompt", version=1, source=RolloutSource.PROMPTS),
    ]
    recorder.record_rollouts(ledger, others, 0.0)
    give(
        ledger,
        make_thumb("t0", "c0"),
        make_thumb("t1", "c0", False, second=1),
        make_thumb("t2", "c0", user="u2", second=2),
        make_thumb("t3", "c1", second=3),
        make_thumb("t4", "c1", False, second=4),
        make_thumb("t5", "eval", False, second=5),
    )
    retract(ledger, "t4", FeedbackKind.THUMB)
    found = traffic(ledger, [0, 1, 2])
    assert set(found) == {0, 1}
    one = found[1]
    assert one.rollouts == 3
    assert one.length.value == mean(lengths)
    assert one.length.margin == pytest.approx(1.96 * stdev(lengths) / math.sqrt(3))
    assert one.reward is not None
    assert one.reward.value == mean(rewards)
    assert one.reward.margin == pytest.approx(1.96 * stdev(rewards) / math.sqrt(3))
    assert (one.thumbs_up, one.thumbs_down) == (2, 1)
    base = found[0]
    assert (base.rollouts, base.length.margin, base.reward) == (1, None, None)
    assert (base.thumbs_up, base.thumbs_down) == (0, 0)


def test_traffic_is_not_counted_for_every_look(ledger: Database) -> None:
    now = 0.0
    latest = LatestTraffic(ledger, seconds=2.0, clock=lambda: now)
    assert latest.of([0]) == {0: None}
    recorder.record_rollouts(ledger, [make_rollout("a"), make_rollout("b", version=1)], 0.0)
    found = latest.of([0, 1])
    assert (found[0], found[1].rollouts if found[1] else None) == (None, 1)
    now = 2.5
    assert (found := latest.of([0])[0]) is not None
    assert found.rollouts == 1


def test_staleness_of_the_last_scored_batch(ledger: Database) -> None:
    assert steps.staleness(ledger) is None
    answers = [make_rollout(f"c{n}", version=version) for n, version in enumerate((0, 0, 1, 2))]
    recorder.record_rollouts(ledger, answers, 0.0)
    recorder.record_scores(ledger, [make_score(f"c{n}", 0.5) for n in range(4)], 0.0)
    recorder.record_rollouts(ledger, [make_rollout("k")], 0.0)
    give(ledger, make_thumb("t", "k"))

    def learn(number: int, **samples: list[str]) -> None:
        step = steps.Step(step=number, samples=samples, skipped=False, metrics={})
        steps.commit_steps(ledger, "policy", [step], f"step-{number}", 0.0)
        versions.add_version(
            ledger,
            model="policy",
            version=number,
            policy="tuneloop",
            parent=number - 1,
            first_step=number - 1,
            last_step=number,
            manifest="{}",
            created_time=START,
        )

    learn(1, ppo=["c0"])
    assert steps.staleness(ledger) == 0
    learn(2, ppo=["c1"])
    assert steps.staleness(ledger) == 1
    learn(3, ppo=["c2", "c3"])
    # The third step's weights grew from version 2, the answers are of versions 1 and 2.
    assert steps.staleness(ledger) == 0.5
    learn(4, kto=["t"])
    assert steps.staleness(ledger) == 0.5
