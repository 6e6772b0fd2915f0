"""What users' words teach beside their thumbs: the hidden taste, by the number of judgements.

    python -m benchmarks.words [--quick] [--only NAME …] [--seeds N]

Users of a small service ask SmolLM2 questions, and like answers that end within twelve tokens. In
one run each answer gets a thumb; in another, users say what they do not like in words of their own
("too long", "less talk please") and say nothing else. The learner's own ledger, batches and trainer
learn from it with the service's default settings. A judgement is a thumb or a comment. In further
runs users give a thumb or a comment by chance, the teacher is the policy as it is, and comments
have nothing to do with the taste.

After each so many judgements the taste is measured on fresh questions, and the KL divergence to the
base model per token on questions that nobody judged; at the end the ability suite's difference to
the base. What users said of the last answers, and what is answered then, is kept to be read.

Runs take one core each, as many at a time as there are cores. Finished ones are kept in
build/words/, and an interrupted benchmark resumes from there. `--quick` is two runs of a few steps,
without the ability suite. Writes words.json, .md and .png into benchmarks/results/ (`--quick`:
build/words/).
"""

import argparse
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.evidence import (
    MAX_TOKENS,
    MODEL,
    SHORT,
    Scenario,
    asked,
    ids_of,
    sequence_of,
    settings_of,
)
from benchmarks.quality_live import POLICY, START, USERS, rollout_of, thumb_on
from tuneloop.feedback import Comment, Feedback
from tuneloop.generation.prompts import Tokenization
from tuneloop.learner.batching.batcher import PolicyBatcher
from tuneloop.learner.data.tokenize import EditTokenizer
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.events.sample_rules import SampleRules
from tuneloop.learner.settings import LearnerSettings
from tuneloop.learner.training_run import TrainingRun

BUILD = Path("build/words")
RESULTS = Path(__file__).parent / "results"
AT_ONCE = 16
"""Questions asked at a time, by users who do not wait for each other."""
POINTS = (0, 32, 64, 128)
"""Judgements after which the taste is measured."""
PATIENCE = 4
"""Answers to a judgement, in all, after which a run ends: who is content says nothing."""
TRIES = 2
"""Answers to each fresh question."""

