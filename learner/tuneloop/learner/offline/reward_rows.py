"""Rows to samples of the reward model: pairs, rankings, labels, ratings."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Sequence

from tuneloop.learner.offline.fields import Fields, Form, Text, choose_form
from tuneloop.learner.offline.preferences import EXPLICIT, IMPLICIT, RANKED, preferences
from tuneloop.learner.offline.table import Table
from tuneloop.learner.offline.tokens import completion_text
from tuneloop.learner.samples import (
    LabelledText,
    PreferredText,
    RankedText,
    RatedText,
    RewardSample,
)
from tuneloop.models.reward_text import prompt_as_text

LABELLED = Form(columns=("prompt", "completion", "label"))
RATED = Form(columns=("prompt", "completion", "rating"), optional=("user",))
SCORED = Form(columns=("prompt", "completion", "score"), optional=("user",))
FORMS = (
    dataclasses.replace(EXPLICIT, optional=("margin",)),
    RANKED,
    LABELLED,
    RATED,
    SCORED,
    dataclasses.replace(IMPLICIT, optional=("margin",)),
)


def sample_maker(table: Table) -> Callable[[Fields], Sequence[RewardSample]]:
    """How a row of `table` becomes samples; raises `InvalidRequest` for other columns."""
    form = choose_form(table, FORMS, "reward-model")
    ratings = Ratings(table, form.columns[-1]) if form in (RATED, SCORED) else None

    def make(row: Fields) -> list[RewardSample]:
        return [sample(row, form) if ratings is None else ratings.sample(row)]

    return make


def sample(row: Fields, form: Form) -> RewardSample:
    """One row."""
    if form is LABELLED:
        return LabelledText(
            sample_id=row.place,
            prompt=as_prompt(row["prompt"].text()),
            completion=completion_text(row["completion"].text()),
            desirable=row["label"].flag(),
        )
    if form is RANKED:
        return RankedText(
            sample_id=row.place,
            prompt=as_prompt(row["prompt"].text()),
            completions=tuple(map(completion_text, row["completions"].texts())),
        )
    [pair] = preferences(row, form)
    return PreferredText(
        sample_id=row.place,
        prompt=as_prompt(pair.prompt),
        chosen=completion_text(pair.chosen),
        rejected=completion_text(pair.rejected),
        margin=row["margin"].number() if "margin" in row else 0.0,
    )


class Ratings:
    """Ratings in standard deviations from their user's mean: people use scales differently."""

    def __init__(self, table: Table, column: str) -> None:
        """Read every rating; without a `user` column all are one user's."""
        self._column = column
        by_user: defaultdict[str, list[float]] = defaultdict(list)
        for index, row in enumerate(table.rows):
            fields = Fields(row, table.place(index))
            by_user[str(row.get("user", ""))].append(fields[column].number())
        self._scales = {user: scale_of(values) for user, values in by_user.items()}

    def sample(self, row: Fields) -> RatedText:
        """One rated answer."""
        mean, deviation = self._scales[str(row.row.get("user", ""))]
        return RatedText(
            sample_id=row.place,
            prompt=as_prompt(row["prompt"].text()),
            completion=completion_text(row["completion"].text()),
            rating=(row[self._column].number() - mean) / deviation,
        )


def scale_of(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation; 1 where all are alike."""
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
    return mean, math.sqrt(variance) or 1.0


def as_prompt(prompt: Text) -> str:
    """A prompt as the reward model reads it, here as in the service."""
    return prompt if isinstance(prompt, str) else prompt_as_text(prompt)
