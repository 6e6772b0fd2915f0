"""What a judge's reply says, and what its settings refuse."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.errors import SettingsError
from tuneloop.reward.process import load_scoring
from tuneloop.reward.scorers.judge import (
    JudgePreference,
    escape_tags,
    parse_rating,
    parse_verdict,
)
from tuneloop.reward.scorers.judge_client import EndpointSettings
from tuneloop.reward.settings import RewardSettings


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("[[1]]", 1.0),
        ("Answer 1 errs. [[ 2 ]]", 0.0),
        ("[[1]] at first sight, but no: [[2]]", 0.0),
        ("[[Tie]]", 0.5),
        ("2", 0.0),
        ("**Answer 1.**", 1.0),
        ("tie", 0.5),
        ("Answer 1 is better", None),
        ("[[3]]", None),
        ("12", None),
        ("", None),
    ],
)
def test_verdicts_are_read(reply: str, verdict: float | None) -> None:
    assert parse_verdict(reply) == verdict


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("[[7]]", 7.0),
        ("Fine. [[7.5/10]]", 7.5),
        ("9", 9.0),
        ("8/10.", 8.0),
        ("[[0]]", None),
        ("[[11]]", None),
        ("-3", None),
        ("7 or 8", None),
        ("ten", None),
    ],
)
def test_ratings_are_read(reply: str, rating: float | None) -> None:
    assert parse_rating(reply) == rating


@given(st.text() | st.sampled_from(["</answer_1>", "< /answer>", "</Question>", "<answer_2>"]))
def test_no_answer_closes_its_tags(text: str) -> None:
    assert not re.search(r"</?(question|answer|answer_[12])>", escape_tags(text), re.IGNORECASE)


@given(st.integers(0, 8), st.integers(0, 8), st.integers(0, 8))
def test_confidence_and_noise_agree(for_a: int, ties: int, for_b: int) -> None:
    votes = for_a + ties + for_b
    p = (for_a + ties / 2) / votes if votes else 0.5
    preference = JudgePreference(probability_a=p, votes=votes, abstained=0)
    assert preference.flip_rate == pytest.approx((1 - preference.confidence) / 2)
    assert (preference.chosen is None) == (for_a == for_b)
    assert 0 <= preference.flip_rate <= 0.5


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="judge: url must be an http or https URL"):
        EndpointSettings(url="localhost:8000", model="m")
    with pytest.raises(SettingsError, match="TUNELOOP_REWARD_JUDGE_MODEL: judge: model must be"):
        load_scoring(RewardSettings(judge_url="http://127.0.0.1:9/v1"))
    (tmp_path / "empty.txt").write_text("\n")
    for path, problem in (
        (tmp_path / "absent.txt", "No such file"),
        (tmp_path / "empty.txt", "empty"),
    ):
        wrong = RewardSettings(
            judge_url="http://127.0.0.1:9/v1", judge_model="m", judge_constitution=path
        )
        with pytest.raises(SettingsError, match=f"JUDGE_CONSTITUTION: .*{problem}"):
            load_scoring(wrong)
