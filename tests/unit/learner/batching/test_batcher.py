"""What goes into a step: shares, replays, groups of rollouts, references, refusals."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from support.learner_events import (
    CountingTrainer,
    make_comparison,
    make_edit,
    make_rating,
    make_rollout,
    make_score,
)
from support.learner_parts import Parts

from tuneloop.backoff import Backoff
from tuneloop.bus.subjects import DEAD_LETTERS
from tuneloop.learner.batching.batcher import RewardBatcher, share_evenly
from tuneloop.learner.ledger.accounting import steps
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.events.sample_rules import SampleRules
from tuneloop.learner.ledger.queue import agreement, groups, ready, ref_logprobs
from tuneloop.learner.ledger.schema import reference_logprobs, uses
from tuneloop.learner.samples import ScoredGroup
from tuneloop.learner.training_run import TrainingRun
from tuneloop.rollouts import FinishReason, RolloutSource

GRPO = SampleRules(scored_objective="grpo")
PPO = SampleRules(scored_objective="ppo")


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(folder=tmp_path)


def uses_of(parts: Parts) -> dict[str, list[int]]:
    """Epochs by sample."""
    with parts.database.read() as connection:
        query = select(uses.c.sample_id, uses.c.epoch).order_by(uses.c.epoch)
        found: dict[str, list[int]] = {}
        for sample_id, epoch in connection.execute(query):
            found.setdefault(sample_id, []).append(epoch)
    return found


def test_queues_share_a_batch_alike_and_leave_no_room_empty() -> None:
    assert share_evenly({"dpo": 9, "kto": 9, "sft": 9}, 6) == {"dpo": 2, "kto": 2, "sft": 2}
    assert share_evenly({"dpo": 1, "kto": 9, "sft": 0}, 6) == {"dpo": 1, "kto": 5, "sft": 0}
    assert share_evenly({"dpo": 1, "kto": 1, "sft": 0}, 6) == {"dpo": 1, "kto": 1, "sft": 0}
    assert sum(share_evenly({"dpo": 9, "kto": 9, "sft": 9}, 4).values()) == 4


async def test_a_step_waits_for_more_only_while_more_comes(tmp_path: Path) -> None:
    parts = Parts(folder=tmp_path, options={"batch_size": 16})
    parts.thumbs(0, 1)
    parts.clock.now += 0.9
    assert not await parts.turn()
    parts.clock.now += 0.2  # a fifth of five seconds without another thumb
    assert await parts.turn()
    for number in range(1, 6):
        parts.thumbs(number, 1)
        parts.clock.now += 0.9
        assert not await parts.turn()
    parts.thumbs(6, 1)
    parts.clock.now += 0.6  # the oldest waits for more than five seconds
    assert await parts.turn()
    assert len(parts.trainer.learned) == 7


async def test_every_kind_of_feedback_is_in_one_step(parts: Parts) -> None:
    parts.thumbs(0, 2)
    events = [make_comparison("p", "c0", "c1", second=5), make_edit("e", "c0", "ab", second=6)]
    recorder.record_feedback(parts.database, [(event, 1) for event in events], parts.clock())
    parts.clock.now += 10
    await parts.turn()
    assert sorted(parts.trainer.learned) == ["dpo:e", "dpo:p", "kto:f0", "sft:e"]


async def test_replays_fill_their_share_and_count_as_later_epochs(tmp_path: Path) -> None:
    parts = Parts(folder=tmp_path, options={"replay_fraction": 0.5})
    for round_number in range(3):
        parts.thumbs(2 * round_number, 2)
        await parts.turn()
    # Two new ones a step, and beside them as many old ones as there are.
    assert parts.trainer.learned[:2] == ["kto:f0", "kto:f1"]
    assert sorted(parts.trainer.learned[2:6]) == ["kto:f0", "kto:f1", "kto:f2", "kto:f3"]
    found = uses_of(parts)
    assert all(epochs == list(range(len(epochs))) for epochs in found.values())
    assert set(found) == {f"f{n}" for n in range(6)}
    # In the third step the least replayed come first.
    assert sorted(len(found[f"f{n}"]) for n in range(4)) == [2, 2, 2, 2]
    assert ready.counts(parts.database, "kto").used == 6


def test_the_reward_model_learns_again_from_labels_it_had(tmp_path: Path) -> None:
    options = {"reward_batch_size": 4, "reward_replay_fraction": 0.5}
    parts = Parts(folder=tmp_path, options=options)
    reader = TrainingRun(
        model="reward_model",
        policy="tuneloop",
        trainer=CountingTrainer(),
        database=parts.database,
        checkpoints=tmp_path / "reader",
        keep_checkpoints=2,
    )
    reader.restore()
    batches = RewardBatcher(parts.database, parts.settings, clock=parts.clock)
    given = []
    for start in (0, 2):
        parts.thumbs(start, 2)
        batch = reader.next_batch(batches)
        assert batch is not None
        given.append({sample.sample_id for sample in batch.samples["reward_model"]})
        reader.train(batch)
        reader.commit()
    assert given == [{"f0", "f1"}, {"f0", "f1", "f2", "f3"}]
    assert uses_of(parts) == {"f0": [0, 1], "f1": [0, 1], "f2": [0], "f3": [0]}
    parts.clock.now += 1000
    assert reader.next_batch(batches) is None


async def test_without_new_samples_nothing_is_replayed(tmp_path: Path) -> None:
    parts = Parts(folder=tmp_path, options={"replay_fraction": 0.5})
    parts.thumbs(0, 2)
    assert await parts.turn()
    parts.clock.now += 1000
    assert not await parts.turn()


async def test_replays_are_the_same_after_a_crash(tmp_path: Path) -> None:
    learned = []
    for crash in (False, True):
        folder = tmp_path / str(crash)
        parts = Parts(folder=folder, options={"replay_fraction": 0.5})
        parts.thumbs(0, 2)
        await parts.turn()
        parts.thumbs(2, 2)
        if crash:
            # A step whose commit never came.
            batch = parts.training_run.next_batch(parts.batches)
            assert batch is not None
            parts.training_run.train(batch)
            parts = parts.again()
            parts.training_run.restore()
        await parts.turn()
        learned.append(parts.trainer.learned)
    assert learned[0] == learned[1]


def score_group(parts: Parts, name: str, size: int, scored: int, start: float = 0.0) -> None:
    members = [f"{name}.{n}" for n in range(size)]
    recorder.record_rollouts(
        parts.database, [make_rollout(m, group_id=name, n=size) for m in members], 0.0
    )
    recorder.record_scores(
        parts.database,
        [make_score(m, start + n) for n, m in enumerate(members[:scored])],
        parts.clock(),
        rules=GRPO,
    )


def grpo(parts: Parts, limit: int = 99, **kwargs: Any) -> list[ScoredGroup]:
    options = {"now": parts.clock(), "wait_seconds": 60.0, **kwargs}
    return groups.take_groups(parts.database, limit, **options)[0]


def test_a_group_waits_for_all_its_scores_or_for_the_clock(parts: Parts) -> None:
    score_group(parts, "g", 4, 3)
    assert grpo(parts) == []
    parts.clock.now += 60
    (group,) = grpo(parts)
    assert (group.sample_id, group.baseline) == ("g", None)
    assert [sample.reward for sample in group.samples] == [0.0, 1.0, 2.0]
    parts.clock.now -= 60
    late = make_score("g.3", None)
    recorder.record_scores(parts.database, [late], parts.clock(), rules=GRPO)
    # It came and cannot be scored: the others need not wait, and it is no 0.
    assert len(grpo(parts)[0].samples) == 3


def test_groups_are_taken_whole(parts: Parts) -> None:
    for name in "abc":
        score_group(parts, name, 4, 4)
    assert [group.sample_id for group in grpo(parts, 8)] == ["a", "b"]
    assert [group.sample_id for group in grpo(parts, 3)] == ["a"]
    taken = [sample.sample_id for sample in grpo(parts, 4)[0].samples]
    assert [group.sample_id for group in grpo(parts, 4, exclude=taken)] == ["b"]


def test_a_single_rollout_is_compared_with_others_of_its_kind(parts: Parts) -> None:
    singles = [make_rollout(f"s{n}", prompt=(1, n % 2)) for n in range(9)]
    recorder.record_rollouts(parts.database, singles, 0.0)

    def score(number: int) -> None:
        event = make_score(f"s{number}", float(number))
        recorder.record_scores(parts.database, [event], parts.clock(), rules=GRPO)

    for number in range(8):
        score(number)
    assert grpo(parts) == []
    score(8)
    found = {group.sample_id: group for group in grpo(parts)}
    # Others: 0 to 7, of mean 3.5; to the same prompt 0, 2, 4, 6, drawn to it by a weight of 4.
    assert found["group-s8"].baseline == pytest.approx((12 + 4 * 3.5) / 8)
    # Its own reward is no part of it.
    assert found["group-s0"].baseline == pytest.approx((20 + 4 * 4.5) / 8)


def test_what_is_expected_is_no_better_for_candidates_being_chosen_from(parts: Parts) -> None:
    """By hand: others of one prompt, rewards 0 to 7; only 3 and 7 were answered."""
    rollouts = [
        make_rollout(f"s{n}", source=RolloutSource.USER if n % 4 == 3 else RolloutSource.CANDIDATE)
        for n in range(8)
    ]
    recorder.record_rollouts(parts.database, [*rollouts, make_rollout("s8")], 0.0)
    events = [make_score(f"s{n}", float(n)) for n in range(9)]
    recorder.record_scores(parts.database, events, parts.clock(), rules=GRPO)
    found = {group.sample_id: group for group in grpo(parts)}
    assert found["group-s8"].baseline == pytest.approx(3.5)


def test_candidates_and_the_answer_are_one_group(parts: Parts) -> None:
    rollouts = [
        make_rollout("g", group_id="g", n=2, source=RolloutSource.CANDIDATE),
        make_rollout("g.1", group_id="g", n=2),
    ]
    recorder.record_rollouts(parts.database, rollouts, 0.0)
    events = [make_score("g", 0.0), make_score("g.1", 1.0)]
    recorder.record_scores(parts.database, events, parts.clock(), rules=GRPO)
    (group,) = grpo(parts)
    assert [sample.reward for sample in group.samples] == [0.0, 1.0]


def test_a_single_rollouts_baseline_knows_how_many_of_its_kind_were_cut(parts: Parts) -> None:
    """By hand: others to the same prompt cut 0 of 4, of 8 in all 4."""
    rollouts = [
        replace(
            make_rollout(f"s{n}", prompt=(1, n % 2)),
            finish_reason=FinishReason.LENGTH if n % 2 else FinishReason.STOP,
        )
        for n in range(9)
    ]
    recorder.record_rollouts(parts.database, rollouts, 0.0)
    events = [make_score(f"s{n}", 1.0) for n in range(9)]
    recorder.record_scores(parts.database, events, parts.clock(), rules=GRPO)
    found = {group.sample_id: group for group in grpo(parts)}
    assert found["group-s8"].cut_share == pytest.approx((0 + 4 * 0.5) / 8)


async def test_a_refused_member_costs_its_group_no_more_than_itself(tmp_path: Path) -> None:
    parts = Parts(folder=tmp_path, options={"policy_gradient": "rloo"})
    score_group(parts, "g", 4, 4)
    assert not await parts.turn()
    score_group(parts, "h", 4, 4)
    parts.trainer.refuses = {"h.1"}
    assert await parts.turn()
    learned = [*(f"g.{n}" for n in range(4)), "h.0", "h.2", "h.3"]
    assert parts.trainer.learned == [f"grpo:{name}" for name in learned]
    assert uses_of(parts) == {name: [0] for name in learned}
    (letter,) = parts.bus.streams[DEAD_LETTERS].events
    assert json.loads(letter.data)["sample_id"] == "h.1"


async def test_a_member_left_alone_has_no_baseline_and_waits(tmp_path: Path) -> None:
    parts = Parts(
        folder=tmp_path, options={"policy_gradient": "grpo", "policy_gradient_batch_size": 6}
    )
    score_group(parts, "g", 4, 4)
    score_group(parts, "h", 2, 2)
    parts.trainer.refuses = {"h.1"}
    assert await parts.turn()
    assert set(uses_of(parts)) == {f"g.{n}" for n in range(4)}
    assert ready.counts(parts.database, "grpo").ready == 1


def test_a_rating_is_a_reward_whose_mean_is_known(parts: Parts) -> None:
    recorder.record_rollouts(parts.database, [make_rollout(f"c{n}") for n in range(2)], 0.0)
    ratings = [(make_rating(f"r{n}", f"c{n}", float(n)), n) for n in range(2)]
    recorder.record_feedback(
        parts.database,
        ratings,
        0.0,
        rules=GRPO,
    )
    low, high = grpo(parts)
    assert (low.baseline, high.baseline) == (0.0, 0.0)
    assert low.samples[0].reward == pytest.approx(-1.0)
    assert high.samples[0].reward == pytest.approx(1.0)
    assert high.samples[0].sample_id == "r1"


def test_the_rating_of_a_cut_answer_is_the_whole_verdict_on_it(parts: Parts) -> None:
    rollouts = [make_rollout("c0"), replace(make_rollout("c1"), finish_reason=FinishReason.LENGTH)]
    recorder.record_rollouts(parts.database, rollouts, 0.0)
    ratings = [(make_rating(f"r{n}", f"c{n}", float(n)), n) for n in range(2)]
    recorder.record_feedback(
        parts.database,
        ratings,
        0.0,
        rules=GRPO,
    )
    assert [group.cut_share for group in grpo(parts)] == [0.0, 1.0]


def test_scored_rollouts_go_to_the_objective_that_is_set(parts: Parts) -> None:
    recorder.record_rollouts(parts.database, [make_rollout("a"), make_rollout("b")], 0.0)
    recorder.record_scores(parts.database, [make_score("a")], 0.0, rules=PPO)
    assert recorder.adopt_rewards(parts.database, "grpo") == 1
    again = make_score("a", reward_model_version=2)
    recorder.record_scores(parts.database, [again, make_score("b")], 0.0, rules=PPO)
    assert ready.counts(parts.database, "grpo").ready == 1
    assert ready.counts(parts.database, "ppo").ready == 1


async def test_reference_logprobs_are_computed_once_for_each_sequence(parts: Parts) -> None:
    answers = [make_rollout(f"c{n}", completion=(7, 8, 2)) for n in range(7)]
    recorder.record_rollouts(parts.database, answers, 0.0)
    parts.thumbs(0, 4)
    recorder.record_scores(parts.database, [make_score(f"c{n}") for n in range(4)], 0.0)
    await parts.turn()
    [once] = parts.trainer.referred  # all four are the same tokens
    assert once.temperature == 1.0  # as they are compared
    recorder.record_rollouts(parts.database, [make_rollout("x", completion=(5, 2))], 0.0)
    parts.thumbs(4, 3)
    recorder.record_feedback(
        parts.database, [(make_comparison("p", "x", "c0", second=9), 9)], parts.clock()
    )
    await parts.turn()
    # Once more for what the new judgements' answers are like, not for the step.
    again = sorted(s.completion_token_ids for s in parts.trainer.referred[1:])
    assert again == [(5, 2), (7, 8, 2)]
    batch, _ = ready.take_samples(parts.database, "dpo", 9)
    ref_logprobs.set_base_model(parts.database, "one")
    ref_logprobs.set_base_model(parts.database, "one")
    with parts.database.read() as connection:
        assert connection.execute(select(reference_logprobs)).all() == []
    assert batch == []


def test_other_temperatures_are_other_sequences(parts: Parts) -> None:
    recorder.record_rollouts(
        parts.database, [make_rollout("a", temperature=0.5), make_rollout("b")], 0.0
    )
    recorder.record_scores(parts.database, [make_score("a"), make_score("b")], 0.0)
    taken, _ = ready.take_samples(parts.database, "ppo", 9)
    filled = ref_logprobs.with_references(
        parts.database,
        {"ppo": taken},
        needed_by={"ppo"},
        compute=lambda sequences: [(-s.temperature,) * 3 for s in sequences],
    )
    assert [s.sequence.ref_logprobs[0] for s in filled["ppo"]] == pytest.approx([-0.5, -0.7])
    kept = ref_logprobs.with_references(
        parts.database, {"grpo": taken}, needed_by=(), compute=lambda s: []
    )
    assert kept["grpo"][0].sequence.ref_logprobs == (-0.5, -0.5, -0.5)


async def test_a_refused_sample_is_a_dead_letter_once_and_learning_goes_on(parts: Parts) -> None:
    parts.thumbs(0, 4)
    parts.trainer.refuses = {"f2"}
    parts.bus.go_down()
    await parts.turn()
    assert set(uses_of(parts)) == {"f0", "f1", "f3"}
    parts = parts.again()
    parts.bus.come_back()
    await parts.turn()
    await parts.turn()
    (letter,) = parts.bus.streams[DEAD_LETTERS].events
    assert letter.subject == "tuneloop.dead.learner-tuneloop-samples.u1"
    assert letter.headers["Tuneloop-Reason"] == "sample f2: too long"
    body = json.loads(letter.data)
    assert body == {"sample_id": "f2", "objective": "kto", "reason": "sample f2: too long"}


async def test_weights_that_are_not_finite_are_undone_and_their_sample_is_found(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts.loop, "_backoffs", {"policy": Backoff(0.0)})
    parts.training_run.restore()
    parts.thumbs(0, 4)
    parts.trainer.breaks_on = {"f1"}
    parts.clock.now += 10
    for _ in range(20):
        await parts.turn()
    assert set(uses_of(parts)) == {"f0", "f2", "f3"}
    assert sorted(parts.trainer.learned) == ["kto:f0", "kto:f2", "kto:f3"]
    assert parts.store.versions("tuneloop") != []
    assert steps.newest_step(parts.database, "policy") is not None


def test_the_flip_rate_starts_at_zero_and_follows_disagreement(parts: Parts) -> None:
    database = parts.database
    recorder.record_rollouts(database, [make_rollout("a"), make_rollout("b")], 0.0)

    def compare(name: str, chosen: str, rejected: str, user: str) -> None:
        event = make_comparison(name, chosen, rejected, user=user)
        recorder.record_feedback(database, [(event, 1)], 0.0)

    def estimate() -> float:
        with database.read() as connection:
            return agreement.flip_rate(connection)

    assert estimate() == 0.0
    compare("p0", "a", "b", "u0")
    assert estimate() == 0.0
    compare("p1", "b", "a", "u1")
    # One pair of verdicts that differs, against twenty that are taken to agree.
    assert estimate() == pytest.approx(agreement.flip_rate_of(1 / 21))
    many = [
        make_comparison(f"p{n}", *(("a", "b") if n % 10 else ("b", "a")), user=f"u{n}")
        for n in range(2, 200)
    ]
    recorder.record_feedback(database, [(event, 1) for event in many], 0.0)
    # One in ten says the opposite: all pairs of users differ with 2 · 0.1 · 0.9.
    assert estimate() == pytest.approx(0.1, abs=0.02)
    assert agreement.flip_rate_of(0.18) == pytest.approx(0.1)
    assert agreement.flip_rate_of(0.5) == agreement.HIGHEST_FLIP_RATE
