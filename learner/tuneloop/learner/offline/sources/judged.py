"""RLAIF: a judge's preferences between answers in the data, or of the policy itself."""

from collections.abc import Sequence
from itertools import combinations

from tuneloop.errors import InvalidRequest
from tuneloop.learner.data.fields import Fields, Text, choose_form
from tuneloop.learner.data.preferences import PAIRED, RANKED, preferences
from tuneloop.learner.data.prompt_rows import PromptRow
from tuneloop.learner.data.reward_rows import as_prompt
from tuneloop.learner.data.rows import OnLong, RowsData, convert
from tuneloop.learner.data.table import Table
from tuneloop.learner.data.tokenize import PromptTokenizer, completion_text
from tuneloop.learner.offline.sources.base import RowOrder, TrainStep
from tuneloop.learner.offline.sources.judge import Verdicts
from tuneloop.learner.offline.sources.on_policy import (
    CompletionSampler,
    SampledCompletion,
    completion_figures,
    mean,
)
from tuneloop.learner.samples import Objective, PairSample, PreferredText
from tuneloop.reward.scorers.judge import JudgePreference

FORMS = (*PAIRED, RANKED)
"""Rows with answers to judge; which of them was preferred in the data is not looked at."""


def has_answers(table: Table) -> bool:
    """Return whether the rows hold answers to judge, not prompts alone."""
    columns = set(table.columns)
    return any(columns.issuperset(form.columns) for form in FORMS)


def judged_pairs(
    table: Table, verdicts: Verdicts, tokens: PromptTokenizer | None, on_long: OnLong
) -> RowsData:
    """Return the judge's pairs of the answers in each row; ties are left out.

    With `tokens` samples of the policy (dpo), else of the reward model. Raises `InvalidRequest`
    naming the row at fault, `Unavailable` where the judge is.
    """
    form = choose_form(table, FORMS, "a judge")
    rows = [Fields(row, table.place(i)) for i, row in enumerate(table.rows)]
    pairs = [preferences(row, form) for row in rows]
    questions = [
        (
            as_prompt(pair.prompt),
            completion_text(pair.chosen, row),
            completion_text(pair.rejected, row),
        )
        for row, of_row in zip(rows, pairs, strict=True)
        for pair in of_row
    ]
    answers = verdicts.ask(questions)
    if all(preference.chosen is None for preference in answers):
        raise InvalidRequest(f"{table.name}: the judge prefers no answer to another", param="judge")
    asked = iter(answers)
    found = {
        row.place: [(pair.prompt, pair.chosen, pair.rejected, next(asked)) for pair in of_row]
        for row, of_row in zip(rows, pairs, strict=True)
    }

    def make(row: Fields) -> Sequence[PairSample | PreferredText]:
        return [
            judged_sample(f"{row.place}, pair {i + 1}", row, judged, tokens)
            for i, judged in enumerate(found[row.place])
            if judged[3].chosen is not None
        ]

    return convert(table, make, on_long)


def judged_sample(
    name: str,
    row: Fields,
    judged: tuple[Text, Text, Text, JudgePreference],
    tokens: PromptTokenizer | None,
) -> PairSample | PreferredText:
    """Return the sample of a decided pair."""
    prompt, a, b, preference = judged
    chosen, rejected = (a, b) if preference.chosen == "a" else (b, a)
    if tokens is None:
        return PreferredText(
            sample_id=name,
            prompt=as_prompt(prompt),
            chosen=completion_text(chosen, row),
            rejected=completion_text(rejected, row),
        )
    asked = tokens.asked(prompt, row)
    return PairSample(
        sample_id=name,
        chosen=tokens.sequence(asked, chosen, row),
        rejected=tokens.sequence(asked, rejected, row),
        flip_rate=preference.flip_rate,
    )


class JudgedSource:
    """DPO on completions of the policy itself, compared by a judge.

    Guo et al. 2024, https://arxiv.org/abs/2402.04792, section 3.
    """

    def __init__(
        self,
        objective: Objective,
        rows: Sequence[PromptRow],
        order: RowOrder,
        *,
        sampler: CompletionSampler,
        verdicts: Verdicts,
        samples_per_prompt: int,
        temperature: float,
    ) -> None:
        self._objective = objective
        self._rows = rows
        self._order = order
        self._sampler = sampler
        self._verdicts = verdicts
        self._samples_per_prompt = samples_per_prompt
        self._temperature = temperature

    @property
    def steps(self) -> int:
        """See `TrainSource.steps`."""
        return self._order.steps

    def train_step(self, step: int) -> TrainStep | None:
        """See `TrainSource.train_step`."""
        if step >= self.steps:
            return None
        rows = [self._rows[i] for i in self._order.rows(step)]
        completions = self._sampler.sample(rows, f"step {step}")
        size = self._samples_per_prompt
        pairs = [
            pair
            for start in range(0, len(completions), size)
            for pair in combinations(completions[start : start + size], 2)
            if all(completion.has_answer for completion in pair)
        ]
        questions = [(a.row.asked.text, a.sampled.text, b.sampled.text) for a, b in pairs]
        found = self._verdicts.ask(questions)
        samples = [
            self._sample(a, b, preference)
            for (a, b), preference in zip(pairs, found, strict=True)
            if preference.chosen is not None
        ]
        figures = {**completion_figures(completions, [None] * len(completions))}
        figures.pop("unscored_fraction")
        figures["decided_fraction"] = len(samples) / max(1, len(pairs))
        if samples:
            figures["judge_confidence"] = mean([p.confidence for p in found if p.chosen])
        return TrainStep(
            samples={self._objective: samples},
            epoch=(step + 1) / self._order.steps_per_epoch,
            metrics=figures,
        )

    def _sample(
        self, a: SampledCompletion, b: SampledCompletion, preference: JudgePreference
    ) -> PairSample:
        chosen, rejected = (a, b) if preference.chosen == "a" else (b, a)
        return PairSample(
            sample_id=f"{a.name} and {b.name}",
            chosen=chosen.sequence(self._temperature),
            rejected=rejected.sequence(self._temperature),
            flip_rate=preference.flip_rate,
            weight=2.0 / (self._samples_per_prompt * (self._samples_per_prompt - 1)),
        )

    def due(self, step: int) -> bool:
        """See `TrainSource.due`."""
        return False

    def resume(self, step: int) -> None:
        """See `TrainSource.resume`: its number, the weights and the verdicts decide a step."""
