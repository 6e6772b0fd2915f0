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
from tuneloop.learner.losses.kto import kto_loss
from tuneloop.learner.models.batch import check_sample
from tuneloop.learner.samples import ThumbSample, TokenSequence


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
    recorder.record_scores(parts.database, scores, 0.0, objective=objective)
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
