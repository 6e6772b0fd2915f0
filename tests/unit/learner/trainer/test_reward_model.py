"""One step of the reward model: it learns, however it is cut, and refuses what is too long."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tuneloop.errors import InvalidRequest
from tuneloop.learner.objectives.reward_samples import silences
from tuneloop.learner.samples import (
    LabelledText,
    PreferredText,
    RankedText,
    RatedText,
    RewardSample,
    SignalledText,
)
from tuneloop.learner.trainer.reward_model import RewardTrainer
from tuneloop.learner.trainer.settings import RewardTrainerSettings
from tuneloop.models.reward_model import load

GOOD = ("the quick brown fox", "yes thanks", "a short story about a river", "Paris.")
BAD = ("no no no", "the lazy dog jumps", "mountain and the sea 0 1 2", "system user assistant")


def make_samples() -> list[RewardSample]:
    thumbs = [
        LabelledText(sample_id=f"t{i}-{up}", prompt="tell me", completion=words[i], desirable=up)
        for i in range(4)
        for up, words in ((True, GOOD), (False, BAD))
    ]
    pairs = [
        PreferredText(sample_id=f"p{i}", prompt="tell me", chosen=GOOD[i], rejected=BAD[i - 1])
        for i in range(4)
    ]
    return [*thumbs, *pairs]


def make_trainer(folder: Path, **options: float) -> RewardTrainer:
    settings = RewardTrainerSettings(threads=1, **options)  # type: ignore[arg-type]
    return RewardTrainer(folder, settings)


def test_a_new_head_scores_nothing_and_its_loss_is_ln_2(tiny_reward_model: Path) -> None:
    metrics = make_trainer(tiny_reward_model).step({"reward_model": make_samples()}).metrics
    assert metrics["thumb_loss"] == pytest.approx(math.log(2))
    assert metrics["pair_loss"] == pytest.approx(math.log(2))
    assert metrics["silence_loss"] == pytest.approx(math.log(2))
    assert metrics["loss"] == pytest.approx(2.1 * math.log(2))
    assert metrics["desirable_score"] == metrics["undesirable_score"] == 0.0
    assert metrics["gradient_norm"] > 0 or metrics["gradient_norm"] == 0.0


def test_it_learns_and_its_saved_folder_scores_what_it_learned(
    tiny_reward_model: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(tiny_reward_model, learning_rate=2e-3)
    samples = make_samples()
    for _ in range(60):
        result = trainer.step({"reward_model": samples})
    assert result.metrics["accuracy"] == 1.0
    assert result.metrics["loss"] < 0.3
    assert result.metrics["desirable_score"] > result.metrics["undesirable_score"] + 1
    trainer.save_weights(tmp_path)
    model = load(tmp_path)
    assert model.trained
    good = model.score(["tell me"] * 4, GOOD)
    bad = model.score(["tell me"] * 4, BAD)
    assert min(score for score in good if score is not None) > 0
    assert max(score for score in bad if score is not None) < 0


@pytest.mark.parametrize(("weight", "is_worst"), [(0.0, False), (0.1, True)])
def test_where_short_answers_are_liked_none_is_the_worst(
    weight: float, is_worst: bool, tiny_reward_model: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(tiny_reward_model, learning_rate=2e-3, silence_weight=weight)
    long = "a short story about a river, mountain and the sea "
    pairs = [
        PreferredText(sample_id=f"p{i}", prompt="tell me", chosen=GOOD[i], rejected=long + GOOD[i])
        for i in (0, 1, 3)
    ]
    for _ in range(60):
        trainer.step({"reward_model": pairs})
    trainer.save_weights(tmp_path)
    texts = ["", *(pair.rejected for pair in pairs), *(pair.chosen for pair in pairs)]
    scores = [score or 0.0 for score in load(tmp_path).score(["tell me"] * len(texts), texts)]
    assert (scores[0] == min(scores)) is is_worst
    assert max(scores[1:4]) < min(scores[4:])


def test_what_is_better_than_no_answer() -> None:
    samples: list[RewardSample] = [
        LabelledText(sample_id="up", prompt="q", completion="good", desirable=True, weight=0.5),
        LabelledText(sample_id="down", prompt="q", completion="bad", desirable=False),
        PreferredText(sample_id="pair", prompt="q", chosen="better", rejected="worse"),
        RankedText(sample_id="ranking", prompt="q", completions=("1", "2", "3"), trust=0.2),
        RatedText(sample_id="rated", prompt="q", completion="well", rating=2.0),
    ]
    found = [(p.sample_id, p.chosen, p.rejected, p.weight, p.trust) for p in silences(samples)]
    assert found == [
        ("up", "good", "", 0.5, 1.0),
        ("pair", "worse", "", 1.0, 1.0),
        ("ranking", "3", "", 1.0, 0.2),
    ]


def test_how_the_batch_is_cut_does_not_change_the_step(tiny_reward_model: Path) -> None:
    whole = make_trainer(tiny_reward_model, token_budget=10_000, head_learning_rate=0.05)
    single = make_trainer(tiny_reward_model, token_budget=1, head_learning_rate=0.05)
    for _ in range(3):
        metrics = dict(whole.step({"reward_model": make_samples()}).metrics)
        assert single.step({"reward_model": make_samples()}).metrics == pytest.approx(
            metrics, rel=1e-3, abs=1e-5
        )
    expected, moments = whole.state().optimizer, single.state().optimizer
    for name, moment in expected.items():
        assert torch.allclose(moments[name], moment, rtol=1e-2, atol=1e-5), name


def test_only_weights_between_samples_count(tiny_reward_model: Path) -> None:
    """By hand: a new head's loss is ln 2 for every sample, and so is their mean, however heavy."""
    light = [replace(sample, weight=1 / 6) for sample in make_samples()]
    heavy = [replace(sample, weight=3.0) for sample in make_samples()]
    rankings: list[RewardSample] = [
        RankedText(sample_id="r", prompt="tell me", completions=GOOD[:3], weight=0.1)
    ]
    trainer = make_trainer(tiny_reward_model)
    metrics = trainer.step({"reward_model": [*light, *rankings]}).metrics
    for name in ("thumb_loss", "pair_loss", "ranking_loss"):
        assert metrics[name] == pytest.approx(math.log(2))
    trainers = [make_trainer(tiny_reward_model) for _ in range(2)]
    for _ in range(2):
        one, other = (
            trainer.step({"reward_model": samples}).metrics
            for trainer, samples in zip(trainers, (light, heavy), strict=True)
        )
        assert one == pytest.approx(dict(other), rel=1e-3, abs=1e-5)


