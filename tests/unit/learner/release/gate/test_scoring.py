"""Suites are scored by the trainer when a version is saved; lm-eval's tasks count like suites."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tuneloop.errors import SettingsError
from tuneloop.learner.abilities.exam import AbilityExam
from tuneloop.learner.abilities.suite import load_suite
from tuneloop.learner.release.gate.lm_eval import LmEvalTasks, values_of
from tuneloop.learner.release.gate.scoring import ANSWERED_ITEMS, ANSWERS, SuiteScorer
from tuneloop.learner.release.gate.settings import GateSettings
from tuneloop.learner.release.gate.suites import KeptScores, compare_suites
from tuneloop.learner.release.gate.verdict import is_borne
from tuneloop.learner.samples import GreedyPrompt, SampledAnswer, TokenSequence
from tuneloop.policies import WeightsKind

ITEMS = [
    {"prompt": f"What is {n} plus 1?", "choices": [str(n + 1), "none"], "answer": 0, "kind": "sums"}
    for n in range(60)
]


class Trainer:
    """Every token has the same log-prob; the reference policy's is -1."""

    def __init__(self, logprob: float) -> None:
        self.logprob = logprob
        self.forced = self.reference_forced = 0
        self.fails = False

    def logprobs(self, sequences: Sequence[TokenSequence]) -> list[tuple[float, ...]]:
        if self.fails:
            raise RuntimeError("out of memory")
        self.forced += 1
        return [(self.logprob,) * len(s.completion_token_ids) for s in sequences]

    def answers(self, prompts: Sequence[GreedyPrompt]) -> list[SampledAnswer]:
        self.measured = sum(prompt.is_measured for prompt in prompts)
        each = (0.2, 0.4)
        said = SampledAnswer(text="no", token_ids=(5, 6), logprobs=(-0.1,) * 2, divergences=each)
        return [said] * len(prompts)

    def reference_logprobs(self, sequences: Sequence[TokenSequence]) -> list[tuple[float, ...]]:
        self.reference_forced += 1
        return [(-1.0,) * len(s.completion_token_ids) for s in sequences]

    def reference_answers(
        self, prompts: Sequence[Sequence[int]], max_tokens: int
    ) -> list[SampledAnswer]:
        return [SampledAnswer(text="3, 5 or 40", token_ids=(5,), logprobs=(-0.1,))] * len(prompts)


def make_scorer(tiny_policy: Path, folder: Path, trainer: Trainer) -> SuiteScorer:
    file = folder / "sums.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    exam = AbilityExam(load_suite([str(file)]), tiny_policy)
    return SuiteScorer(exams={"sums": exam}, trainer=trainer, kept=KeptScores(folder / "suites"))


def save_scores(scorer: SuiteScorer, trainer: Trainer, version: int, folder: Path) -> None:
    scorer.save_scores(version, folder, trainer.answers(scorer.prompts))


def test_a_version_and_version_0_are_scored(tiny_policy: Path, tmp_path: Path) -> None:
    trainer = Trainer(-2.0)
    scorer, kept = make_scorer(tiny_policy, tmp_path, trainer), KeptScores(tmp_path / "suites")
    save_scores(scorer, trainer, 1, tmp_path)
    scores, base = kept.of_version(1), kept.of_version(0)
    assert scores is not None
    assert base is not None
    assert list(scores) == ["sums", "sums (answers)"]
    assert scores["sums"].keys() == base["sums"].keys()
    assert len(scores["sums"]) == len(ITEMS)
    first = next(iter(scores["sums"]))
    assert first.startswith("sums: What is 0 plus 1? [")
    assert scores["sums"][first] != base["sums"][first]
    assert set(scores["sums (answers)"].values()) == {0.0}
    assert scores["sums (answers)"].keys() == base["sums (answers)"].keys()
    # Nothing of version 0 is computed twice, and every version answers the same items.
    save_scores(scorer, trainer, 2, tmp_path)
    assert (trainer.forced, trainer.reference_forced) == (2, 1)
    again = kept.of_version(2)
    assert again is not None
    assert again["sums (answers)"].keys() == base["sums (answers)"].keys()
    assert base["sums (answers)"].keys() <= base["sums"].keys()
    assert len(base["sums (answers)"]) == ANSWERED_ITEMS
    known = {f"sums: What is {n} plus 1?" for n in (2, 39, 4)}
    for item, value in base["sums (answers)"].items():
        assert value == float(item.partition(" [")[0] in known)


