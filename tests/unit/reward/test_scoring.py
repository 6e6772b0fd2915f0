"""Scorers, their failures, and the reward made of them."""

import math
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from support.reward_parts import ROLLOUT, Publisher, constant_model

from tuneloop.bus.memory import MemoryBus
from tuneloop.errors import CorruptData, SettingsError
from tuneloop.reward.process import load_scoring, make_swap
from tuneloop.reward.scorer import ScoringInput, input_from_rollout
from tuneloop.reward.scorers.functions import FunctionScorer, load_function
from tuneloop.reward.scorers.reward_model import base_scorer, is_informative
from tuneloop.reward.scoring import Scoring, combine
from tuneloop.reward.settings import RewardSettings
from tuneloop.rollouts import ScorerResult
from tuneloop.settings import load


def candidates(completions: Iterable[str]) -> list[ScoringInput]:
    return [ScoringInput(prompt="q", completion=completion) for completion in completions]


def unscored(scorer: str, reason: str) -> float:
    labels = {"scorer": scorer, "reason": reason}
    return REGISTRY.get_sample_value("tuneloop_reward_unscored_total", labels) or 0.0


def test_a_function_scores_each_completion_in_order() -> None:
    scoring = Scoring([load_function("support.reward_parts:by_length", 2.0)])
    batch = scoring.score(candidates(["a", "abc", ""]))
    assert [score.reward for score in batch.scores] == [2.0, 6.0, 0.0]
    assert [score.results[0].score for score in batch.scores] == [1.0, 3.0, 0.0]
    assert all(score.informative for score in batch.scores)
    assert batch.reward_model_version == 0


def test_a_function_is_told_what_is_known() -> None:
    seen = {}

    def look(prompts: list[str], completions: list[str], **columns: list[object]) -> list[float]:
        seen.update(prompts=prompts, completions=completions, **columns)
        return [0.0]

    scorer = FunctionScorer(name="look", weight=1.0, function=look)
    Scoring([scorer]).score([input_from_rollout(ROLLOUT)])
    question = "what is the capital of France?"
    assert seen == {
        "prompts": [question],
        "completions": ["Paris."],
        "messages": [[{"role": "user", "content": question}]],
        "completion_id": ["chatcmpl-1"],
        "user_hash": ["u1"],
        "policy_version": [3],
        "finish_reason": ["stop"],
    }


