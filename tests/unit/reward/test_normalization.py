"""Running statistics: exact at first, following a drift later, and what they do to a sum."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.reward.normalization import CARRIED, WINDOW, Normalizer, RunningStatistics
from tuneloop.reward.scorer import ScoringInput
from tuneloop.reward.scorers.functions import FunctionScorer
from tuneloop.reward.scoring import Scoring


def after(scores: list[float]) -> RunningStatistics:
    running = RunningStatistics()
    for score in scores:
        running.add(score)
    return running


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=50))
def test_up_to_the_window_they_are_exact(scores: list[float]) -> None:
    running = after(scores)
    assert running.mean == pytest.approx(statistics.fmean(scores), abs=1e-9)
    assert running.variance == pytest.approx(statistics.pvariance(scores), abs=1e-6)


def test_by_hand() -> None:
    running = after([1.0, 3.0])
    assert (running.mean, running.variance) == (2.0, 1.0)
    assert running.normalized(4.0) == 2.0


def test_without_spread_there_is_nothing_to_say() -> None:
    assert after([0.1] * 30).normalized(0.1) == 0.0
    assert after([5.0]).normalized(5.0) == 0.0


def test_a_drift_is_followed() -> None:
    running = after([0.0, 1.0] * 1000 + [100.0, 120.0] * 2000)
    old = (1 - 1 / WINDOW) ** 4000  # what the weight of the first 2000 has faded to
    assert old < 0.02
    assert running.mean == pytest.approx(110.0 - old * 109.5, abs=0.02)
    spread = old * 0.25 + (1 - old) * 100.0 + old * (1 - old) * 109.5**2
    assert running.variance == pytest.approx(spread, rel=0.01)


def test_a_new_version_is_believed_sooner_than_a_drift() -> None:
    normalizer = Normalizer()
    normalizer.learn("m", 1, [0.0, 1.0] * 500)
    normalizer.learn("m", 2, [10.0, 12.0] * int(CARRIED))
    # 2/3 of the weight is the new version's: mean 0.5/3 + 2·11/3.
    middle = (0.5 + 2 * 11.0) / 3
    assert normalizer.normalized("m", middle) == pytest.approx(0.0, abs=0.02)
    assert normalizer.normalized("unseen", 3.0) == 3.0


def scorer(name: str, scale: float) -> FunctionScorer:
    """Scores the number written in the completion, on a scale of its own."""

    def function(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
        return [scale * float(completion.split()[name == "second"]) for completion in completions]

    return FunctionScorer(name=name, weight=1.0, function=function)


ROWS = ["1 3", "2 2", "3 2", "4 1", "0 2"]


def rewards(scoring: Scoring) -> list[float | None]:
    return scoring.rewards(["q"] * len(ROWS), ROWS, {})


def test_normalised_the_scale_of_a_scorer_does_not_matter() -> None:
    alike = rewards(Scoring([scorer("first", 1.0), scorer("second", 1.0)], normalize=True))
    wide = rewards(Scoring([scorer("first", 1e6), scorer("second", 1.0)], normalize=True))
    assert wide == pytest.approx(alike)
    raw = rewards(Scoring([scorer("first", 1e6), scorer("second", 1.0)]))
    assert raw[0] == 1e6 + 3.0


def test_results_keep_raw_scores_and_only_rollouts_set_the_scale() -> None:
    scoring = Scoring([scorer("first", 1.0)], normalize=True)
    rows = [ScoringInput(prompt="q", completion=row) for row in ROWS]
    assert [s.reward for s in scoring.score(rows).scores] == [1.0, 2.0, 3.0, 4.0, 0.0]
    learned = scoring.score(rows, learn=True)
    assert [s.results[0].score for s in learned.scores] == [1.0, 2.0, 3.0, 4.0, 0.0]
    assert learned.scores[1].reward == 0.0
    assert learned.scores[3].reward == pytest.approx(2**0.5)
    assert scoring.score(rows).scores == learned.scores
