"""What a run does to abilities: the suite before it, every so often, and after it."""

import json
from pathlib import Path
from typing import Any

from tuneloop.learner.abilities.exam import SAMPLED_ITEMS, AbilityExam, ReferenceExaminee
from tuneloop.learner.abilities.scores import AbilityComparison, AbilityScores, compare
from tuneloop.learner.offline.run.console import Console
from tuneloop.learner.trainer import checkpoint
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.text.lines import split_lines

CLEAR_DROP = 0.02
"""A drop of the suite's value that matters, where the interval excludes 0 as well."""


class AbilityWatch:
    """Scores the policy on a suite and compares it with what it was before the run."""

    def __init__(
        self,
        exam: AbilityExam,
        trainer: PolicyTrainer,
        *,
        path: Path,
        best: Path,
        console: Console,
        every: int,
        stops: bool,
    ) -> None:
        """`every` is in steps, 0 for only before and after; `stops` ends the run after a drop.

        `path` keeps the scores, a line for each asking; `best` the last state without a drop.
        """
        self._exam = exam
        self._trainer = trainer
        self._path = path
        self._best = best
        self._console = console
        self._every = every
        self._stops = stops
        self._has_dropped = False
        self._before: AbilityScores | None = None
        self._rows: list[dict[str, Any]] = []
        self._asked_step = -1

    @property
    def ends_run(self) -> bool:
        """Whether the suite fell clearly at the last asking, and that is to end the run."""
        return self._stops and self._has_dropped

    def begin(self, step: int) -> None:
        """Score the model as it was before the run; of a resumed run, what was found then.

        What was found with another suite, or by another way of scoring, is not continued.
        """
        known = step and self._path.exists()
        lines = split_lines(self._path.read_text(encoding="utf-8")) if known else []
        self._rows = [row for row in map(json.loads, lines) if row["step"] <= step]
        if self._rows and self._rows[0]["scores"]["suite_sha256"] != self._exam.suite.sha256:
            self._rows = []
        if self._rows:
            self._before = AbilityScores.of_document(self._rows[0]["scores"])
            return
        examinee = self._trainer if step == 0 else ReferenceExaminee(self._trainer)
        self._before = self._exam.score(examinee, sampled_items=SAMPLED_ITEMS)
        self._keep(0, self._before, None)
        if self._stops and step == 0:
            self._trainer.stage_checkpoint({"step": 0})(self._best)
        value, accuracy = self._before.value, self._before.figures().get("accuracy")
        ranked = "" if accuracy is None else f", {accuracy:.0%} of choices right"
        self._console.line(f"ability suite before the run: {value:.3f}{ranked}")

    def due(self, step: int, total: int) -> bool:
        """Return whether the suite is asked after `step` steps of `total`."""
        return step >= total or bool(self._every and step % self._every == 0)

    def ask(self, step: int) -> dict[str, float]:
        """Score the current weights; return the figures to log, and warn of a clear drop."""
        if step == self._asked_step:
            return {}
        assert self._before is not None, "begin comes first"
        self._asked_step = step
        scores = self._exam.score(self._trainer, sampled_items=SAMPLED_ITEMS)
        found = compare(scores, self._before)
        self._keep(step, scores, found)
        change = found.value
        self._has_dropped = change.high < 0 and change.difference <= -CLEAR_DROP
        spelled = f"{change.difference:+.3f} ({change.low:+.3f} to {change.high:+.3f})"
        self._console.line(f"ability suite after step {step}: {scores.value:.3f}, {spelled}")
        if self._has_dropped:
            self._console.line(
                f"warning: the model is losing abilities: the suite's value changed by {spelled}; "
                "lower learning_rate, take fewer steps, or hold it closer to where it began"
            )
        elif self._stops:
            self._trainer.stage_checkpoint({"step": step})(self._best)
        figures = {f"ability_{name}": value for name, value in scores.figures().items()}
        return {**figures, "ability_change": change.difference}

    def restore_best(self) -> int:
        """Put back the last weights that had not dropped; return their step."""
        step = int(checkpoint.load(self._best).position["step"])
        self._trainer.load_checkpoint(self._best)
        return step

    def document(self) -> list[dict[str, Any]]:
        """Return each asking for the summary, without items."""
        return [
            {name: value for name, value in row.items() if name != "scores"} for row in self._rows
        ]

    def _keep(self, step: int, scores: AbilityScores, found: AbilityComparison | None) -> None:
        row = {
            "step": step,
            "figures": scores.figures(),
            "change": None if found is None else found.document(),
            "scores": scores.document(),
        }
        self._rows = [*(r for r in self._rows if r["step"] < step), row]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self._rows)
        self._path.write_text(text, encoding="utf-8")