def test_a_function_that_raises_costs_one_completion_its_reward(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scoring = Scoring(
        [
            load_function("support.reward_parts:trips", 1.0),
            load_function("support.reward_parts:by_length", 1.0),
        ]
    )
    before = unscored("support.reward_parts:trips", "error")
    batch = scoring.score(candidates(["good", "trip", "fine"]))
    assert [score.results[0].score for score in batch.scores] == [1.0, None, 1.0]
    assert [score.results[1].score for score in batch.scores] == [4.0, 4.0, 4.0]
    assert [score.reward for score in batch.scores] == [5.0, None, 5.0]
    assert unscored("support.reward_parts:trips", "error") == before + 1
    assert batch.failures == {1: "scorer support.reward_parts:trips raised ValueError: tripped"}
    assert (
        "completion 2 of a request: scorer support.reward_parts:trips raised ValueError"
        in caplog.text
    )
    assert "at reward_parts.py:" in caplog.text
    assert "tripped" not in caplog.text, "what a function says may quote what it was given"


def test_a_wrong_number_of_scores_is_a_failure() -> None:
    scoring = Scoring([load_function("support.reward_parts:one_short", 1.0)])
    batch = scoring.score(candidates(["a", "b", "c"]))
    assert [score.reward for score in batch.scores] == [None, None, None]
    assert set(batch.failures) == {0, 1, 2}
    assert "returned 0 scores for 1 completions" in batch.failures[2]


def test_what_is_not_a_finite_number_is_a_failure_and_none_is_not() -> None:
    name = "support.reward_parts:odd_answers"
    reasons = {"nan": "not_finite", "inf": "not_finite", "none": "no_score", "word": "not_a_number"}
    before = {reason: unscored(name, reason) for reason in reasons.values()}
    batch = Scoring([load_function(name, 1.0)]).score(candidates([*reasons, "true", "else"]))
    assert [score.reward for score in batch.scores] == [None, None, None, None, 1.0, 2.0]
    assert set(batch.failures) == {0, 1, 3}, "None is an answer"
    for reason, count in before.items():
        assert unscored(name, reason) == count + list(reasons.values()).count(reason)


def test_a_new_reward_model_says_nothing(tiny_reward_model: Path) -> None:
    base = base_scorer(tiny_reward_model, max_length=512, weight=1.0)
    [score] = Scoring([], base).score(candidates(["a"])).scores
    assert score.reward == 0.0
    assert not score.informative


def test_a_finished_reward_model_is_listened_to(tiny_reward_model: Path, tmp_path: Path) -> None:
    folder = constant_model(tiny_reward_model, tmp_path / "m", 0.75)
    base = base_scorer(folder, max_length=512, weight=2.0)
    short, long = Scoring([], base).score(candidates(["a", "word " * 600])).scores
    assert short.informative
    assert short.reward == pytest.approx(1.5)
    assert long.reward is None
    assert long.results[0].score is None


def test_enough_labels_make_a_version_informative(tiny_reward_model: Path, tmp_path: Path) -> None:
    publisher = Publisher(tiny_reward_model, tmp_path)
    manifest, _ = publisher.store().fetch(publisher.publish(1, bias=1.0, labels=31.0))
    assert not is_informative(manifest, min_labels=32, min_accuracy=0.65)
    assert is_informative(manifest, min_labels=31, min_accuracy=0.9)
    assert not is_informative(manifest, min_labels=31, min_accuracy=0.91)


def verdict(score: float | None, weight: float, informative: bool) -> ScorerResult:
    return ScorerResult(scorer="s", score=score, weight=weight, informative=informative)


def test_a_scorer_with_nothing_to_say_yet_is_not_heard() -> None:
    assert combine([verdict(5.0, 1.0, False), verdict(1.0, 2.0, True)]).reward == 2.0
    assert combine([verdict(5.0, 1.0, False), verdict(None, 1.0, True)]).reward is None
    assert combine([verdict(5.0, 1.0, False)]).reward == 5.0
    assert combine([verdict(None, 1.0, True)]).reward is None
    assert combine([]).reward is None


numbers = st.floats(-1e6, 1e6)


@given(st.lists(st.tuples(numbers | st.none(), numbers, st.booleans()), max_size=5))
def test_the_reward_is_the_weighted_sum(rows: list[tuple[float | None, float, bool]]) -> None:
    score = combine([verdict(*row) for row in rows])
    heard = [row for row in rows if row[2]] or rows
    terms = [value * weight for value, weight, _ in heard if value is not None]
    whole = terms and len(terms) == len(heard)
    assert score.reward == (math.fsum(terms) if whole else None)
    assert len(score.results) == len(rows)


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("by_length", "must be module:function"),
        ("support.reward_parts:", "must be module:function"),
        ("no_such_module:f", "ModuleNotFoundError"),
        ("support.reward_parts:absent", "no such function"),
        ("support.reward_parts:not_a_function", "no such function"),
        ("support.reward_parts:narrow", r"\*\*columns"),
        ("/no/such/file.py:reward", "no file"),
    ],
)
def test_a_wrong_function_is_refused_at_start(reference: str, problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        load_function(reference)
    with pytest.raises(SettingsError, match=r"TUNELOOP_REWARD_FUNCTIONS: .*" + problem):
        load_scoring(RewardSettings(functions=(reference,)))


def test_weights_must_name_a_scorer(tiny_reward_model: Path) -> None:
    function = "support.reward_parts:by_length"
    good = RewardSettings(
        model=tiny_reward_model,
        functions=(function,),
        weights={function: 0.5, "reward_model": 3.0},
    )
    assert [(s.name, s.weight) for s in load_scoring(good).scorers] == [
        ("reward_model", 3.0),
        (function, 0.5),
    ]
    with pytest.raises(SettingsError, match="WEIGHTS: no scorer 'reward_model'"):
        load_scoring(RewardSettings(functions=(function,), weights={"reward_model": 1.0}))


async def test_a_missing_model_or_key_is_named(tiny_reward_model: Path, tmp_path: Path) -> None:
    with pytest.raises(CorruptData, match="reward model /no/such/folder"):
        load_scoring(RewardSettings(model=Path("/no/such/folder")))
    settings = RewardSettings(model=tiny_reward_model, verify_key_file=tmp_path / "absent.pem")
    base = base_scorer(tiny_reward_model, max_length=512, weight=1.0)
    with pytest.raises(SettingsError, match=r"verify key .*absent\.pem"):
        make_swap(settings, MemoryBus(), Scoring([], base), base)


def test_something_must_score() -> None:
    with pytest.raises(SettingsError, match="TUNELOOP_REWARD_MODEL or TUNELOOP_REWARD_FUNCTIONS"):
        load_scoring(RewardSettings())


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELOOP_REWARD_FUNCTIONS", '["a.b:c"]')
    monkeypatch.setenv("TUNELOOP_REWARD_WEIGHTS", '{"a.b:c": 0.25}')
    loaded = load(RewardSettings)
    assert loaded.functions == ("a.b:c",)
    assert loaded.weights == {"a.b:c": 0.25}
    monkeypatch.setenv("TUNELOOP_REWARD_BATCH_SIZE", "0")
    with pytest.raises(SettingsError, match=r"TUNELOOP_REWARD_BATCH_SIZE.*1 to 1024"):
        load(RewardSettings)
    monkeypatch.setenv("TUNELOOP_REWARD_BATCH_SIZES", "4")
    with pytest.raises(SettingsError, match="did you mean TUNELOOP_REWARD_BATCH_SIZE"):
        load(RewardSettings)


def test_a_device_that_is_not_there_is_refused_by_name(
    tiny_reward_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.zeros", no_cuda)
    with pytest.raises(SettingsError, match="TUNELOOP_REWARD_DEVICE: device cuda: no CUDA here"):
        load_scoring(RewardSettings(model=tiny_reward_model, device="cuda"))


def no_cuda(*_: object, **__: object) -> None:
    raise AssertionError("no CUDA here")