COMPLAINTS = (
    "too long",
    "Too long. One short sentence, please.",
    "shorter",
    "way too wordy",
    "Please be brief.",
    "I only wanted the answer, not an essay.",
    "less talk please",
    "Can you say that in a few words?",
    "you never get to the point",
    "tl;dr",
)
UNRELATED = (
    "I asked this yesterday too",
    "what a nice day",
    "my cat is asleep on the keyboard",
    "hello from Rome",
    "testing testing",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Who says what, and who is shown it."""

    name: str
    says: Literal["thumbs", "comments", "both", "unrelated"]
    teacher: Literal["base", "live"] = "base"
    judgements: int = 128
    seed: int = 0
    quick: bool = False

    @property
    def folder(self) -> Path:
        """Where its files are."""
        name = f"{self.name.replace(', ', '-').replace(' ', '-')}-{self.seed}"
        return BUILD / ("quick" if self.quick else "full") / name

    @property
    def points(self) -> list[int]:
        """When it is measured."""
        return [point for point in POINTS if point <= self.judgements]


RUNS = (
    Run(name="thumbs", says="thumbs"),
    Run(name="comments", says="comments"),
    Run(name="comments, live teacher", says="comments", teacher="live"),
    Run(name="thumbs and comments", says="both"),
    Run(name="unrelated comments", says="unrelated", judgements=64),
)
QUICK = tuple(replace(run, judgements=32, quick=True) for run in RUNS[:2])


def judge(run: Run, answer: Any, choose: random.Random) -> Comment | bool | None:
    """Return what a user says of an answer: a comment, a thumb, or nothing."""
    liked = answer.stopped and len(answer.token_ids) <= SHORT
    by_thumb = run.says == "thumbs" or (run.says == "both" and choose.random() < 0.5)
    if by_thumb:
        return bool(liked)
    if run.says == "unrelated":
        return Comment(text=choose.choice(UNRELATED))
    return None if liked else Comment(text=choose.choice(COMPLAINTS))


def learner_settings(run: Run) -> LearnerSettings:
    """Return the service's defaults, with comments that train."""
    scenario = Scenario(name=run.name, says="taste", rounds=1, seed=run.seed)
    plain = settings_of(run.folder, scenario).model_dump(exclude_unset=True)
    extra = {"comments": "train", "trainer_settings": {"sdft_teacher": run.teacher}}
    return LearnerSettings(**{**plain, **extra})


class Service:
    """A policy that answers and learns in one process."""

    def __init__(self, run: Run) -> None:
        from tuneloop.learner.models.decoding.sampling import Sampler
        from tuneloop.learner.trainer.policy import PolicyTrainer

        self.run, settings = run, learner_settings(run)
        self.database = Database.at(run.folder / "ledger.db")
        self.trainer = PolicyTrainer(MODEL, settings.trainer(), base_model="smollm2")
        self.training_run = TrainingRun(
            model="policy",
            policy=POLICY,
            trainer=self.trainer,
            database=self.database,
            checkpoints=run.folder / "checkpoints",
            keep_checkpoints=2,
        )
        self.training_run.restore()
        clock = itertools.count(START.timestamp(), 100.0)
        self.batcher = PolicyBatcher(
            self.database,
            settings,
            edit_tokens=EditTokenizer(MODEL),
            clock=lambda: float(next(clock)),
        )
        self.tokenization = Tokenization(MODEL)
        self._sampler = Sampler(
            self.tokenization, temperature=1.0, max_tokens=MAX_TOKENS, batch_size=AT_ONCE
        )
        self._choose = random.Random(run.seed)
        self.given = self.answered = 0
        self.said: list[dict[str, str]] = []

    def answers(self, questions: Sequence[str], seed: str) -> list[Any]:
        """Return a sampled answer to each question."""
        prompts = [ids_of(self.tokenization, question) for question in questions]
        names = [f"{seed}-{number}" for number in range(len(prompts))]
        return self._sampler.sample(self.trainer.model.module, prompts, names)

    def serve(self, wanted: int) -> bool:
        """Answer and learn until there are so many judgements; return whether there ever are."""
        learned, _, _ = asked()
        while self.given < wanted:
            if self.answered >= PATIENCE * self.run.judgements:
                return False
            questions = [self._choose.choice(learned) for _ in range(AT_ONCE)]
            sampled = self.answers(questions, f"{self.run.seed}-{self.answered}")
            for question, answer in zip(questions, sampled, strict=True):
                self._take(question, answer)
                self.answered += 1
                if self.given == wanted:
                    break
            while (batch := self.training_run.next_batch(self.batcher)) is not None:
                self.training_run.train(batch)
            self.training_run.commit()
        return True

    def _take(self, question: str, answer: Any) -> None:
        """Record an answer, and what its user says."""
        name, user = f"a{self.answered}", f"u{self._choose.randrange(USERS)}"
        said = judge(self.run, answer, self._choose)
        sequence = sequence_of(ids_of(self.tokenization, question), answer)
        texts = question, answer.text
        rollout = rollout_of(sequence, name, user, 0, texts=texts, stopped=answer.stopped)
        recorder.record_rollouts(self.database, [rollout], START.timestamp())
        if said is None:
            return
        self.given += 1
        event: Feedback = thumb_on(rollout, said is True, self.given)
        if isinstance(said, Comment):
            event = replace(event, judgement=said)
        recorder.record_feedback(
            self.database,
            [(event, self.given)],
            START.timestamp(),
            rules=SampleRules(comments_train=True),
        )
        spoken = said.text if isinstance(said, Comment) else "👍" if said else "👎"
        self.said.append({"question": question, "answer": answer.text, "said": spoken})

    def measure(self) -> dict[str, Any]:
        """Return the figures of the policy as it is."""
        import torch

        from tuneloop.learner.models.batch import collate

        _, frozen, fresh = asked()
        questions, tries = (fresh[:12], 1) if self.run.quick else (fresh, TRIES)
        sampled = self.answers([q for q in questions for _ in range(tries)], "taste")
        own = [
            sequence_of(ids_of(self.tokenization, question), answer)
            for question, answer in zip(frozen, self.answers(frozen, "kl"), strict=True)
        ]
        batch = collate(own, self.trainer.model.device)
        with torch.no_grad():
            total = float(self.trainer.model.logprobs_and_divergences(batch)[1].sum())
        return {
            "judgements": self.given,
            "answered": self.answered,
            "taste": [int(a.stopped and len(a.token_ids) <= SHORT) for a in sampled],
            "length": sum(len(a.token_ids) for a in sampled) / len(sampled),
            "kl": total / batch.tokens,
            "answers": [
                {"question": question, "answer": answer.text}
                for question, answer in zip(questions[:8], sampled[::tries], strict=False)
            ],
        }

    def abilities(self) -> Any:
        """Return the scores of the ability suite."""
        from tuneloop.learner.abilities.exam import AbilityExam
        from tuneloop.learner.abilities.suite import load_suite

        exam = AbilityExam(load_suite().part(64), MODEL)
        return exam.score(self.trainer, sampled_items=24).document()


def learn(run: Run) -> None:
    """Serve and learn, measuring on the way; write the figures when all is done."""
    service = Service(run)
    started = time.monotonic()
    curve = []
    for point in run.points:
        reached = service.serve(point)
        curve.append(service.measure() | {"seconds": time.monotonic() - started})
        print(f"{run.name}, seed {run.seed}: {shown(curve[-1])}", flush=True)
        if not reached:
            break
    figures = asdict(run) | {"curve": curve, "said": service.said[-12:]}
    if not run.quick:
        figures["abilities"] = service.abilities()
    service.database.close()
    (run.folder / "figures.json").write_text(json.dumps(figures, ensure_ascii=False, indent=1))


def shown(point: dict[str, Any]) -> str:
    """Return a point of a curve as a line."""
    taste = sum(point["taste"]) / len(point["taste"])
    return (
        f"{point['judgements']} judgements, taste {taste:.2f}, {point['length']:.1f} tokens, "
        f"KL {point['kl']:.3f}, {point['seconds']:.0f} s"
    )


def figures_of(run: Run) -> dict[str, Any]:
    """Return the figures of a run, from an earlier time if it was finished."""
    done = run.folder / "figures.json"
    if not done.exists():
        shutil.rmtree(run.folder, ignore_errors=True)
        run.folder.mkdir(parents=True)
        mode = ["--quick"] if run.quick else []
        subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.words", *mode),
                *("--learn", run.name, str(run.seed)),
            ],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    found: dict[str, Any] = json.loads(done.read_text())
    return found


