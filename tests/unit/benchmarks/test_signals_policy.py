"""What each kind of feedback teaches: the table, and one step of everything."""

import random
from pathlib import Path

import pytest

from benchmarks import signals_policy
from benchmarks.signals import HABITS
from benchmarks.signals_policy import ARMS, EVEN, ODD, POINTS, a_lesson, run_arm, table


def test_lessons_have_as_many_even_words_as_a_comment_asks_for() -> None:
    chance = random.Random(0)

    def share(comment: str) -> float:
        words = [word for _ in range(1000) for word in a_lesson(comment, chance)]
        return sum(word % 2 == 0 for word in words) / len(words)

    assert share("") == pytest.approx(0.5, abs=0.02)
    assert share(EVEN) == pytest.approx(0.8, abs=0.02)
    assert share(ODD) == pytest.approx(0.2, abs=0.02)


def test_the_table_has_means_and_differences_of_the_same_seeds() -> None:
    rows = [
        {
            "seed": seed,
            "arm": arm.name,
            "curve": [[point, 0.5 + 0.1 * number + 0.02 * seed] for point in POINTS],
        }
        for seed in (0, 1)
        for number, arm in enumerate(ARMS)
    ]
    text = table(rows)
    # Means of 0.5 and 0.52; half the interval is 12.706 * 0.01414 / 1.414.
    assert "| thumbs | 0.510 (0.383 to 0.637) |" in text
    # The same in both seeds.
    assert "| comments − thumbs | 0.100 (0.100 to 0.100) |" in text
    assert text.startswith("# What each kind of feedback teaches the policy\n\n2 seeds.")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_round_of_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals_policy, "BUILD", tmp_path)
    monkeypatch.setattr(signals_policy, "LESSONS", 2)
    found = run_arm(ARMS[-1], 0, (0, 32), HABITS)
    (before, first), (after, second) = found["curve"]
    assert (before, after) == (0, 32)
    assert 0 < first < 1
    assert 0 < second < 1
    assert second != first
