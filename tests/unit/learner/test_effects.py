"""How much likelier a version made what its feedback is about, from the step to the report."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from support.learner_events import make_comparison, make_edit, make_rollout
from support.learner_parts import Parts
from support.policy_samples import SampleMaker

from tuneloop.learner.effects import EffectLog, parts_of
from tuneloop.learner.ledger.accounting import downstream, forget_user, versions
from tuneloop.learner.ledger.accounting.effects import FeedbackEffect
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.samples import (
    CommentedSample,
    DemonstrationSample,
    PairSample,
    ThumbSample,
    tokens_of,
)
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.settings import TrainerSettings


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(folder=tmp_path)


async def learn(parts: Parts) -> None:
    """A step on what there is, and a version of it."""
    parts.clock.now += 5
    assert await parts.turn()
    parts.clock.now += parts.settings.publish_every_seconds
    await parts.turn()


def effects(parts: Parts, feedback_id: str) -> tuple[FeedbackEffect, ...]:
    return downstream.of_feedback(parts.database, feedback_id).effects


async def test_a_thumb_has_the_logprob_of_its_answer_before_and_after(parts: Parts) -> None:
    """The counting trainer gives each token -1 before a step and -0.75 after it."""
    parts.thumbs(0, 1)
    assert effects(parts, "f0") == ()
    await learn(parts)
    [effect] = effects(parts, "f0")
    assert (effect.policy_version, effect.text, effect.completion_id) == (1, "answer", "c0")
    assert effect.logprob_before == -1.0 * effect.tokens
    assert effect.logprob_after == -0.75 * effect.tokens
    assert len(parts.trainer.measured) == 1, "each is measured once, by the first version"
    parts.thumbs(1, 1)
    await learn(parts)
    assert len(parts.trainer.measured) == 2


async def test_a_comparison_has_both_and_an_edit_the_edit_and_the_answer(parts: Parts) -> None:
    recorder.record_rollouts(parts.database, [make_rollout(f"c{n}") for n in range(3)], 0.0)
    compared = make_comparison("p0", "c0", "c1", second=1)
    edited = make_edit("e0", "c2", "a better answer", second=2)
    recorder.record_feedback(parts.database, [(compared, 1), (edited, 2)], parts.clock())
    await learn(parts)
    pair = [(e.text, e.completion_id) for e in effects(parts, "p0")]
    assert pair == [("chosen", "c0"), ("rejected", "c1")]
    edit = [(e.text, e.completion_id) for e in effects(parts, "e0")]
    assert edit == [("edit", ""), ("answer", "c2")], "once, though SFT and DPO learned from it"


async def test_only_the_newest_are_measured_and_a_failure_holds_nothing_up(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts.training_run.effects = EffectLog(limit=2)
    parts.thumbs(0, 4)
    await learn(parts)
    measured = [n for n in range(4) if effects(parts, f"f{n}")]
    assert measured == [2, 3]

    def fail(sequences: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(parts.trainer, "logprobs", fail)
    parts.thumbs(4, 4)
    await learn(parts)
    assert versions.newest_version(parts.database, "policy") == 2
    assert effects(parts, "f7") == ()


async def test_forgetting_a_user_forgets_the_effects(parts: Parts) -> None:
    parts.thumbs(0, 2)
    await learn(parts)
    assert effects(parts, "f0")
    user = downstream.of_feedback(parts.database, "f0").user_hash
    forget_user.forget_user(parts.database, user, 0.0)
    parts.thumbs(0, 2)
    assert effects(parts, "f0") == ()


def test_the_policy_tells_how_likely_answers_were_before_a_step_and_are_after(
    tiny_policy: Path,
) -> None:
    """The same as a pass of its own before the step and one after it."""
    trainer = PolicyTrainer(tiny_policy, TrainerSettings(learning_rate=1e-3, seed=1))
    make = SampleMaker()
    liked = ThumbSample(sample_id="a", sequence=make.sequence(), desirable=True)
    prompt = make.sequence()
    pair = PairSample(
        sample_id="b",
        chosen=prompt,
        rejected=replace(prompt, completion_token_ids=make.tokens(4)),
    )
    edit = DemonstrationSample(sample_id="c", sequence=make.sequence())
    said_of = make.sequence()
    comment = CommentedSample(
        sample_id="d",
        sequence=said_of,
        hinted_prompt_token_ids=(*make.tokens(3), *said_of.prompt_token_ids),
    )
    samples = {"kto": [liked], "dpo": [pair], "sft": [edit], "sdft": [comment]}
    told = {
        part + sample.sample_id: s
        for group in samples.values()
        for sample in group
        for part, s in parts_of(sample)
    }
    before = [sum(row) for row in trainer.logprobs(list(told.values()))]
    result = trainer.step(samples)
    noted = [result.logprobs[tokens_of(s)][1] for s in told.values()]
    assert noted == pytest.approx(before, abs=1e-4)
    log = EffectLog()
    log.note(samples, result.logprobs)
    change = {
        effect.part + effect.sample_id: effect.logprob_after - effect.logprob_before
        for effect in log.measure(trainer.logprobs)
    }
    assert change["answera"] > 0
    assert change["chosenc"] > 0
    assert change["chosenb"] > change["rejectedb"]
    assert change["answerd"] != 0
    assert all(math.isfinite(nats) for nats in change.values())
    assert log.measure(trainer.logprobs) == []
