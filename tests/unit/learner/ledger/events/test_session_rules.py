"""A session is judged once: which turns learn from it, and how much each counts."""

import json
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from support.learner_events import (
    START,
    make_feedback,
    make_metric,
    make_rating,
    make_thumb,
    make_turn,
)

from tuneloop.feedback import Feedback, Metric, Retraction
from tuneloop.learner.ledger.accounting import downstream, steps
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import lifecycle, recorder
from tuneloop.learner.ledger.events.sample_rules import CreditRule, SampleRules, SessionCredit
from tuneloop.learner.ledger.queue import agreement, groups, prompts, ready
from tuneloop.learner.ledger.queue import ratings as user_ratings
from tuneloop.learner.ledger.reports import canary_traffic, export, rater_votes, traffic
from tuneloop.learner.ledger.reports import feedback as listed
from tuneloop.learner.ledger.reports.metric_sums import metric_sums
from tuneloop.learner.ledger.schema import feedback, samples
from tuneloop.learner.models.batch import collate
from tuneloop.learner.samples import LabelledText, RatedText
from tuneloop.rollouts import Rollout, RolloutSource

LATE = 50
"""Seconds after the start at which everything was answered."""
NOW = START.timestamp()
EACH_TURN = CreditRule()
judge = partial(make_thumb, completion_id="", session_id="s", second=LATE)


@pytest.fixture
def ledger(tmp_path: Path) -> Database:
    return Database.at(tmp_path / "ledger.db")


def add(
    ledger: Database, *events: Any, rule: CreditRule = EACH_TURN, reward_metric: str = ""
) -> None:
    rules = SampleRules(scored_objective="grpo", credit=rule, reward_metric=reward_metric)
    for event in events:
        match event:
            case Rollout():
                recorder.record_rollouts(ledger, [event], NOW, rules)
            case Feedback():
                recorder.record_feedback(ledger, [(event, 1)], NOW, rules)
            case Retraction():
                lifecycle.record_retractions(ledger, [(event, 2)], NOW)


def retraction_of(event: Feedback) -> Retraction:
    return Retraction(
        feedback_id=event.feedback_id,
        kind=event.kind,
        policy=event.policy,
        tenant=event.tenant,
        user_hash=event.user_hash,
        retracted_time=START,
    )


def take(ledger: Database, objective: str = "kto") -> list[Any]:
    return ready.take_samples(ledger, objective, 99)[0]


def weights(ledger: Database, objective: str = "kto") -> dict[str, float]:
    """Return the weight of each ready sample."""
    return {sample.sample_id: sample.weight for sample in take(ledger, objective)}


def use(ledger: Database, number: int, *ids: str) -> None:
    step = steps.Step(step=number, samples={"kto": ids}, skipped=False, metrics={})
    steps.commit_steps(ledger, "policy", [step], f"step-{number}", NOW)


