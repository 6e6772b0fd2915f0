"""What a user's function may return, what it may not, and how the row to blame is found."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.errors import InvalidRequest, SettingsError
from tuneloop.reward.build import build
from tuneloop.reward.outputs import score_rows
from tuneloop.reward.scorers.functions import FunctionScorer, load_function

ROWS = ["a", "bb", "bad", "dddd"]


def scorer(function: Any) -> FunctionScorer:
    return FunctionScorer(name="mine:reward", weight=1.0, function=function)


def scores(function: Any, completions: list[str], **columns: list[Any]) -> list[float | None]:
    return score_rows(scorer(function), ["q"] * len(completions), completions, columns)


def spoiled(value: Any) -> Any:
    """A function that answers `value` for the row `bad` and lengths for others."""

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[Any]:
        return [value if c == "bad" else float(len(c)) for c in completions]

    return reward


@pytest.mark.parametrize("make", [list, tuple, torch.tensor, iter])
def test_any_row_of_numbers_will_do(make: Any) -> None:
    function = lambda prompts, completions, **columns: make([float(len(c)) for c in completions])  # noqa: E731
    assert scores(function, ["a", "bb"]) == [1.0, 2.0]


def test_numbers_of_other_kinds_are_numbers_and_none_is_kept() -> None:
    answers = [1, True, torch.tensor(2.5), None]
    assert scores(lambda **rows: answers, ["a"] * 4) == [1.0, 1.0, 2.5, None]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (float("nan"), "returned nan, not a finite number"),
        (float("-inf"), "returned -inf, not a finite number"),
        (10**400, "not a number"),
        ("3", "returned '3', not a number"),
        ([1.0], "not a number"),
        (torch.tensor([1.0, 2.0]), "not a number"),
    ],
)
def test_a_wrong_value_names_its_row(value: Any, problem: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        scores(spoiled(value), ROWS)
    assert refused.value.message.startswith("row 3: reward mine:reward returned")
    assert problem in refused.value.message
    assert "'bad'" in refused.value.message
    assert refused.value.param == "row 3"


def test_a_function_that_raises_names_the_row_and_its_place() -> None:
    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        assert columns["topic"] == [c.upper() for c in completions], "columns go with their rows"
        return [{"a": 1.0, "bb": 2.0, "dddd": 4.0}[c] for c in completions]

    topics = [row.upper() for row in ROWS]
    places = [f"prompts.jsonl, line {n}" for n in range(10, 14)]
    with pytest.raises(InvalidRequest, match=r"^prompts.jsonl, line 12: .* raised KeyError: 'bad'"):
        score_rows(scorer(reward), ["q"] * 4, ROWS, {"topic": topics}, places=places)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (None, "returned NoneType, not a list of numbers"),
        ("abcd", "returned str, not a list of numbers"),
        ({"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}, "returned dict, not a list of numbers"),
        (1.0, "returned float, not a list of numbers"),
        ([1.0] * 3, "returned 3 scores for 1 completions"),
        ([], "returned 0 scores for 1 completions"),
    ],
)
def test_a_wrong_answer_is_told_by_the_first_row(answer: Any, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^row 1: reward mine:reward {problem}"):
        scores(lambda **rows: answer, ROWS)


def test_a_wrong_length_is_blamed_on_the_row_that_makes_it() -> None:
    function = lambda prompts, completions, **c: [1.0 for c in completions if c != "bad"]  # noqa: E731
    with pytest.raises(InvalidRequest, match=r"^row 3: .* 0 scores for 1"):
        scores(function, ROWS)


@given(st.lists(st.sampled_from(["good", "bad", "none"]), max_size=8))
def test_the_first_bad_row_is_the_one_named(rows: list[str]) -> None:
    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        if "bad" in completions:
            raise ValueError("bad")
        return [None if c == "none" else 1.0 for c in completions]

    if "bad" not in rows:
        assert scores(reward, rows) == [None if row == "none" else 1.0 for row in rows]
        return
    with pytest.raises(InvalidRequest) as refused:
        scores(reward, rows)
    assert refused.value.param == f"row {rows.index('bad') + 1}"


def test_async_functions_share_one_loop() -> None:
    loops = set()

    async def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        loops.add(asyncio.get_running_loop())
        await asyncio.sleep(0)
        if "bad" in completions:
            raise TimeoutError("slow")
        return [float(len(c)) for c in completions]

    assert scores(reward, ["a", "bb"]) == [1.0, 2.0]
    with pytest.raises(InvalidRequest, match=r"^row 3: .* raised TimeoutError: slow"):
        scores(reward, ROWS)
    assert len(loops) == 1


def test_columns_that_do_not_fit_are_named() -> None:
    good = spoiled(0.0)
    with pytest.raises(InvalidRequest, match="column topic: 1 values for 2 completions"):
        scores(good, ["a", "b"], topic=["x"])
    with pytest.raises(InvalidRequest, match="column prompts: the name is taken"):
        score_rows(scorer(good), ["q"], ["a"], {"prompts": ["x"]})


def test_a_function_is_found_in_a_file_and_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "def reward(prompts, completions, **columns):\n    return [7.0] * len(completions)\n"
    (tmp_path / "rewards_of_mine.py").write_text(source)
    (tmp_path / "broken.py").write_text("1 +")
    by_path = load_function(f"{tmp_path}/rewards_of_mine.py:reward")
    assert score_rows(by_path, ["q"], ["a"], {}) == [7.0]
    with pytest.raises(SettingsError, match=r"broken\.py:reward': SyntaxError"):
        load_function(f"{tmp_path}/broken.py:reward")
    monkeypatch.chdir(tmp_path)
    by_name = load_function("rewards_of_mine:reward")
    assert score_rows(by_name, ["q"], ["a"], {}) == [7.0]


def test_build_adds_up_by_weight_without_a_service(tiny_reward_model: Path) -> None:
    length, odd = "support.reward_parts:by_length", "support.reward_parts:odd_answers"
    scoring = build(functions=[length, odd], weights={length: 0.5})
    assert scoring.rewards(["q"] * 2, ["four", "none"], {}) == [4.0, None]
    with pytest.raises(
        InvalidRequest, match=r"^line 9: reward support.reward_parts:odd_answers .*nan"
    ):
        scoring.rewards(["q"] * 2, ["four", "nan"], {}, places=["line 8", "line 9"])
    with_model = build(functions=[length], reward_model=tiny_reward_model)
    assert with_model.rewards(["q"], ["four"], {}) == [4.0], "an untrained model is not heard"
    with pytest.raises(SettingsError, match="nothing scores"):
        build()
    with pytest.raises(SettingsError, match="the weight of"):
        build(functions=[length], weights={length: float("nan")})
