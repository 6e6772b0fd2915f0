"""The benchmark of the best of several: what it makes of the candidates of an answer."""

import pytest

from benchmarks.best_of import Answer, Candidate, Question, rows_of


def candidate(reward: float, tokens: int) -> Candidate:
    return Candidate(reward=reward, answer=Answer(text="", tokens=tokens, ended=tokens < 64))


def test_the_best_of_fewer_is_read_off_the_candidates_of_eight() -> None:
    """By hand: liked are those of 10 and 40 tokens, not of 41 or 64; 264 tokens in all."""
    tokens = (64, 10, 41, 40, 64, 20, 15, 10)
    rewards = (0.1, 0.9, 0.5, 0.4, 0.2, 0.1, 0.8, 0.8)
    question = Question(seed=3, candidates=tuple(map(candidate, rewards, tokens)))
    assert [c.answer.tokens for c in question.best_of(2)] == [10, 41, 64, 15]
    assert [c.answer.tokens for c in question.best_of(4)] == [10, 15]
    rows = {row["best_of"]: row for row in rows_of([question])}
    assert [rows[size]["liked"]["value"] for size in (1, 2, 4, 8)] == [5 / 8, 2 / 4, 2 / 2, 1.0]
    assert rows[8]["tokens_answered"]["value"] == 10
    assert rows[4]["tokens_answered"]["value"] == pytest.approx(12.5)
    assert rows[8]["tokens_sampled"]["value"] == pytest.approx(264)
    assert rows[2]["tokens_sampled"]["value"] == pytest.approx(66)
    assert rows[1]["liked_by_seed"] == [5 / 8]