def test_one_kind_alone_is_enough_and_none_is_skipped(tiny_reward_model: Path) -> None:
    trainer = make_trainer(tiny_reward_model)
    assert "pair_loss" not in trainer.step({"reward_model": make_samples()[:2]}).metrics
    assert "thumb_loss" not in trainer.step({"reward_model": make_samples()[-2:]}).metrics
    result = trainer.step({"reward_model": []})
    assert (result.skipped, result.reason) == (True, "no_samples")
    assert trainer.optimizer_steps == 2


@pytest.mark.parametrize("place", [0, -1])
def test_a_sample_that_is_too_long_is_refused_never_cut(
    tiny_reward_model: Path, place: int
) -> None:
    trainer = make_trainer(tiny_reward_model, max_length=40)
    samples = make_samples()
    samples[place] = replace(samples[place], prompt="river " * 100)
    before = trainer.state().model
    with pytest.raises(InvalidRequest, match="more than the 40 tokens that fit") as caught:
        trainer.step({"reward_model": samples})
    assert caught.value.param == samples[place].sample_id
    after = trainer.state().model
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_weights_and_margins_that_are_no_numbers_are_refused(tiny_reward_model: Path) -> None:
    trainer = make_trainer(tiny_reward_model)
    thumb, pair = make_samples()[0], make_samples()[-1]
    assert isinstance(pair, PreferredText)
    with pytest.raises(InvalidRequest, match="weight nan"):
        trainer.check("reward_model", replace(thumb, weight=math.nan))
    with pytest.raises(InvalidRequest, match="margin inf"):
        trainer.check("reward_model", replace(pair, margin=math.inf))


def test_a_language_model_can_be_the_backbone(tiny_policy: Path) -> None:
    trainer = make_trainer(tiny_policy, head_learning_rate=0.02)
    first = trainer.step({"reward_model": make_samples()}).metrics["loss"]
    for _ in range(20):
        last = trainer.step({"reward_model": make_samples()}).metrics["loss"]
    assert last < first - 0.2


def thumb(number: int, up: bool) -> LabelledText:
    return LabelledText(sample_id=f"t{number}", prompt="p", completion=GOOD[0], desirable=up)


def test_classes_are_balanced_over_the_stream_not_the_batch(tiny_reward_model: Path) -> None:
    """By hand, one at a time, with a head that stays at 0: nine thumbs up, then one down.

    A thumb then loses ln 2 times its weight. Of weight W up before it, a thumb up has share 1, and
    the one down 0.5 / (1 / (0.99·W + 1)), at most 4.
    """
    trainer = make_trainer(tiny_reward_model, head_learning_rate=1e-12, learning_rate=1e-12)
    losses = [
        trainer.step({"reward_model": [thumb(n, n < 9)]}).metrics["thumb_loss"] for n in range(10)
    ]
    assert losses == pytest.approx([math.log(2) / 2] * 9 + [math.log(2) * 4])
    # The next one up has the rest: of 10.5 in all, 1 · 0.99 is down.
    (up,) = [trainer.step({"reward_model": [thumb(10, True)]}).metrics["thumb_loss"]]
    total = sum(0.99**n for n in range(11))
    assert up == pytest.approx(math.log(2) * 0.5 / (1 - 0.99 / total))


