"""Tasks of EleutherAI's lm-eval as suites of the gate, where that package is installed.

It loads the version's folder itself, so a task costs a load of the model and its documents' time.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneloop.errors import SettingsError
from tuneloop.learner.release.gate.suites import SuiteScores
from tuneloop.policies import WeightsKind

PREFIX = "lm-eval "
"""Begins the name of a task's suite."""


class LmEvalTasks:
    """Runs named tasks on a version's folder."""

    def __init__(
        self,
        *,
        tasks: Sequence[str],
        limit: int,
        base: Path,
        kind: WeightsKind,
        device: str,
    ) -> None:
        """Raise `SettingsError` if lm-eval is not installed, or knows no such task."""
        try:
            self._evaluator: Any = importlib.import_module("lm_eval.evaluator")
            self._models: Any = importlib.import_module("lm_eval.models.huggingface")
            manager = importlib.import_module("lm_eval.tasks").TaskManager()
        except ImportError as error:
            raise SettingsError(
                f"gate: lm_eval_tasks needs lm-eval, and {error}; "
                "`pip install 'lm-eval[hf]'`, or leave the setting empty",
                param="gate",
            ) from error
        unknown = [task for task in tasks if not manager.match_tasks([task])]
        if unknown:
            raise SettingsError(
                f"gate: lm_eval_tasks: lm-eval has no task {', '.join(unknown)}; "
                "`lm-eval ls tasks` lists them",
                param="gate",
            )
        self._tasks = list(tasks)
        self._limit = limit
        self._base = base
        self._kind = kind
        self._device = device

    def scores(self, folder: Path | None) -> SuiteScores:
        """Return the values of a version's documents by task; None is the base model. Blocks."""
        adapter = folder if folder is not None and self._kind is WeightsKind.LORA else None
        model = self._models.HFLM(
            pretrained=str(self._base if adapter is not None or folder is None else folder),
            peft=None if adapter is None else str(adapter),
            tokenizer=str(self._base),
            device=self._device,
            batch_size=8,
        )
        results = self._evaluator.simple_evaluate(
            model=model,
            tasks=self._tasks,
            limit=self._limit,
            bootstrap_iters=0,
            log_samples=True,
        )
        return {
            f"{PREFIX}{task}": values_of(samples, results["higher_is_better"].get(task) or {})
            for task, samples in results["samples"].items()
        }


def values_of(
    samples: Sequence[Mapping[str, Any]], higher_is_better: Mapping[str, bool | None]
) -> dict[str, float]:
    """Return the value of each document: its first metric that is a number, larger if better."""
    values: dict[str, float] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            value = sample[metric]
            if isinstance(value, (bool, int, float)):
                better = higher_is_better.get(metric) is not False
                # A document comes once for each filter of the task; the first one counts.
                values.setdefault(
                    f"document {sample['doc_id']}", float(value if better else -value)
                )
                break
    return values
