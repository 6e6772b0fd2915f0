"""Score the suites while a version is saved, by the trainer's own weights: no sampling service.

Every item is scored by teacher forcing. A part of the items, the same for every version, is also
answered greedily, since a model may rank the right answer first and say something else, or nothing.
On those answers, fresh ones to prompts that stay the same, the KL to version 0 is measured as well.
Version 0 is scored before the trainer has changed, and later on what it lacks.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tuneloop.errors import TuneloopError
from tuneloop.learner import metrics
from tuneloop.learner.abilities.exam import (
    AbilityExam,
    Examinee,
    HasReference,
    ItemAnswer,
    ReferenceExaminee,
)
from tuneloop.learner.abilities.suite import AbilityItem
from tuneloop.learner.release.gate.suites import KeptScores, SuiteScores
from tuneloop.learner.samples import GreedyPrompt, SampledAnswer

if TYPE_CHECKING:
    from tuneloop.learner.release.gate.lm_eval import LmEvalTasks

logger = logging.getLogger("tuneloop.learner.release")

ANSWERED_ITEMS = 16
"""Items that a version answers greedily: with half of them right, as of the base model on the
built-in suite, a version that answers nothing, or something else, falls beyond every margin."""
ANSWER_TOKENS = 16
"""Tokens of such an answer: most of what is right is said by then."""
ANSWERS = " (answers)"
"""Ends the name of the suite of greedy answers: right is 1, wrong is 0."""


class ScoredTrainer(Examinee, HasReference, Protocol):
    """The policy's trainer."""


class SuiteScorer:
    """Scores each version, and version 0, on the suites."""

    def __init__(
        self,
        *,
        exams: Mapping[str, AbilityExam],
        trainer: ScoredTrainer,
        kept: KeptScores,
        lm_eval: "LmEvalTasks | None" = None,
    ) -> None:
        """`exams` are the suites by name."""
        self._exams = exams
        self._trainer = trainer
        self._kept = kept
        self._lm_eval = lm_eval
        self._names = {
            item.id: f"{item.kind}: {_question(item)} [{item.id[:6]}]"
            for exam in exams.values()
            for item in exam.suite.items
        }

    def score_base(self) -> None:
        """Score version 0 on the items it lacks. Call this before a checkpoint is restored.

        The trainer still is version 0 then. Blocks, in the trainer's thread.
        """
        known = dict(self._kept.of_version(0) or {})
        lacking = {
            name: exam
            for name, exam in self._exams.items()
            if not all(self._names[item.id] in known.get(name, {}) for item in exam.suite.items)
        }
        try:
            for name, exam in lacking.items():
                known[name] = self._forced(exam, self._trainer)
        except (RuntimeError, ValueError, TuneloopError) as error:
            logger.error("version 0 could not be scored on the suites: %s", error)
            return
        if lacking:
            self._kept.save(0, known)

    @property
    def prompts(self) -> list[GreedyPrompt]:
        """What versions answer greedily."""
        return list(chain.from_iterable(self._prompts_by_suite().values()))

    def _prompts_by_suite(self) -> dict[str, list[GreedyPrompt]]:
        return {
            name: exam.prompts(ANSWERED_ITEMS, ANSWER_TOKENS, are_measured=True)
            for name, exam in self._exams.items()
        }

    def save_scores(self, version: int, folder: Path, to_prompts: Sequence[SampledAnswer]) -> None:
        """Save what the trainer's weights score, as those of `version`, which `folder` holds.

        They have answered `prompts`. Blocks, in the trainer's thread. A version that could not be
        scored is published all the same, and the gate holds it.
        """
        try:
            given = iter(to_prompts)
            answers = {
                name: self._exams[name].read(list(islice(given, len(asked))), ANSWERED_ITEMS)
                for name, asked in self._prompts_by_suite().items()
            }
            scores = self._forced_scores(self._trainer) | self._rights(answers)
            divergences = [d for a in chain(*answers.values()) for d in a.divergences]
            kl = math.fsum(divergences) / len(divergences) if divergences else None
            if self._lm_eval is not None:
                scores |= self._lm_eval.scores(folder)
            self._complete_base(scores)
            self._kept.save(version, scores, kl)
            if kl is not None:
                metrics.suite_kl.set(kl)
        except (RuntimeError, ValueError, TuneloopError) as error:
            logger.error("version %d could not be scored on the suites: %s", version, error)

    def _complete_base(self, scores: SuiteScores) -> None:
        """Score version 0 on whatever of `scores` it has not been scored on yet."""
        known = {name: dict(values) for name, values in (self._kept.of_version(0) or {}).items()}
        lacking = {
            name
            for name, values in scores.items()
            if not values.keys() <= known.get(name, {}).keys()
        }
        if not lacking:
            return
        base = ReferenceExaminee(self._trainer)
        answers = {
            name: exam.ask(base, ANSWERED_ITEMS, ANSWER_TOKENS)
            for name, exam in self._exams.items()
        }
        found: dict[str, Mapping[str, float]] = dict(self._rights(answers))
        if lacking & self._exams.keys():
            found |= self._forced_scores(base)
        if self._lm_eval is not None and not lacking <= found.keys():
            found |= self._lm_eval.scores(None)
        for name in lacking:
            known[name] = {**known.get(name, {}), **found[name]}
        self._kept.save(0, known)

    def _forced_scores(self, examinee: Examinee) -> dict[str, Mapping[str, float]]:
        """Return the values of every suite's items by teacher forcing."""
        return {name: self._forced(exam, examinee) for name, exam in self._exams.items()}

    def _forced(self, exam: AbilityExam, examinee: Examinee) -> dict[str, float]:
        scores = exam.score(examinee, sampled_items=0)
        return {self._names[item.id]: item.value(sampled=False) for item in scores.items}

    def _rights(self, answers: Mapping[str, Sequence[ItemAnswer]]) -> dict[str, dict[str, float]]:
        """Return the values of the suites of answers, without those that ask for none."""
        return {
            name + ANSWERS: {self._names[a.item.id]: float(a.is_right) for a in given}
            for name, given in answers.items()
            if given
        }


def _question(item: AbilityItem) -> str:
    """Return the beginning of what an item asks."""
    text = item.prompt if isinstance(item.prompt, str) else item.prompt[-1].content
    short = " ".join(text.split())
    return short if len(short) <= 48 else f"{short[:47]}…"