def test_a_checkpoint_keeps_the_balance_of_classes(tiny_reward_model: Path) -> None:
    trainer, other = make_trainer(tiny_reward_model), make_trainer(tiny_reward_model)
    trainer.step({"reward_model": [thumb(n, n > 0) for n in range(4)]})
    state = trainer.state()
    kept = {"up": 3.0, "down": 1.0, "supposed": pytest.approx(0.99**4)}
    assert state.scheduler["thumbs"] == kept
    other.load_state(state)
    assert other.state().scheduler["thumbs"] == kept
    # One from before they were kept starts with none.
    del state.scheduler["thumbs"]  # type: ignore[attr-defined]
    other.load_state(state)
    assert other.state().scheduler["thumbs"] == {"up": 0.0, "down": 0.0, "supposed": 1.0}


def test_a_lone_thumb_moves_the_reward_model_by_its_share_of_a_full_step(
    tiny_reward_model: Path, tmp_path: Path
) -> None:
    def moved(count: int, full_step: float | None, trust: float = 1.0) -> float:
        # Only the head moves, in its first step: the score is its displacement.
        options = {"silence_weight": 0.0, "learning_rate": 1e-12, "weight_decay": 0.0}
        settings = RewardTrainerSettings(threads=1, full_step=full_step, **options)
        trainer = RewardTrainer(tiny_reward_model, settings)
        thumbs = [replace(sample, trust=trust) for sample in make_samples()[:count]]
        trainer.step({"reward_model": thumbs})
        trainer.save_weights(tmp_path)
        scores = load(tmp_path).score(["tell me"], [GOOD[0]])
        return abs(scores[0] or 0.0)

    whole = moved(1, None)
    assert moved(1, 16.0) == pytest.approx(whole / 16, rel=0.01)
    assert moved(4, 16.0, trust=0.5) == pytest.approx(moved(4, None) / 8, rel=0.01)


def signalled(number: int, chance: float, **fields: float) -> SignalledText:
    words = (GOOD if chance > 0.5 else BAD)[number % 4]
    return SignalledText(
        sample_id=f"s{number}", prompt="tell me", completion=words, chance=chance, **fields
    )


def test_signals_alone_make_no_step(tiny_reward_model: Path) -> None:
    trainer = make_trainer(tiny_reward_model)
    result = trainer.step({"signals": [signalled(0, 0.9)]})
    assert (result.skipped, result.reason) == (True, "no_samples")
    assert trainer.optimizer_steps == 0


def test_signals_weigh_at_most_as_much_as_judgements(tiny_reward_model: Path) -> None:
    """By hand: a new head loses ln 2 for every thumb and every signal, however likely it is up."""
    trainer = make_trainer(tiny_reward_model, silence_weight=0.0)
    thumbs = make_samples()[:2]
    few = [signalled(0, 0.9, weight=0.25), signalled(1, 0.2, weight=0.5, trust=0.5)]
    metrics = trainer.step({"reward_model": thumbs, "signals": few}).metrics
    assert metrics["thumb_loss"] == pytest.approx(math.log(2))
    assert metrics["signal_chance"] == pytest.approx(0.55)
    # The class weights are 1: of the two thumbs one is up. Trust lowers the loss, not its divisor.
    expected = math.log(2) * (0.25 + 0.25) / 0.75
    assert metrics["signal_loss"] == pytest.approx(expected)
    assert metrics["loss"] == pytest.approx(math.log(2) + 0.75 / 2 * expected)
    many = [signalled(n, 0.5) for n in range(16)]
    fresh = make_trainer(tiny_reward_model, silence_weight=0.0)
    metrics = fresh.step({"reward_model": thumbs, "signals": many}).metrics
    assert metrics["loss"] == pytest.approx(2 * math.log(2))


def test_what_users_did_is_learned_beside_what_they_said(
    tiny_reward_model: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(tiny_reward_model, learning_rate=2e-3)
    thumbs = make_samples()[:2]
    told = [signalled(n, chance) for n in range(4) for chance in (0.95, 0.05)]
    for _ in range(60):
        trainer.step({"reward_model": thumbs, "signals": told})
    trainer.save_weights(tmp_path)
    model = load(tmp_path)
    good = model.score(["tell me"] * 4, GOOD)
    bad = model.score(["tell me"] * 4, BAD)
    assert min(score for score in good if score is not None) > 0
    assert max(score for score in bad if score is not None) < 0