@pytest.mark.parametrize("answer", ["", "It's a riddle!"])
def test_a_version_that_answers_nothing_or_something_else_fails(
    tiny_policy: Path, tmp_path: Path, answer: str
) -> None:
    """It ranks as well as version 0, which has half of its answers right."""

    class Half(Trainer):
        def answers(self, prompts: Sequence[GreedyPrompt]) -> list[SampledAnswer]:
            return [SampledAnswer(text=answer, token_ids=(5,), logprobs=(-0.1,))] * len(prompts)

        def reference_answers(
            self, prompts: Sequence[Sequence[int]], max_tokens: int
        ) -> list[SampledAnswer]:
            numbers = " ".join(map(str, range(61)))
            given = [numbers if i % 2 else "" for i in range(len(prompts))]
            return [SampledAnswer(text=t, token_ids=(5,), logprobs=(-0.1,)) for t in given]

    kept = KeptScores(tmp_path / "suites")
    half = Half(-1.0)
    save_scores(make_scorer(tiny_policy, tmp_path, half), half, 1, tmp_path)
    scores, base = kept.of_version(1), kept.of_version(0)
    assert scores is not None
    assert base is not None
    settings = GateSettings()
    for found in compare_suites(scores, base, base, number=1, settings=settings):
        assert found.stable is not None
        assert found.anchor is not None
        fails = found.suite.endswith(ANSWERS)
        assert is_borne(found.stable, settings.suite_margin * found.spread) is not fails
        assert is_borne(found.anchor, settings.suite_drift * found.spread) is not fails


def test_version_0_is_scored_by_a_trainer_that_has_not_changed(
    tiny_policy: Path, tmp_path: Path
) -> None:
    trainer = Trainer(-1.0)
    scorer, kept = make_scorer(tiny_policy, tmp_path, trainer), KeptScores(tmp_path / "suites")
    scorer.score_base()
    scorer.score_base()
    assert (trainer.forced, trainer.reference_forced) == (1, 0)
    base = kept.of_version(0)
    assert base is not None
    save_scores(scorer, trainer, 1, tmp_path)
    assert trainer.reference_forced == 0
    scores, base = kept.of_version(1), kept.of_version(0)
    assert scores is not None
    assert base is not None
    assert scores["sums"] == base["sums"]
    assert scores["sums (answers)"].keys() == base["sums (answers)"].keys()


def test_a_version_that_cannot_be_scored_is_left_to_the_gate(
    tiny_policy: Path, tmp_path: Path
) -> None:
    trainer = Trainer(-2.0)
    trainer.fails = True
    save_scores(make_scorer(tiny_policy, tmp_path, trainer), trainer, 1, tmp_path)
    assert KeptScores(tmp_path / "suites").of_version(1) is None


def test_the_kl_is_measured_on_the_answers_of_the_version(
    tiny_policy: Path, tmp_path: Path
) -> None:
    trainer = Trainer(-2.0)
    scorer, kept = make_scorer(tiny_policy, tmp_path, trainer), KeptScores(tmp_path / "suites")
    scorer.score_base()
    save_scores(scorer, trainer, 1, tmp_path)
    assert trainer.measured == ANSWERED_ITEMS
    assert [kept.kl_of_version(version) for version in range(3)] == [0.0, pytest.approx(0.3), None]


def tasks(limit: int = 2) -> LmEvalTasks:
    return LmEvalTasks(
        tasks=["arc_easy"],
        limit=limit,
        base=Path("base"),
        kind=WeightsKind.LORA,
        device="cpu",
    )


def test_without_lm_eval_its_tasks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(SettingsError, match=r"pip install 'lm-eval\[hf\]'"):
        tasks()


def test_tasks_run_on_the_candidate_and_on_the_base_model(monkeypatch: pytest.MonkeyPatch) -> None:
    # lm-eval is no dependency of the project; these are the parts of its API that are used.
    models: list[dict[str, Any]] = []

    class TaskManager:
        def match_tasks(self, names: list[str]) -> list[str]:
            return [name for name in names if name == "arc_easy"]

    def simple_evaluate(**given: Any) -> dict[str, Any]:
        assert (given["tasks"], given["limit"], given["log_samples"]) == (["arc_easy"], 2, True)
        sample = {"doc_id": 0, "metrics": ["acc", "acc_norm"], "acc": 1.0, "acc_norm": 0.0}
        return {
            "samples": {"arc_easy": [sample, {**sample, "doc_id": 1, "acc": 0.0}]},
            "higher_is_better": {"arc_easy": {"acc": True, "acc_norm": True}},
        }

    for name, members in {
        "lm_eval": {},
        "lm_eval.evaluator": {"simple_evaluate": simple_evaluate},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": lambda **given: models.append(given)},
        "lm_eval.tasks": {"TaskManager": TaskManager},
    }.items():
        module = ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    expected = {"lm-eval arc_easy": {"document 0": 1.0, "document 1": 0.0}}
    assert tasks().scores(Path("version")) == expected
    assert tasks().scores(None) == expected
    assert [(m["pretrained"], m["peft"]) for m in models] == [("base", "version"), ("base", None)]
    with pytest.raises(SettingsError, match="no task mmlu"):
        LmEvalTasks(tasks=["mmlu"], limit=2, base=Path("base"), kind=WeightsKind.LORA, device="cpu")


def test_a_document_has_the_first_metric_that_is_a_number() -> None:
    samples = [
        {"doc_id": 3, "metrics": ["text", "perplexity"], "text": "a", "perplexity": 7.0},
        {"doc_id": 3, "metrics": ["perplexity"], "perplexity": 9.0},
        {"doc_id": 4, "metrics": ["acc"], "acc": True},
    ]
    found = values_of(samples, {"perplexity": False})
    assert found == {"document 3": -7.0, "document 4": 1.0}
