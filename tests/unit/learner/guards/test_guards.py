"""Shares of a batch, what a sample counts in the end, and the alarms."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.learner_events import make_rating, make_rollout, make_score, make_thumb
from support.learner_parts import Parts

from tuneloop.errors import InvalidRequest
from tuneloop.learner import metrics
from tuneloop.learner.guards.alarms import (
    NAMES,
    Figures,
    Seen,
    alarms,
)
from tuneloop.learner.guards.settings import GuardSettings
from tuneloop.learner.guards.shares import effective_share, factors
from tuneloop.learner.ledger.accounting import steps
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.reports import alarm_figures
from tuneloop.learner.losses.kto import kto_loss
from tuneloop.learner.models.batch import check_sample
from tuneloop.learner.monitoring.alarm_monitor import AlarmMonitor
from tuneloop.learner.samples import ThumbSample, TokenSequence
from tuneloop.learner.stats.moments import Sums
from tuneloop.learner.stats.repetition import repetition

weights_and_owners = st.dictionaries(
    st.text(min_size=1, max_size=3),
    st.tuples(st.floats(0.01, 10), st.sampled_from("abc")),
    min_size=1,
    max_size=12,
)


@settings(max_examples=50, deadline=None)
@given(weights_and_owners, st.floats(0.05, 1))
def test_no_owner_weighs_more_than_the_share_and_nobody_gains(
    samples: dict[str, tuple[float, str]], share: float
) -> None:
    weights = {name: weight for name, (weight, _) in samples.items()}
    owners = {name: owner for name, (_, owner) in samples.items()}
    found = factors(weights, owners, share)
    assert all(0 < factor <= 1 for factor in found.values())
    limit = share * math.fsum(weights.values())
    for owner in set(owners.values()):
        mine = [weights[n] * found[n] for n in weights if owners[n] == owner]
        assert math.fsum(mine) <= limit * (1 + 1e-9) or all(
            found[n] == 1 for n in weights if owners[n] == owner
        )


def test_a_share_that_cannot_be_held_is_an_equal_one() -> None:
    assert effective_share(0.25, 1) == 1.0
    assert effective_share(0.25, 3) == pytest.approx(1 / 3)
    assert effective_share(0.25, 100) == 0.25
    assert factors({"a": 1.0, "b": 1.0}, {}, 0.1) == {"a": 1.0, "b": 1.0}


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(folder=tmp_path, options={"batch_size": 8, "guards": GuardSettings()})


def thumbs(parts: Parts, user: str, count: int, *, start: int, up: bool = True) -> None:
    numbers = range(start, start + count)
    rollouts = [make_rollout(f"{user}-c{n}", user=f"asker-{n}") for n in numbers]
    recorder.record_rollouts(parts.database, rollouts, parts.clock())
    given_ = [
        (make_thumb(f"{user}-f{n}", f"{user}-c{n}", up, user=user, second=n), n) for n in numbers
    ]
    recorder.record_feedback(parts.database, given_, parts.clock())


def form(parts: Parts) -> dict[str, ThumbSample]:
    batch = parts.training_run.next_batch(parts.batches)
    assert batch is not None
    return {sample.sample_id: sample for sample in batch.samples["kto"]}


def test_one_user_alone_counts_in_full(parts: Parts) -> None:
    thumbs(parts, "u1", 8, start=0)
    assert {sample.trust for sample in form(parts).values()} == {1.0}


def test_a_flood_keeps_nobody_waiting_and_weighs_its_share(parts: Parts) -> None:
    thumbs(parts, "flood", 100, start=0)
    for number in range(4):
        thumbs(parts, f"u{number}", 1, start=200 + number)
    formed = form(parts)
    assert {f"u{n}-f{200 + n}" for n in range(4)} <= formed.keys()
    # A quarter of the batch of eight, over four thumbs.
    assert formed["flood-f0"].trust == pytest.approx(0.5)
    assert formed["u0-f200"].trust == 1.0


def test_a_lone_flood_makes_a_smaller_step(parts: Parts) -> None:
    for number in range(4):
        thumbs(parts, f"u{number}", 1, start=200 + number)
    steps.commit_steps(
        parts.database,
        "policy",
        [
            steps.Step(
                step=1,
                samples={"kto": [f"u{n}-f{200 + n}" for n in range(4)]},
                skipped=False,
                metrics={},
            )
        ],
        "one",
        0.0,
    )
    thumbs(parts, "flood", 8, start=300)
    assert all(sample.trust == pytest.approx(0.25) for sample in form(parts).values())


def test_who_is_always_contradicted_counts_nothing(parts: Parts) -> None:
    names = [f"c{n}" for n in range(40)]
    recorder.record_rollouts(parts.database, [make_rollout(c, user="asker") for c in names], 0.0)
    given_ = [
        (make_thumb(f"{user}-{c}", c, user != "liar", user=user, second=n), n)
        for n, c in enumerate(names)
        for user in ("ann", "bob", "cat", "liar")
    ]
    recorder.record_feedback(parts.database, given_, parts.clock())
    trust = {name: sample.trust for name, sample in form(parts).items()}
    assert trust["liar-c0"] == 0.0
    assert trust["ann-c0"] == 1.0
    assert metrics.guard_raters_muted._value.get() == 1


def test_one_vote_per_user_and_completion(parts: Parts) -> None:
    recorder.record_rollouts(parts.database, [make_rollout("c1")], 0.0)
    votes = [(make_thumb(f"f{n}", "c1", n % 2 == 0, second=n), n) for n in range(20)]
    recorder.record_feedback(parts.database, votes, parts.clock())
    parts.clock.now += 60
    assert list(form(parts)) == ["f19"]


def test_ratings_of_a_group_are_trusted_alike(tmp_path: Path) -> None:
    parts = Parts(
        folder=tmp_path, options={"policy_gradient": "grpo", "policy_gradient_batch_size": 2}
    )
    names = [f"c{n}" for n in range(4)]
    recorder.record_rollouts(parts.database, [make_rollout(c) for c in names], 0.0)
    ratings = [
        (make_rating(f"f{n}", c, float(n), user="flood" if n < 3 else "ann"), n)
        for n, c in enumerate(names)
    ]
    recorder.record_feedback(parts.database, ratings, 0.0, ratings_reward=True)
    batch = parts.training_run.next_batch(parts.batches)
    assert batch is not None
    (first, *_) = batch.samples["grpo"]
    assert 0 < first.samples[0].trust <= 1


def test_trust_is_no_part_of_what_a_loss_is_divided_by() -> None:
    desirable = torch.tensor([True, True])
    logps = torch.zeros(2, requires_grad=True)
    gradients = []
    for trust in (1.0, 0.25):
        weights = torch.ones(2) * trust
        loss, _ = kto_loss(
            policy_logps=logps,
            ref_logps=torch.zeros(2),
            desirable=desirable,
            weights=weights,
            z=torch.zeros(()),
            beta=0.1,
            total_weight=2.0,
        )
        (gradient,) = torch.autograd.grad(loss, logps)
        gradients.append(gradient)
    assert torch.allclose(gradients[1], 0.25 * gradients[0])
    sequence = TokenSequence(
        prompt_token_ids=(1,), completion_token_ids=(2,), generation_logprobs=(), temperature=1.0
    )
    wrong = ThumbSample(sample_id="x", sequence=sequence, desirable=True, trust=1.5)
    with pytest.raises(InvalidRequest, match=r"trust 1\.5"):
        check_sample(wrong, max_length=8, vocab_size=8)


GOOD, BAD = Sums.of([1.0] * 70 + [0.0] * 30), Sums.of([1.0] * 30 + [0.0] * 70)
HIGH, LOW = Sums.of([2.0, 3.0] * 50), Sums.of([0.0, 1.0] * 50)
SHORT, LONG = Sums.of([9.0, 11.0] * 50), Sums.of([40.0, 50.0] * 50)
ONCE, AGAIN = Sums.of([0.0, 0.1] * 50), Sums.of([0.5, 0.6] * 50)


@pytest.mark.parametrize(
    ("seen", "names"),
    [
        pytest.param(Seen(newest=Figures(), before=Figures()), [], id="nothing"),
        pytest.param(
            Seen(newest=Figures(thumbs=BAD, reward=HIGH), before=Figures(thumbs=GOOD, reward=LOW)),
            ["reward_hacking"],
            id="reward-up-thumbs-down",
        ),
        pytest.param(
            Seen(newest=Figures(thumbs=GOOD, reward=HIGH), before=Figures(thumbs=BAD, reward=LOW)),
            [],
            id="both-up",
        ),
        pytest.param(
            Seen(
                newest=Figures(thumbs=Sums.of([0.0] * 9), reward=HIGH),
                before=Figures(thumbs=GOOD, reward=LOW),
            ),
            [],
            id="too-few-thumbs",
        ),
        pytest.param(
            Seen(newest=Figures(), before=Figures(), thumbs_by_user={"a": 60, "b": 20, "c": 20}),
            ["dominant_user"],
            id="one-of-three-users",
        ),
        pytest.param(
            Seen(newest=Figures(), before=Figures(), thumbs_by_user={"a": 90, "b": 10}),
            [],
            id="one-of-two-users",
        ),
        pytest.param(Seen(newest=Figures(), before=Figures(), kl=2.5), ["kl"], id="kl"),
        pytest.param(
            Seen(newest=Figures(length=LONG), before=Figures(length=SHORT)), ["length"], id="longer"
        ),
        pytest.param(
            Seen(newest=Figures(length=SHORT), before=Figures(length=LONG)),
            ["length"],
            id="shorter",
        ),
        pytest.param(
            Seen(newest=Figures(repetition=AGAIN), before=Figures(repetition=ONCE)),
            ["repetition"],
            id="repetition",
        ),
        pytest.param(
            Seen(newest=Figures(repetition=ONCE), before=Figures(repetition=AGAIN)),
            [],
            id="less-repetition",
        ),
    ],
)
def test_alarms(seen: Seen, names: list[str]) -> None:
    found = alarms(seen, GuardSettings())
    assert [alarm.name for alarm in found] == names
    assert set(names) <= set(NAMES)
    assert all(alarm.numbers for alarm in found)


def test_repeated_4_grams() -> None:
    assert repetition([1, 2, 3]) == 0.0
    assert repetition([1, 2, 3, 4, 5, 6]) == 0.0
    assert repetition([7] * 13) == pytest.approx(0.9)


def answered(parts: Parts, version: int, count: int, *, up: int, reward: float) -> None:
    """Answers of a version with thumbs, `up` of ten up, each by a user of its own."""
    names = [f"v{version}-{n}" for n in range(count)]
    rollouts = [make_rollout(c, version=version, completion=range(20)) for c in names]
    recorder.record_rollouts(parts.database, rollouts, 0.0)
    scored = [make_score(c, reward + n % 2) for n, c in enumerate(names)]
    recorder.record_scores(parts.database, scored, 0.0)
    votes = [
        (make_thumb(f"f-{c}", c, n % 10 < up, user=f"u{n}", second=version), n)
        for n, c in enumerate(names)
    ]
    recorder.record_feedback(parts.database, votes, 0.0)


def test_figures_of_the_newest_versions_and_of_those_before(parts: Parts) -> None:
    answered(parts, 0, 40, up=8, reward=0.0)
    answered(parts, 1, 20, up=2, reward=5.0)
    answered(parts, 2, 20, up=2, reward=5.0)
    seen = alarm_figures.seen(parts.database, least=30, window=50)
    assert (seen.newest.thumbs.count, seen.newest.thumbs.mean) == (40, 0.2)
    assert (seen.before.thumbs.count, seen.before.thumbs.mean) == (40, 0.8)
    assert (seen.newest.reward.mean, seen.before.reward.mean) == (5.5, 0.5)
    assert (seen.newest.length.mean, seen.newest.repetition.mean) == (20.0, 0.0)
    assert sum(seen.thumbs_by_user.values()) == 50


def test_an_alarm_is_told_once_and_outlives_a_restart(
    parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="tuneloop.learner.monitoring")
    settings_ = GuardSettings(hold=True)
    watch = AlarmMonitor(parts.database, settings_, clock=parts.clock)
    watch.check_alarms()
    assert (watch.raised, watch.holding) == ((), "")
    answered(parts, 0, 40, up=8, reward=0.0)
    answered(parts, 1, 40, up=2, reward=5.0)
    watch.check_alarms()
    (alarm,) = watch.raised
    assert alarm.name == watch.holding == "reward_hacking"
    assert alarm.numbers["thumbs_rate"] == 0.2
    assert metrics.guard_alarm.labels("reward_hacking")._value.get() == 1
    parts.clock.now += 100
    again = AlarmMonitor(parts.database, GuardSettings(), clock=parts.clock)
    again.check_alarms()
    assert again.raised[0].since == alarm.since
    assert again.holding == ""
    assert caplog.text.count("alarm: reward_hacking") == 1
    answered(parts, 2, 80, up=9, reward=5.0)
    again.check_alarms()
    assert again.raised == ()
    assert caplog.text.count("alarm ended: reward_hacking") == 1
    assert metrics.guard_alarm.labels("reward_hacking")._value.get() == 0