@pytest.mark.parametrize(
    ("credit", "discount", "expected"),
    [
        (SessionCredit.LAST, 0.9, [0.0, 0.0, 1.0]),
        (SessionCredit.EACH, 0.9, [1 / 3, 1 / 3, 1 / 3]),
        # 0.25 : 0.5 : 1 of 1.75
        (SessionCredit.DISCOUNTED, 0.5, [1 / 7, 2 / 7, 4 / 7]),
        # 0.81 : 0.9 : 1 of 2.71
        (SessionCredit.DISCOUNTED, 0.9, [81 / 271, 90 / 271, 100 / 271]),
        (SessionCredit.DISCOUNTED, 1.0, [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_one_judgement_weighs_one_in_all(
    ledger: Database, credit: SessionCredit, discount: float, expected: list[float]
) -> None:
    rule = CreditRule(credit=credit, discount=discount)
    assert rule.weights(3) == pytest.approx(expected)
    assert rule.weights(0) == []
    add(ledger, *(make_turn(f"c{n}", n) for n in range(3)), judge("f"), rule=rule)
    of_turns = {f"f.c{n}": weight for n, weight in enumerate(expected) if weight}
    assert weights(ledger) == pytest.approx(of_turns)
    labels = take(ledger, "reward_model")
    assert {label.sample_id: label.weight for label in labels} == pytest.approx(of_turns)
    assert isinstance(labels[-1], LabelledText)
    assert labels[-1].completion == "Answer 2"


def test_a_discount_of_many_turns_leaves_no_turn_out() -> None:
    rule = CreditRule(credit=SessionCredit.DISCOUNTED, discount=0.9)
    many = rule.weights(2000)
    assert sum(many) == pytest.approx(1.0)
    assert min(many) > 0.0
    assert many[-1] == pytest.approx(0.1)


def test_only_turns_of_that_tenants_session_that_were_answered_before_count(
    ledger: Database,
) -> None:
    add(
        ledger,
        make_turn("c0", 0),
        make_turn("just-now", 1, second=LATE + 0.5),
        make_turn("after", 2, second=LATE + 2),
        make_turn("another", 0, session_id="s2"),
        make_turn("theirs", 0, tenant="other"),
        make_turn("own-prompt", 3, source=RolloutSource.PROMPTS),
        judge("f"),
    )
    assert weights(ledger) == {"f.c0": 0.5, "f.just-now": 0.5}


def test_of_several_candidates_the_chosen_one_alone_is_the_turn(ledger: Database) -> None:
    add(
        ledger,
        make_turn("c0", 0),
        make_turn("c1.1", 1, group_id="c1", n=3),
        *(
            make_turn(name, 1, group_id="c1", n=3, text=text, source=RolloutSource.CANDIDATE)
            for name, text in (("c1", "Another"), ("c1.2", "Answer 1"))
        ),
        judge("f"),
    )
    assert weights(ledger) == {"f.c0": 0.5, "f.c1.1": 0.5}


def test_held_out_prompts_leave_their_credit_to_the_other_turns(ledger: Database) -> None:
    prompts.hold_out(ledger, [(1, 5, 11)])
    add(ledger, make_turn("c0", 0), make_turn("held", 1), make_turn("c2", 2), judge("f"))
    assert weights(ledger) == {"f.c0": 0.5, "f.c2": 0.5}


def test_of_several_choices_that_one_counts_which_the_conversation_goes_on_with(
    ledger: Database,
) -> None:
    add(ledger, make_turn("a", 0, text="No."), make_turn("b", 0, text="Answer 0"), judge("f"))
    assert weights(ledger) == {"f.a": 0.5, "f.b": 0.5}
    add(ledger, make_turn("c", 1))
    assert weights(ledger) == {"f.b": 0.5, "f.c": 0.5}
    assert ready.counts(ledger, "kto") == ready.SampleCounts(ready=2, waiting=0, used=0)


def test_choices_that_cannot_be_told_apart_share_the_credit_of_their_turn(
    ledger: Database,
) -> None:
    add(ledger, make_turn("a", 0, text="<tool_call>"), make_turn("b", 0, text="No."))
    add(ledger, make_turn("c", 1), judge("f"))
    assert weights(ledger) == {"f.a": 0.25, "f.b": 0.25, "f.c": 0.5}


def test_it_waits_for_its_turns_and_expires_without_them(ledger: Database) -> None:
    add(ledger, judge("f"))
    assert ready.counts(ledger, "kto") == ready.SampleCounts(ready=0, waiting=1, used=0)
    add(ledger, make_turn("c0", 0))
    assert ready.counts(ledger, "kto") == ready.SampleCounts(ready=1, waiting=0, used=0)
    add(ledger, judge("never", session_id="never"))
    wait = partial(lifecycle.expire_feedback, ledger, max_age=None, rollout_wait=10.0)
    assert wait(NOW + 9) == 0
    assert wait(NOW + 11) == 1
    add(ledger, make_turn("late", 0, session_id="never"))
    assert weights(ledger) == {"f.c0": 1.0}
    assert lifecycle.expire_feedback(ledger, NOW + 99, max_age=40.0, rollout_wait=None) == 1
    assert weights(ledger) == {}


def test_what_was_used_does_not_change(ledger: Database) -> None:
    add(ledger, make_turn("c0", 0), judge("f"))
    use(ledger, 1, "f.c0")
    add(ledger, make_turn("c1", 1))
    assert weights(ledger) == {}
    with ledger.read() as connection:
        query = select(samples.c.sample_id, samples.c.state, samples.c.weight).where(
            samples.c.objective == "kto"
        )
        assert connection.execute(query).all() == [("f.c0", "used", 1.0)]


def test_a_turn_is_trained_again_only_by_a_verdict_that_differs(ledger: Database) -> None:
    add(ledger, make_turn("c0", 0), make_turn("c1", 1), judge("f", second=2))
    use(ledger, 1, "f.c0", "f.c1")
    add(ledger, make_turn("c2", 2, second=3), judge("again", second=5))
    assert weights(ledger) == {"again.c2": pytest.approx(1 / 3)}
    add(ledger, judge("down", up=False, second=6))
    third = pytest.approx(1 / 3)
    assert weights(ledger) == {"down.c0": third, "down.c1": third, "down.c2": third}


@pytest.mark.parametrize("turn_first", [True, False])
def test_a_verdict_on_a_turn_wins_over_one_on_its_session(
    ledger: Database, turn_first: bool
) -> None:
    add(ledger, make_turn("c0", 0), make_turn("c1", 1))
    own = make_thumb("own", "c0", False, second=LATE + (-10 if turn_first else 10))
    add(ledger, own, judge("f"), judge("other", user="u2"))
    assert weights(ledger) == {"own": 1.0, "f.c1": 0.5, "other.c0": 0.5, "other.c1": 0.5}
    add(ledger, retraction_of(own))
    assert weights(ledger)["f.c0"] == 0.5


def test_a_used_verdict_on_a_turn_is_not_repeated_by_its_session(ledger: Database) -> None:
    add(ledger, make_turn("c0", 0), make_thumb("own", "c0", second=1))
    use(ledger, 1, "own")
    add(ledger, judge("f"), judge("g", up=False))
    assert weights(ledger) == {}


def test_it_is_retracted_before_and_after_its_turns(ledger: Database) -> None:
    first, second = judge("f"), judge("g", user="u2")
    add(ledger, retraction_of(first), first, make_turn("c0", 0), second)
    assert weights(ledger) == {"g.c0": 1.0}
    use(ledger, 1, "g.c0")
    add(ledger, retraction_of(second))
    lineage = downstream.of_feedback(ledger, "g")
    assert [(s.sample_id, s.objective, s.state) for s in lineage.samples] == [
        ("g.c0", "kto", "retracted"),
        ("g.c0", "reward_model", "retracted"),
    ]
    assert lineage.completion_ids == ("c0",)


def test_a_rating_is_of_each_turn_and_one_of_its_user(ledger: Database) -> None:
    add(ledger, make_turn("c0", 0), make_turn("c1", 1))
    for number, value in enumerate((1.0, 3.0)):
        add(ledger, make_rating(f"r{number}", "", value, session_id="s", second=LATE + number))
    rated = take(ledger, "reward_model")
    assert [(r.sample_id, r.weight) for r in rated] == [("r1.c0", 0.5), ("r1.c1", 0.5)]
    assert isinstance(rated[0], RatedText)
    taken, _ = groups.take_groups(ledger, 9, now=NOW, wait_seconds=0.0)
    assert [(g.sample_id, g.samples[0].weight) for g in taken] == [("r1.c0", 0.5), ("r1.c1", 0.5)]
    with ledger.read() as connection:
        # One rating counts: the last on the session. All ratings are equal then.
        assert user_ratings.read(connection).standardised("u1", 3.0) == 0.0


def test_a_metric_makes_no_sample_and_counts_for_the_version_of_the_last_turn(
    ledger: Database,
) -> None:
    add(ledger, make_metric("m", "", "solved", True, session_id="s", second=LATE))
    add(ledger, make_turn("c0", 0, version=1), make_turn("c1", 1, version=2))
    add(ledger, make_metric("turn", "c1", "solved", False, second=1))
    add(ledger, judge("up"), make_thumb("down", "c1", False, second=1))
    found = traffic.traffic(ledger, [1, 2])
    assert found[1].metrics == ()
    [solved] = found[2].metrics
    # That of the last turn itself is another figure.
    assert (solved.name, solved.count, solved.mean.value) == ("solved", 2, 0.5)
    # Its thumb comes after that on the session.
    assert (found[2].thumbs_up, found[2].thumbs_down) == (0, 1)
    with ledger.read() as connection:
        made = select(samples.c.feedback_id).where(samples.c.feedback_id == "m")
        assert connection.execute(made).all() == []


@pytest.mark.parametrize("taken_back", [False, True])
def test_of_a_users_values_of_a_session_the_last_counts_wherever_it_was_given(
    ledger: Database, taken_back: bool
) -> None:
    """The conversation went on: another version answered its last turn by then."""
    measure = partial(make_metric, completion_id="", name="solved", session_id="s")
    add(ledger, make_turn("c0", 0, version=1), make_turn("c1", 1, version=2, second=10))
    before, after = measure("m0", value=False, second=2), measure("m1", value=True, second=12)
    add(ledger, before, after, measure("other", value=False, second=2, user="u2"))
    add(ledger, judge("t0", up=False, second=2), judge("t1", second=12))
    expected = {1: [0.0], 2: [1.0]}
    if taken_back:
        add(ledger, retraction_of(after), retraction_of(judge("t1")))
        expected = {1: [0.0, 0.0], 2: []}
    found = traffic.traffic(ledger, [1, 2])
    counted = {version: len(values) for version, values in expected.items() if values}
    assert {v: m.count for v in found for m in found[v].metrics} == counted
    downs = {v: figures.thumbs_down for v, figures in found.items()}
    assert downs == {1: int(taken_back), 2: 0}
    sums = metric_sums(ledger, "solved", 1).by_version
    # One user asked: what was measured of theirs weighs the root of 1 or 2, whole.
    ones = {version: (1, sum(values)) for version, values in expected.items() if values}
    assert {v: (s.count, s.total) for v, s in sums.items()} == ones
    on_trial = canary_traffic.measured(ledger, "solved", canary=2, stable=1, since=0.0)
    assert sorted((a.policy_version, a.value) for a in on_trial.answers) == sorted(
        (version, value) for version, values in expected.items() for value in values
    )
    lines = [line for page in export.pages(ledger, export.Wanted(kind="metrics")) for line in page]
    values = sorted(json.loads(line)["value"] for line in lines)
    assert values == ([0.0, 0.0] if taken_back else [0.0, 1.0]), "one of each user"


def test_it_is_listed_with_its_turns(ledger: Database) -> None:
    given = make_feedback("m", "", Metric(name="solved", value=True), session_id="s", second=LATE)
    add(ledger, given, make_turn("c0", 0), make_turn("c1", 1, version=2))
    [entry], _ = listed.browse(ledger, "tuneloop", listed.FeedbackFilters(), limit=9)
    assert entry.feedback == given
    assert [c.completion_id for c in entry.completions] == ["c0", "c1"]
    filters = listed.FeedbackFilters(policy_version=2)
    assert listed.browse(ledger, "tuneloop", filters, limit=9)[0] == [entry]


def test_a_thumb_on_a_session_makes_no_pair_and_is_no_vote_on_each_turn(
    ledger: Database,
) -> None:
    add(ledger, make_turn("a", 0, text="A.", group_id="g"), make_turn("b", 0, group_id="g"))
    add(ledger, judge("f", up=False), make_thumb("own", "a", second=1))
    assert take(ledger, "dpo") == []
    assert [vote.topic for vote in rater_votes.votes(ledger)] == ["thumb:a"]
    with ledger.read() as connection:
        assert agreement.flip_rate(connection) == 0.0


TURNS = [
    make_turn("a0", 0, text="No."),
    make_turn("b0", 0, second=0.5),
    make_turn("c1", 1),
    make_turn("c2", 2),
    make_turn("other", 0, session_id="t"),
]
JUDGED = [
    judge("early", up=False, second=1.5),
    judge("late"),
    judge("theirs", user="u2", up=False),
    make_thumb("own", "c1", False, second=3),
    make_rating("rated", "", 4.0, session_id="s", second=LATE),
    make_metric("solved", "", "solved", True, session_id="s", second=LATE),
    judge("t", session_id="t"),
]
EVENTS = [*TURNS, *JUDGED, retraction_of(JUDGED[2])]


def rows(ledger: Database) -> Any:
    """Return every sample that may count and what is known of the feedback."""
    with ledger.read() as connection:
        made = connection.execute(
            select(samples).where(samples.c.topic != "").order_by(*samples.primary_key.columns)
        ).all()
        given = connection.execute(
            select(feedback.c.feedback_id, feedback.c.completion_id, feedback.c.completion_ids)
            .add_columns(feedback.c.status)
            .order_by(feedback.c.feedback_id)
        ).all()
    return made, given


@cache
def in_order(folder: Path, rule: CreditRule, reward_metric: str) -> Any:
    ledger = Database.at(folder / f"{rule.credit}{reward_metric}.db")
    add(ledger, *EVENTS, rule=rule, reward_metric=reward_metric)
    return rows(ledger)


@settings(max_examples=25, deadline=None)
@given(
    order=st.permutations(EVENTS),
    credit=st.sampled_from(SessionCredit),
    reward_metric=st.sampled_from(["", "solved"]),
)
def test_any_order_makes_the_same_samples(
    tmp_path_factory: pytest.TempPathFactory,
    order: list[Any],
    credit: SessionCredit,
    reward_metric: str,
) -> None:
    rule = CreditRule(credit=credit, discount=0.5)
    folder = tmp_path_factory.getbasetemp()
    ledger = Database.at(tmp_path_factory.mktemp("order") / "ledger.db")
    add(ledger, *order, rule=rule, reward_metric=reward_metric)
    assert rows(ledger) == in_order(folder, rule, reward_metric)
    ledger.close()


def test_of_a_turn_after_a_call_only_what_the_policy_wrote_is_learned(ledger: Database) -> None:
    result = (41, 42, 43)
    call = make_turn("call", 0, completion=(30, 31, 2))
    told = make_turn("told", 1, prompt=(1, 5, 10, 30, 31, 2, *result), completion=(33, 2))
    add(ledger, call, told, judge("f"))
    first, second = (sample.sequence for sample in take(ledger))
    assert first.completion_token_ids == (30, 31, 2)
    assert second.completion_token_ids == (33, 2)
    batch = collate([first, second], torch.device("cpu"))
    assert batch.targets.tolist() == [30, 31, 2, 33, 2]
    assert batch.loss_mask.sum(-1).tolist() == [3, 2]
