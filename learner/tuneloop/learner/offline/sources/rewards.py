"""The reward of completions, offline: functions, a reward model, each with its weight.

Online a failing scorer leaves a score absent and the service continues. Here somebody waits at a
terminal: any error in a reward ends the run with a message that names the row.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tuneloop.errors import InvalidRequest, SettingsError
from tuneloop.learner.data.prompt_rows import PromptRow
from tuneloop.reward.outputs import score_rows
from tuneloop.reward.scorer import Scorer
from tuneloop.reward.scorers.functions import load_function
from tuneloop.reward.scorers.judge import Judge, JudgeScorer

TAKEN = ("prompts", "completions", "messages", "finish_reason")
"""Names of columns that every reward function gets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardInput:
    """A completion to score."""

    row: PromptRow
    completion: str
    finish_reason: str
    """`stop` or `length`."""


class Rewards:
    """The weighted sum of scorers."""

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        self._scorers = scorers

    @property
    def names(self) -> list[str]:
        """What the reward is made of, for the run's record."""
        return [f"{scorer.name}={scorer.weight:g}" for scorer in self._scorers]

    def score(self, answers: Sequence[RewardInput]) -> list[float | None]:
        """Return the reward of each answer; None where a scorer declares that it cannot score it.

        Raises `InvalidRequest` naming the row when a scorer raises, returns something else than a
        finite number or None, or another number of scores than there are completions.
        """
        prompts = [a.row.asked.text for a in answers]
        completions = [a.completion for a in answers]
        places = [a.row.place for a in answers]
        columns = columns_of(answers)
        totals: list[float | None] = [0.0] * len(answers)
        for scorer in self._scorers:
            scores = score_rows(scorer, prompts, completions, columns, places=places)
            totals = [
                None if total is None or score is None else total + scorer.weight * score
                for total, score in zip(totals, scores, strict=True)
            ]
        return totals


def columns_of(answers: Sequence[RewardInput]) -> Mapping[str, list[Any]]:
    """Return what else a scorer is given, one value for each answer."""
    names = dict.fromkeys(name for a in answers for name in a.row.columns if name not in TAKEN)
    columns: dict[str, list[Any]] = {
        name: [a.row.columns.get(name) for a in answers] for name in names
    }
    columns["messages"] = [
        [{"role": m.role, "content": m.content} for m in a.row.asked.messages] for a in answers
    ]
    columns["finish_reason"] = [a.finish_reason for a in answers]
    return columns


def load_rewards(
    functions: Sequence[str], reward_model: Path | None, judge: Judge | None = None
) -> Rewards:
    """Functions as `module:function[=weight]`, a reward model's folder, a judge that rates.

    Raises `SettingsError` for what is no function, `InvalidRequest` for what is no reward model.
    """
    scorers: list[Scorer] = [function_scorer(reference) for reference in functions]
    if reward_model is not None:
        from tuneloop.reward.scorers.reward_model import base_scorer

        scorer = base_scorer(
            reward_model,
            max_length=LONGEST,
            weight=1.0,
            device="cuda" if torch.cuda.is_available() else "cpu",
        )
        if not scorer.informative:
            raise InvalidRequest(
                f"--reward-model {reward_model}: a backbone without a trained score head; "
                "train one with: tuneloop train reward-model",
                param="reward_model",
            )
        scorers.append(scorer)
    if judge is not None:
        scorers.append(JudgeScorer(judge=judge, weight=1.0))
    return Rewards(scorers)


LONGEST = 1 << 20
"""A reward model reads as much as it has positions for."""


def function_scorer(reference: str) -> Scorer:
    """Import `module:function[=weight]`; raises `SettingsError`."""
    name, equals, weight = reference.partition("=")
    try:
        number = float(weight) if equals else 1.0
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise SettingsError(f"--reward {reference}: {weight!r} is not a weight", param="reward")
    return load_function(name, number)