def table_of(runs: Sequence[dict[str, Any]]) -> str:
    """Return the taste by judgements, over seeds, and what it cost."""
    points = sorted({point["judgements"] for run in runs for point in run["curve"]} & {*POINTS})
    head = f"| users say | seeds | {' | '.join(map(str, points))} | KL per token | tokens |"
    rows = [head, "| --- | ---: |" + " --- |" * (len(points) + 2)]
    for name in dict.fromkeys(run["name"] for run in runs):
        same = [run for run in runs if run["name"] == name]
        cells = [interval(tastes(same, point)) for point in points]
        last = [run["curve"][-1] for run in same]
        kl, length = ([point[figure] for point in last] for figure in ("kl", "length"))
        rows.append(
            f"| {name} | {len(same)} | {' | '.join(cells)} | {interval(kl, 3)} "
            f"| {interval(length, 1)} |"
        )
    return "\n".join(rows) + "\n"


def tastes(runs: Sequence[dict[str, Any]], judgements: int) -> list[float]:
    """Return the taste of each run after so many judgements: a run that ended early kept it."""
    found = []
    for run in runs:
        known = [point for point in run["curve"] if point["judgements"] <= judgements]
        if judgements <= run["judgements"]:
            found.append(sum(known[-1]["taste"]) / len(known[-1]["taste"]))
    return found


