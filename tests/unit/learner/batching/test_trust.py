"""What a sample counts in the end: shares and rater weights in a batch."""

from pathlib import Path

import pytest
import torch
from support.learner_events import make_rating, make_rollout, make_score, make_thumb
from support.learner_parts import Parts

from tuneloop.errors import InvalidRequest
from tuneloop.learner import metrics
from tuneloop.learner.guards.settings import GuardSettings
from tuneloop.learner.ledger.accounting import steps
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.events.sample_rules import SampleRules
from tuneloop.learner.ledger.reports import rater_votes
from tuneloop.learner.losses.kto import kto_loss
from tuneloop.learner.models.batch import check_sample
from tuneloop.learner.samples import ThumbSample, TokenSequence
from tuneloop.rollouts import RolloutSource


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


def test_judgements_that_come_one_by_one_count_as_they_would_together(parts: Parts) -> None:
    for number in range(1, 9):
        thumbs(parts, f"u{number}", 1, start=number)
        (sample,) = form_and_use(parts, number).values()
        assert sample.trust == 1.0


def test_who_comes_one_by_one_does_not_fill_a_step(parts: Parts) -> None:
    for number in range(1, 9):
        thumbs(parts, f"u{number}", 1, start=number)
        form_and_use(parts, number)
    trust = []
    for number in range(20, 24):
        thumbs(parts, "flood", 1, start=number)
        (sample,) = form_and_use(parts, number).values()
        trust.append(sample.trust)
    # A quarter of eight; then no more than a lone judgement always counts.
    assert trust == [1.0, 1.0, 0.25, 0.25]


def form_and_use(parts: Parts, step: int) -> dict[str, ThumbSample]:
    parts.clock.now += 60
    formed = form(parts)
    used = steps.Step(step=step, samples={"kto": list(formed)}, skipped=False, metrics={})
    steps.commit_steps(parts.database, "policy", [used], f"step {step}", 0.0)
    return formed


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


@pytest.mark.parametrize("objective", ["ppo", "grpo"])
def test_who_only_asked_is_not_weighed_as_a_rater(tmp_path: Path, objective: str) -> None:
    """A muted rater's rollouts are scored by the service: only shares apply to them."""
    parts = Parts(
        folder=tmp_path,
        options={
            "policy_gradient": objective,
            "policy_gradient_batch_size": 4,
            "guards": GuardSettings(user_share=1.0, tenant_share=1.0),
        },
    )
    judged = [f"c{n}" for n in range(40)]
    asked = [make_rollout(f"r{n}", user="liar", group_id="g", n=4) for n in range(4)]
    rollouts = [*(make_rollout(c, user="asker") for c in judged), *asked]
    recorder.record_rollouts(parts.database, rollouts, 0.0)
    given_ = [
        (make_thumb(f"{user}-{c}", c, user != "liar", user=user, second=n), n)
        for n, c in enumerate(judged)
        for user in ("ann", "bob", "cat", "liar")
    ]
    recorder.record_feedback(parts.database, given_, 0.0)
    scores = [make_score(rollout.completion_id) for rollout in asked]
    recorder.record_scores(parts.database, scores, 0.0, SampleRules(scored_objective=objective))
    batch = parts.training_run.next_batch(parts.batches)
    assert batch is not None
    scored = batch.samples[objective]
    members = scored[0].samples if objective == "grpo" else scored
    assert [member.trust for member in members] == [1.0] * 4


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
    recorder.record_feedback(parts.database, ratings, 0.0, SampleRules(scored_objective="grpo"))
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


YEARS = 3_650.0


def test_who_judges_all_day_counts_like_a_square_root(tmp_path: Path) -> None:
    guards = GuardSettings(judgements_in_full=4, probation=0, user_share=0.25, user_days=YEARS)
    parts = Parts(folder=tmp_path, options={"batch_size": 19, "guards": guards})
    thumbs(parts, "all-day", 16, start=1)
    for number in range(3):
        thumbs(parts, f"u{number}", 1, start=200 + number)
    trust = {name: sample.trust for name, sample in form(parts).items()}
    # Their 16 weigh 4 + Σ √(4/n) for n = 5…16 = 12.0 of 19, and may weigh a quarter of that.
    full = [min(1.0, (4 / n) ** 0.5) for n in range(1, 17)]
    factor = 0.25 * 19 / sum(full)
    assert [trust[f"all-day-f{n}"] for n in range(1, 17)] == pytest.approx(
        [weight * factor for weight in full]
    )
    assert trust["u0-f200"] == 1.0


def test_the_bound_holds_in_a_quiet_service_too(tmp_path: Path) -> None:
    guards = GuardSettings(judgements_in_full=4, probation=0, user_share=1.0, user_days=YEARS)
    parts = Parts(folder=tmp_path, options={"batch_size": 1, "guards": guards})
    for user in ("bob", "cat", "dan"):
        thumbs(parts, user, 1, start=300)
    thumbs(parts, "all-day", 16, start=1)
    trust = {}
    for step in range(1, 20):
        (sample,) = form(parts).values()
        trust[sample.sample_id] = sample.trust
        used = steps.Step(step=step, samples={"kto": [sample.sample_id]}, skipped=False, metrics={})
        steps.commit_steps(parts.database, "policy", [used], f"step {step}", 0.0)
    assert trust["all-day-f16"] == pytest.approx(0.5)
    assert trust["all-day-f4"] == trust["bob-f300"] == 1.0


def test_newcomers_count_less_until_they_are_known(tmp_path: Path) -> None:
    guards = GuardSettings(probation=3, probation_weight=0.25, user_days=YEARS)
    parts = Parts(folder=tmp_path, options={"batch_size": 21, "guards": guards})
    for number in range(4):
        thumbs(parts, f"u{number}", 4, start=10 * number + 1)
    thumbs(parts, "new", 1, start=100)
    thumbs(parts, "newer", 4, start=200)
    trust = {name: sample.trust for name, sample in form(parts).items()}
    # Known users gave 20 of 21.
    assert trust["new-f100"] == pytest.approx(0.25)
    assert trust["u0-f1"] == 1.0


def test_imports_are_nobody_s_first_judgements(tmp_path: Path) -> None:
    guards = GuardSettings(user_days=YEARS)
    parts = Parts(folder=tmp_path, options={"batch_size": 8, "guards": guards})
    given = rater_votes.given_by_user(parts.database, 0.0)
    assert given == {}
    thumbs(parts, "ann", 3, start=1)
    text = make_rollout("import-c1", user="import", source=RolloutSource.IMPORT)
    recorder.record_imports(
        parts.database, [text], [make_thumb("import-f1", "import-c1", user="row-1")], 0.0
    )
    assert rater_votes.given_by_user(parts.database, 0.0) == {"ann": 3}
    ids = ["ann-f1", "ann-f3", "import-f1"]
    assert rater_votes.numbers(parts.database, "kto", ids, 60.0) == {"ann-f1": 1, "ann-f3": 3}
