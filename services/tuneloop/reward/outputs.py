"""Runs a scorer and checks its output for each row: a finite number, None, or a failure.

A scorer is the user's code. If it fails on a batch it is run again row by row, so that the row at
fault is found and the others get their scores; but not if it timed out.
"""

import inspect
import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.errors import InvalidRequest
from tuneloop.reward.scorer import Scorer
from tuneloop.reward.scorers.background import result_of
from tuneloop.reward.scorers.deadline import Overdue

Columns = Mapping[str, Sequence[Any]]
"""Further columns by name, with one value per row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A row that a scorer failed on."""

    reason: str
    """`error`, `timeout`, `wrong_length`, `wrong_type`, `not_a_number` or `not_finite`."""
    problem: str
    """For people: `raised ValueError: no such key`. It may quote the completion."""
    gist: str
    """The same without a quote: `raised ValueError at my_rewards.py:12`."""

    def at(
        self, scorer: str, row: int, completion: str, places: Sequence[str] | None
    ) -> InvalidRequest:
        """Return the failure as an error that names the row."""
        place = f"row {row + 1}" if places is None else places[row]
        problem = f"{self.problem} for {completion!r:.60}"
        return InvalidRequest(f"{place}: reward {scorer} {problem}", param=place)


ScorerOutput = float | None | Failure
"""None: the scorer declares that it cannot score this row."""


def run_scorer(
    scorer: Scorer, prompts: Sequence[str], completions: Sequence[str], columns: Columns
) -> list[ScorerOutput]:
    """Return the scorer's output for each row, in order. An exception becomes a failure."""
    if not completions:
        return []
    answer = _call(scorer, prompts, completions, columns)
    if not isinstance(answer, Failure):
        return [check_value(value) for value in answer]
    if len(completions) == 1 or answer.reason == "timeout":
        # Row by row it would time out again, for every row.
        return [answer] * len(completions)
    return [
        run_scorer(scorer, [prompt], [completion], {name: [c[row]] for name, c in columns.items()})[
            0
        ]
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
    ]


def score_rows(
    scorer: Scorer,
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Columns,
    *,
    places: Sequence[str] | None = None,
) -> list[float | None]:
    """Score rows with a function, or any other scorer; None if it cannot score a row.

    `places` name the rows in errors (`prompts.jsonl, line 3`); without them they are `row 1`, …

    Raises:
        InvalidRequest: the scorer raised, or did not return a list of as many finite numbers or
            Nones; the message names the row, `param` is its place. Or a column has another length
            or a reserved name; `param` is the column.

    """
    check_columns(completions, columns)
    scores: list[float | None] = []
    for row, output in enumerate(run_scorer(scorer, prompts, completions, columns)):
        if isinstance(output, Failure):
            raise output.at(scorer.name, row, completions[row], places)
        scores.append(output)
    return scores


def check_columns(completions: Sequence[str], columns: Columns) -> None:
    """Raise `InvalidRequest` naming a column that a scorer cannot take."""
    for name, column in columns.items():
        if name in ("prompts", "completions"):
            raise InvalidRequest(f"column {name}: the name is taken; rename it", param=name)
        if len(column) != len(completions):
            problem = f"{len(column)} values for {len(completions)} completions"
            raise InvalidRequest(f"column {name}: {problem}", param=name)


def _call(
    scorer: Scorer, prompts: Sequence[str], completions: Sequence[str], columns: Columns
) -> list[object] | Failure:
    """Return the scorer's answer as a list of the right length."""
    try:
        answer: Any = scorer.score(prompts, completions, **columns)
        if inspect.isawaitable(answer):
            answer = result_of(answer)
    except Overdue as error:
        return Failure(reason="timeout", problem=str(error), gist=str(error))
    except Exception as error:
        return failure_of(error)
    # Arrays and tensors become plain numbers; iterables that are not lists of scores are refused.
    answer = answer.tolist() if hasattr(answer, "tolist") else answer
    if isinstance(answer, str | bytes | Mapping) or not hasattr(answer, "__iter__"):
        problem = f"returned {type(answer).__name__}, not a list of numbers"
        return Failure(reason="wrong_type", problem=problem, gist=problem)
    scores = list(answer)
    if len(scores) != len(completions):
        problem = f"returned {len(scores)} scores for {len(completions)} completions"
        return Failure(reason="wrong_length", problem=problem, gist=problem)
    return scores


def failure_of(error: Exception) -> Failure:
    """Return the failure for an exception that a scorer raised, or returned for a row."""
    name = type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return Failure(reason="error", problem=f"raised {name}: {error}", gist=f"raised {name}{place}")


def check_value(value: object) -> ScorerOutput:
    """Return a finite number or None as it is, and a failure for anything else.

    A scorer that works row by row may return an exception in place of a row's score.
    """
    if value is None:
        return None
    if isinstance(value, Exception):
        return failure_of(value)
    try:
        number = None if isinstance(value, str | bytes) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = None
    if number is None:
        gist = f"returned {type(value).__name__}, not a number"
        problem = f"returned {value!r:.80}, not a number"
        return Failure(reason="not_a_number", problem=problem, gist=gist)
    if not math.isfinite(number):
        problem = f"returned {number}, not a finite number"
        return Failure(reason="not_finite", problem=problem, gist=problem)
    return number