def interval(values: Sequence[float], digits: int = 2) -> str:
    """Return a mean over seeds with its 95 % interval."""
    from tuneloop.learner.stats.paired import paired_difference

    if not values:
        return ""
    mean = sum(values) / len(values)
    found = paired_difference(values, [0.0] * len(values), 0.95)
    if found is None:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def compared(runs: Sequence[dict[str, Any]]) -> str:
    """Return what words teach more than thumbs do, seed by seed; empty with fewer than two."""
    from tuneloop.learner.stats.paired import paired_difference

    by_seed = {
        name: {run["seed"]: run for run in runs if run["name"] == name}
        for name in ("thumbs", "comments")
    }
    seeds = sorted(by_seed["thumbs"].keys() & by_seed["comments"].keys())
    lines = []
    for judgements in POINTS[1:]:
        words, thumbs = (
            tastes([by_seed[name][seed] for seed in seeds], judgements)
            for name in ("comments", "thumbs")
        )
        found = paired_difference(words, thumbs, 0.95) if words and thumbs else None
        if found is not None:
            ends = f"{found.low:+.3f} to {found.high:+.3f}"
            lines.append(f"| {judgements} | {found.difference:+.3f} ({ends}) |")
    if not lines:
        return ""
    return (
        "\n".join(["", "| judgements | comments minus thumbs |", "| ---: | --- |", *lines]) + "\n"
    )


def ability_lines(runs: Sequence[dict[str, Any]]) -> str:
    """Return what each run did to the ability suite, compared with the base model."""
    from tuneloop.learner.abilities.scores import AbilityScores, compare

    base = BUILD / "base.json"
    if not base.exists() or not all("abilities" in run for run in runs):
        return ""
    of_base = AbilityScores.of_document(json.loads(base.read_text()))
    rows = ["", "| users say | seed | abilities, minus base's |", "| --- | ---: | --- |"]
    for run in runs:
        value = compare(AbilityScores.of_document(run["abilities"]), of_base).value
        rows.append(
            f"| {run['name']} | {run['seed']} | {value.difference:+.3f} "
            f"({value.low:+.3f} to {value.high:+.3f}) |"
        )
    return "\n".join(rows) + "\n"


def draw(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the taste against the number of judgements."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name in dict.fromkeys(run["name"] for run in runs):
        same = [run for run in runs if run["name"] == name]
        points = [point for point in POINTS if point <= same[0]["judgements"]]
        means = [sum(t) / len(t) for t in (tastes(same, point) for point in points)]
        [line] = axes.plot(points, means, label=name)
        for run in same:
            shares = [t for point in points for t in tastes([run], point)]
            axes.plot(points, shares, color=line.get_color(), alpha=0.2)
    axes.set_xlabel("judgements")
    axes.set_ylabel("answers within twelve tokens")
    axes.set_ylim(0, 1)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def score_base() -> None:
    """Score the base model on the ability suite, once."""
    if not (BUILD / "base.json").exists():
        run = replace(RUNS[0], name="base", judgements=0)
        run.folder.mkdir(parents=True, exist_ok=True)
        (BUILD / "base.json").write_text(json.dumps(Service(run).abilities()))


def main() -> None:
    """Run what was not run yet, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.words", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two short runs")
    parser.add_argument("--only", nargs="*", default=[], help="names of runs")
    parser.add_argument("--seeds", type=int, default=5, help="of each run; with --quick one")
    parser.add_argument("--learn", nargs=2, metavar=("NAME", "SEED"), help="for its own use")
    arguments = parser.parse_args()
    runs = QUICK if arguments.quick else RUNS
    if arguments.learn:
        name, seed = arguments.learn
        learn(next(replace(run, seed=int(seed)) for run in runs if run.name == name))
        return
    BUILD.mkdir(parents=True, exist_ok=True)
    seeds = 1 if arguments.quick else arguments.seeds
    wanted = [run for run in runs if not arguments.only or run.name in arguments.only]
    several = [replace(run, seed=seed) for seed in range(seeds) for run in wanted]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        found = list(pool.map(figures_of, several))
    if not arguments.quick:
        score_base()
    table = table_of(found) + compared(found) + ability_lines(found)
    print(table)
    target = BUILD if arguments.quick else RESULTS
    (target / "words.md").write_text(table)
    (target / "words.json").write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    draw(found, target / "words.png")


if __name__ == "__main__":
    main()
