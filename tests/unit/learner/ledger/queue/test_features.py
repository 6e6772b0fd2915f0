"""What judged answers are like is computed once, and kept with the judgement."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from support.learner_events import make_comparison, make_rollout, make_thumb
from support.learner_parts import Parts

from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.queue import features, ready, ref_logprobs
from tuneloop.learner.ledger.reports import rater_votes
from tuneloop.learner.samples import Reference, TokenSequence
from tuneloop.learner.samples.learned_tokens import as_learned


def by_length(sequences: Sequence[TokenSequence]) -> list[Reference]:
    """Tell how long completions are, and that there is one."""
    return [
        Reference(
            logprobs=(-s.temperature,) * len(s.completion_token_ids),
            features=(float(len(s.completion_token_ids)), 1.0),
        )
        for s in sequences
    ]


@pytest.fixture
def ledger(tmp_path: Path) -> Database:
    ledger = Database.at(tmp_path / "ledger.db")
    answers = [
        make_rollout(name, group_id="g", completion=tokens)
        for name, tokens in (("a", (1, 2, 3)), ("b", (1,)))
    ]
    recorder.record_rollouts(ledger, answers, 0.0)
    given = [(make_thumb("t", "a", True), 1), (make_comparison("c", "b", "a", user="u2"), 2)]
    recorder.record_feedback(ledger, given, 0.0)
    return ledger


def ready_samples(ledger: Database) -> dict[str, list[object]]:
    return {name: list(ready.take_samples(ledger, name, 9)[0]) for name in ("kto", "dpo")}


def test_a_vote_has_the_features_of_what_it_is_about(ledger: Database) -> None:
    assert features.describe(ledger, ready_samples(ledger), by_length)
    thumb, pair = sorted(rater_votes.votes(ledger), key=lambda vote: vote.family, reverse=True)
    assert thumb.features == (3.0, 1.0)
    # The pair is a before b, of which b was chosen: 3 − 1 whoever is preferred.
    assert (pair.up, pair.features) == (False, (2.0, 0.0))


def test_what_has_features_is_not_asked_for_again(ledger: Database) -> None:
    assert features.describe(ledger, ready_samples(ledger), by_length)

    def refuse(sequences: Sequence[TokenSequence]) -> list[Reference]:
        raise AssertionError(sequences)

    assert not features.describe(ledger, ready_samples(ledger), refuse)


def test_the_step_finds_the_log_probs_of_the_same_pass(ledger: Database) -> None:
    """At temperature 1, as they are compared; the answers were sampled at 0.7."""
    compared = {
        name: [as_learned(sample, "policy_gradient") for sample in group]
        for name, group in ready_samples(ledger).items()
    }
    features.describe(ledger, compared, by_length)
    filled = ref_logprobs.with_references(
        ledger, compared, needed_by=("kto", "dpo"), compute=lambda missing: []
    )
    assert filled["kto"][0].sequence.ref_logprobs == (-1.0,) * 3
    assert filled["dpo"][0].rejected.ref_logprobs == (-1.0,) * 3


def test_answers_without_features_have_a_vote_all_the_same(ledger: Database) -> None:
    assert features.describe(
        ledger, ready_samples(ledger), lambda given: [Reference()] * len(given)
    )
    assert {vote.features for vote in rater_votes.votes(ledger)} == {()}


def test_a_pass_that_runs_out_of_memory_is_left_to_the_step(ledger: Database) -> None:
    def fail(sequences: Sequence[TokenSequence]) -> list[Reference]:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    assert not features.describe(ledger, ready_samples(ledger), fail)
    assert features.describe(ledger, ready_samples(ledger), by_length)


def test_features_belong_to_one_base_model(ledger: Database) -> None:
    ref_logprobs.set_base_model(ledger, "one")
    features.describe(ledger, ready_samples(ledger), by_length)
    ref_logprobs.set_base_model(ledger, "one")
    assert all(vote.features for vote in rater_votes.votes(ledger))
    ref_logprobs.set_base_model(ledger, "other")
    assert not any(vote.features for vote in rater_votes.votes(ledger))


def test_thumbs_that_nobody_could_expect_weigh_less_in_the_batch_that_shows_it(
    tmp_path: Path,
) -> None:
    """Up and down alternate while the answers are all alike: one could only guess."""
    parts = Parts(folder=tmp_path, options={"batch_size": 16})
    parts.trainer.references = by_length  # type: ignore[method-assign]
    for number in range(16):
        recorder.record_rollouts(parts.database, [make_rollout(f"c{number}")], 0.0)
        thumb = make_thumb(f"f{number}", f"c{number}", number % 2 == 0, user=f"u{number}")
        recorder.record_feedback(parts.database, [(thumb, number)], 0.0)
    batch = parts.training_run.next_batch(parts.batches)
    assert batch is not None
    assert [s.trust for s in batch.samples["kto"]] == pytest.approx([0.3] * 16)
