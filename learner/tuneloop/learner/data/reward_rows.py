"""Rows to samples of the reward model: pairs, rankings, labels, ratings."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence

from tuneloop.learner.data.fields import Fields, Form, Text, choose_form, is_missing
from tuneloop.learner.data.policy_rows import INSTRUCTED_LABELLED, LABELLED, read_completion
from tuneloop.learner.data.preferences import PAIRED, RANKED, preferences
from tuneloop.learner.data.prompt_rows import read_prompt
from tuneloop.learner.data.table import Table
from tuneloop.learner.data.tokenize import completion_text
from tuneloop.learner.ledger.queue.ratings import Ratings
from tuneloop.learner.samples import (
    LabelledText,
    PreferredText,
    RankedText,
    RatedText,
    RewardSample,
)
from tuneloop.rollouts import prompt_as_text

RATED = Form(columns=("prompt", "completion", "rating"), optional=("user",))
SCORED = Form(columns=("prompt", "completion", "score"), optional=("user",))
EXPLICIT, *OTHER_PAIRS = (
    dataclasses.replace(form, optional=(*form.optional, "margin")) for form in PAIRED
)
FORMS = (EXPLICIT, RANKED, LABELLED, INSTRUCTED_LABELLED, RATED, SCORED, *OTHER_PAIRS)


def sample_maker(table: Table) -> Callable[[Fields], Sequence[RewardSample]]:
    """Return how a row of `table` becomes samples; raises `InvalidRequest` for other columns."""
    form = choose_form(table, FORMS, "reward-model")
    rated = RatedRows(table, form.columns[-1]) if form in (RATED, SCORED) else None

    def make(row: Fields) -> list[RewardSample]:
        return [sample(row, form) if rated is None else rated.sample(row)]

    return make


def sample(row: Fields, form: Form) -> RewardSample:
    """Return the sample of a row."""
    if form in (LABELLED, INSTRUCTED_LABELLED):
        return LabelledText(
            sample_id=row.place,
            prompt=as_prompt(read_prompt(row, form)),
            completion=completion_text(read_completion(row, form), row),
            desirable=row["label"].flag(),
        )
    if form is RANKED:
        return RankedText(
            sample_id=row.place,
            prompt=as_prompt(row["prompt"].text()),
            completions=tuple(completion_text(t, row) for t in row["completions"].texts()),
        )
    [pair] = preferences(row, form)
    return PreferredText(
        sample_id=row.place,
        prompt=as_prompt(pair.prompt),
        chosen=completion_text(pair.chosen, row),
        rejected=completion_text(pair.rejected, row),
        margin=row["margin"].number() if "margin" in row else 0.0,
    )


class RatedRows:
    """Rated answers, each rating measured against its user's others."""

    def __init__(self, table: Table, column: str) -> None:
        """Read every rating; without a `user` column all are one user's."""
        self._column = column
        by_user: defaultdict[str, list[float]] = defaultdict(list)
        for index, row in enumerate(table.rows):
            fields = Fields(row, table.place(index))
            by_user[user_of(fields)].append(fields[column].number())
        self._ratings = Ratings(by_user)

    def sample(self, row: Fields) -> RatedText:
        """Return one rated answer."""
        return RatedText(
            sample_id=row.place,
            prompt=as_prompt(row["prompt"].text()),
            completion=completion_text(row["completion"].text(), row),
            rating=self._ratings.standardised(user_of(row), row[self._column].number()),
        )


def user_of(row: Fields) -> str:
    """Return who rated.

    Where a data frame has numbers for users and lacks some, it has the others as 1.0.
    """
    user = row.row.get("user")
    if is_missing(user):
        return ""
    return str(int(user) if isinstance(user, float) and user.is_integer() else user)


def as_prompt(prompt: Text) -> str:
    """Return a prompt as the reward model reads it, here as in the service."""
    return prompt if isinstance(prompt, str) else prompt_as_text(prompt)
