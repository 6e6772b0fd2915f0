"""How far the policy moves for what was said, and what it costs.

    python -m benchmarks.evidence [--only NAME …] [--before FOLDER] [--seeds N]

The users of a small service judge fresh answers of SmolLM2 through the learner's own ledger,
batches and trainer, with the service's default settings. Some say nothing at all (coin flips), some
only yes or only no, some have a taste: answers that end within twelve tokens. Their thumbs come
sixteen at a time, or four, or one by one, and in one run a fifth of them says the opposite. Each
run ends with three figures: the KL divergence to the base model per token, with fresh samples on
questions nobody judged; the ability suite's difference to the base, item by item; the taste on
fresh questions.

With more than one seed, what adversaries cost is compared seed by seed, after as many honest
thumbs: the taste of the last version on fresh questions, and of the answers that users got in the
last half of a run, whoever judged them.

`--before` is a checkout of an earlier commit, whose code learns the same taste with the same seeds
and questions. Runs take one core each, as many at a time as there are cores. Finished ones are kept
in build/evidence/, and an interrupted benchmark resumes from there. Writes evidence.json, .md and
.png into benchmarks/results/.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import chain, cycle
from itertools import count as count_from
from pathlib import Path
from typing import Any, Literal

from benchmarks.quality_live import POLICY, START, USERS, rollout_of, thumb_on
from examples.demo.prompts import questions as demo_questions
from examples.pipeline.__main__ import questions as plain_questions
from tuneloop.generation.prompts import Tokenization
from tuneloop.learner.batching.batcher import PolicyBatcher
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.samples import TokenSequence
from tuneloop.learner.settings import LearnerSettings
from tuneloop.learner.training_run import TrainingRun
from tuneloop.policies import WeightsKind
from tuneloop.rollouts import ChatMessage, Prompt

MODEL = Path.home() / ".cache/tuneloop/models/smollm2-135m-instruct"
BUILD = Path("build/evidence")
RESULTS = Path(__file__).parent / "results"
MAX_TOKENS, SHORT = 24, 12
ASKED = 8
"""Questions asked at a time, at least: a quiet service answers some before the next thumb."""
TRIES = 3
"""Answers to each question that the taste is measured on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Who says what, and how fast."""

    name: str
    says: Literal["coin", "up", "down", "taste"]
    rounds: int
    at_once: int = 16
    """Thumbs that come together."""
    adversaries: float = 0.0
    """Share of the users who say the opposite."""
    before: bool = False
    """Whether the code of the commit before learns."""
    measured_at: int | None = None
    """Thumbs after which it is measured for the first time; None: at its end alone."""
    seed: int = 0

    @property
    def thumbs(self) -> int:
        """Thumbs in all."""
        return self.rounds * self.at_once

    @property
    def measured_after(self) -> tuple[int, ...]:
        """Thumbs after which it is measured."""
        first = () if self.measured_at is None else (self.measured_at,)
        return (*first, self.thumbs)


HONEST = Scenario(name="taste, busy", says="taste", rounds=24, measured_at=256)
# As many honest thumbs as without adversaries.
OPPOSED = Scenario(name="taste, 20 % adversaries", says="taste", rounds=30, adversaries=0.2)
SCENARIOS = (
    Scenario(name="coin flips, busy", says="coin", rounds=6),
    Scenario(name="coin flips, quiet", says="coin", rounds=96, at_once=1),
    HONEST,
    Scenario(name="taste, busy, before", says="taste", rounds=16, before=True),
    Scenario(name="taste, quiet", says="taste", rounds=96, at_once=4),
    OPPOSED,
    Scenario(name="only down", says="down", rounds=23),
    Scenario(name="only up", says="up", rounds=23),
)


MOST_SEEDS = 16


def with_seeds(scenarios: Sequence[Scenario], seeds: int) -> list[Scenario]:
    """Return each scenario once for each seed; the first is seed 0 and has the plain name."""
    return [
        replace(
            scenario, seed=seed, name=f"{scenario.name}, seed {seed}" if seed else scenario.name
        )
        for scenario in scenarios
        for seed in range(seeds)
    ]


def asked() -> tuple[list[str], list[str], list[str]]:
    """Return questions to learn from, to measure KL on, and to measure the taste on."""
    plain = [question.text for question in plain_questions()]
    random.Random(1).shuffle(plain)
    return plain[52:], [*plain[40:52], *demo_questions(7)[1][:12]], plain[:40]


def settings_of(folder: Path, scenario: Scenario) -> LearnerSettings:
    """Return the service's defaults, and what the scenario says, for a learner in `folder`."""
    options: dict[str, Any] = {
        "model": MODEL,
        "weights_uri": str(folder),
        "signing_key_file": folder / "private.pem",
        "verify_key_file": folder / "public.pem",
        "data_dir": folder,
        "weights_kind": WeightsKind.LORA,
        "policy_gradient": "off",
        "seed": scenario.seed,
    }
    return LearnerSettings(**options)


def learn(scenario: Scenario, folder: Path) -> None:
    """Serve, take thumbs into the ledger, learn from its batches; save weights to measure."""
    from tuneloop.learner.trainer.policy import PolicyTrainer

    try:
        from tuneloop.learner.models.decoding.sampling import Sampler
    except ImportError:  # Where an earlier commit has it.
        from tuneloop.learner.models.sampling import Sampler  # type: ignore[import-not-found]

    settings = settings_of(folder, scenario)
    database = Database.at(folder / "ledger.db")
    clock = count_from(START.timestamp(), 100.0)
    training_run = TrainingRun(
        model="policy",
        policy=POLICY,
        trainer=PolicyTrainer(MODEL, settings.trainer(), base_model="smollm2"),
        database=database,
        checkpoints=folder / "checkpoints",
        keep_checkpoints=2,
    )
    training_run.restore()
    batcher = PolicyBatcher(database, settings, clock=lambda: float(next(clock)))
    tokenization = Tokenization(MODEL)
    asked_at_once = max(ASKED, scenario.at_once)
    sampler = Sampler(
        tokenization, temperature=1.0, max_tokens=MAX_TOKENS, batch_size=asked_at_once
    )
    choose, count = random.Random(scenario.seed), 0
    learned, _, _ = asked()
    trainer: Any = training_run.trainer
    liked: list[bool] = []
    steps = 0
    for number in range(scenario.thumbs // asked_at_once):
        questions = [choose.choice(learned) for _ in range(asked_at_once)]
        names = [f"{scenario.seed}-{number}-{i}" for i in range(asked_at_once)]
        prompts = [ids_of(tokenization, question) for question in questions]
        with merged(trainer.model):
            sampled = sampler.sample(trainer.model.module, prompts, names)
        for name, question, prompt, answer in zip(names, questions, prompts, sampled, strict=True):
            user, count = choose.randrange(USERS), count + 1
            rollout = rollout_of(
                sequence_of(prompt, answer),
                name,
                f"u{user}",
                0,
                texts=(question, answer.text),
                stopped=answer.stopped,
            )
            liked.append(is_liked(answer))
            up = says(scenario, liked[-1], user, choose)
            thumb = thumb_on(rollout, up, count)
            recorder.record_rollouts(database, [rollout], START.timestamp())
            recorder.record_feedback(database, [(thumb, count)], START.timestamp())
            if count % scenario.at_once == 0:
                while (batch := training_run.next_batch(batcher)) is not None:
                    training_run.train(batch)
                    steps += 1
                    if steps % settings.checkpoint_every_steps == 0:
                        training_run.commit()
            if count in scenario.measured_after:
                weights = folder / f"weights-{count}"
                weights.mkdir(exist_ok=True)
                trainer.save_weights(weights)
    (folder / "liked.json").write_text(json.dumps(liked))
    database.close()


def merged(model: Any) -> AbstractContextManager[None]:
    """Sample with the adapter added to the weights, which an earlier commit cannot do."""
    found: AbstractContextManager[None] = getattr(model, "merged", nullcontext)()
    return found


def is_liked(answer: Any) -> bool:
    """Return whether honest users like a sampled answer."""
    return bool(answer.stopped and len(answer.token_ids) <= SHORT)


def says(scenario: Scenario, liked: bool, user: int, choose: random.Random) -> bool:
    """Return whether a user presses the thumb up on an answer that honest users like, or do not."""
    if scenario.says == "coin":
        return choose.random() < 0.5
    if scenario.says != "taste":
        return scenario.says == "up"
    return liked != (user < scenario.adversaries * USERS)


def sequence_of(prompt: Sequence[int], answer: Any) -> TokenSequence:
    """Return a sampled answer as the learner takes it."""
    return TokenSequence(
        prompt_token_ids=tuple(prompt),
        completion_token_ids=answer.token_ids,
        generation_logprobs=answer.logprobs,
        temperature=1.0,
    )


def ids_of(tokenization: Tokenization, question: str) -> tuple[int, ...]:
    """Return a question as the model gets it."""
    prompt = Prompt(messages=(ChatMessage(role="user", content=question),))
    return tokenization.tokenize(prompt).token_ids


def measure(weights: Path | None) -> dict[str, Any]:
    """Return the figures of a version; of the base model without `weights`."""
    import torch

    from tuneloop.learner.abilities.exam import AbilityExam
    from tuneloop.learner.abilities.suite import load_suite
    from tuneloop.learner.models.batch import collate
    from tuneloop.learner.models.decoding.sampling import Sampler
    from tuneloop.learner.trainer.policy import PolicyTrainer
    from tuneloop.learner.trainer.settings import TrainerSettings

    trainer = PolicyTrainer(MODEL, TrainerSettings())
    if weights is not None:
        trainer.load_weights(weights)
    tokenization = Tokenization(MODEL)
    sampler = Sampler(tokenization, temperature=1.0, max_tokens=MAX_TOKENS, batch_size=16)
    _, frozen, fresh = asked()

    def sample(questions: Sequence[str], seed: str) -> tuple[list[tuple[int, ...]], list[Any]]:
        prompts = [ids_of(tokenization, question) for question in questions]
        names = [f"{seed}-{i}" for i in range(len(prompts))]
        with trainer.model.merged():
            return prompts, sampler.sample(trainer.model.module, prompts, names)

    own = [sequence_of(*pair) for pair in zip(*sample(frozen, "kl"), strict=True)]
    batch = collate(own, trainer.model.device)
    with torch.no_grad():
        total = float(trainer.model.logprobs_and_divergences(batch)[1].sum())
    _, answers = sample([question for question in fresh for _ in range(TRIES)], "taste")
    exam = AbilityExam(load_suite().part(64), MODEL)
    with trainer.model.merged():
        abilities = exam.score(trainer, sampled_items=24)
    return {
        "kl": total / batch.tokens,
        "taste": [int(is_liked(answer)) for answer in answers],
        "abilities": abilities.document(),
        "answers": [a.text for a in answers[: 6 * TRIES : TRIES]],
    }


def measure_base() -> dict[str, Any]:
    """Return the base model's figures, measured once."""
    file = BUILD / "base.json"
    if not file.exists():
        call("--measure", "base", file)
    found: dict[str, Any] = read(file)
    return found | {"name": "base", "thumbs": 0, "liked": []}


def folder_of(name: str) -> Path:
    """Return where a run's files are."""
    return BUILD / name.replace(" ", "-").replace(",", "").replace("%", "percent")


def run(scenario: Scenario, before: Path | None) -> list[dict[str, Any]]:
    """Return a scenario's figures, each time it is measured, from an earlier run if there was one.

    Empty for the commit before where there is no checkout of it.
    """
    folder = folder_of(scenario.name)
    done = folder / "figures.json"
    if not done.exists():
        if scenario.before and before is None:
            return []
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("ledger.db*"):
            left.unlink()
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        started = time.monotonic()
        call("--learn", scenario.name, folder, checkout=before if scenario.before else None)
        seconds, liked = time.monotonic() - started, read(folder / "liked.json")
        found = []
        for thumbs in scenario.measured_after:
            measured = folder / f"measured-{thumbs}.json"
            call("--measure", folder / f"weights-{thumbs}", measured)
            found.append({**read(measured), "thumbs": thumbs, "liked": liked[:thumbs]})
        found[-1]["learning_seconds"] = seconds
        done.write_text(json.dumps(found))
    return [asdict(scenario) | figures for figures in read(done)]


def read(path: Path) -> Any:
    """Return a JSON file's content."""
    return json.loads(path.read_text())


def call(*arguments: object, checkout: Path | None = None) -> None:
    """Run a part of this benchmark on one core, by the code of a checkout where one is given."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if checkout is not None:
        parts = [str(checkout.resolve() / part) for part in ("proto", "services", "learner")]
        environment["PYTHONPATH"] = os.pathsep.join(parts)
    command = [sys.executable, "-m", "benchmarks.evidence", *map(str, arguments)]
    subprocess.run(command, check=True, env=environment)


def row_of(found: dict[str, Any], base: dict[str, Any]) -> str:
    """Return a run's row of the table."""
    from tuneloop.learner.abilities.scores import AbilityScores, compare
    from tuneloop.learner.stats.intervals import mean_of

    scores = [AbilityScores.of_document(figures["abilities"]) for figures in (found, base)]
    difference = compare(scores[0], scores[1]).value
    fresh = found["taste"]
    taste = mean_of([sum(fresh[i : i + TRIES]) / TRIES for i in range(0, len(fresh), TRIES)])
    return (
        f"| {found['name']} | {found['thumbs']} | {found['kl']:.4f} "
        f"| {difference.difference:+.3f} ({difference.low:+.3f} to {difference.high:+.3f}) "
        f"| {taste.value:.2f} ({taste.low:.2f} to {taste.high:.2f}) "
        f"| {' '.join(f'{share:.2f}' for share in shares_liked(found['liked'], 4))} |"
    )


def cost_of_adversaries(runs: Sequence[dict[str, Any]]) -> str:
    """Return what adversaries change in the taste, over seeds; empty with fewer than two seeds."""
    from tuneloop.learner.stats.paired import paired_difference

    def by_seed(scenario: Scenario) -> dict[int, tuple[float, float]]:
        found = [
            run
            for run in runs
            if run["name"].startswith(scenario.name)
            and not run["before"]
            and run["thumbs"] == scenario.thumbs
        ]
        return {
            run["seed"]: (sum(run["taste"]) / len(run["taste"]), shares_liked(run["liked"], 2)[-1])
            for run in found
        }

    without, opposed = by_seed(HONEST), by_seed(OPPOSED)
    seeds = sorted(without.keys() & opposed.keys())
    lines = []
    for i, what in enumerate(("the last version on fresh questions", "what users got, last half")):
        found = paired_difference(
            [opposed[s][i] for s in seeds], [without[s][i] for s in seeds], 0.95
        )
        if found is not None:
            lines.append(
                f"Taste with adversaries minus without, {what}, {len(seeds)} seeds: "
                f"{found.difference:+.3f} ({found.low:+.3f} to {found.high:+.3f})\n"
            )
    return "".join(f"\n{line}" for line in lines)


def shares_liked(liked: Sequence[bool], parts: int) -> list[float]:
    """Return the share of answers that honest users like in each part of a run."""
    size = len(liked) // parts
    return [sum(liked[i * size : (i + 1) * size]) / size for i in range(parts * bool(size))]


def draw(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw KL against taste, a point for each run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    for found, mark in zip(runs, cycle("osD^vPX"), strict=False):
        taste = sum(found["taste"]) / len(found["taste"])
        name = f"{found['name']}, {found['thumbs']} thumbs"
        axes.scatter([found["kl"]], [taste], marker=mark, label=name)
    figure.legend(loc="outside right upper", fontsize=8)
    axes.set_xlabel("KL to the base model, nats per token")
    axes.set_ylabel("answers within twelve tokens")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Run what was not run yet, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="names of runs")
    parser.add_argument("--before", type=Path, help="checkout of an earlier commit")
    parser.add_argument(
        "--seeds", type=int, default=1, help="of the taste with adversaries and without, 1 to 16"
    )
    parser.add_argument("--learn", nargs=2, metavar=("NAME", "FOLDER"), help="for its own use")
    parser.add_argument("--measure", nargs=2, metavar=("WEIGHTS", "FILE"), help="for its own use")
    arguments = parser.parse_args()
    by_name = {scenario.name: scenario for scenario in with_seeds(SCENARIOS, MOST_SEEDS)}
    if arguments.learn:
        learn(by_name[arguments.learn[0]], Path(arguments.learn[1]))
        return
    if arguments.measure:
        weights, file = arguments.measure
        Path(file).write_text(json.dumps(measure(Path(weights) if weights != "base" else None)))
        return
    BUILD.mkdir(parents=True, exist_ok=True)
    wanted = [s for s in SCENARIOS if not arguments.only or s.name in arguments.only]
    several = with_seeds(wanted, min(arguments.seeds, MOST_SEEDS))
    compared = tuple(f"{scenario.name}, seed" for scenario in (HONEST, OPPOSED))
    chosen = [s for s in several if s.seed == 0 or s.name.startswith(compared)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        # One by one they take three times as long.
        longest_first = sorted(chosen, key=lambda s: -s.thumbs * (3 if s.at_once == 1 else 1))
        running = {s.name: pool.submit(run, s, arguments.before) for s in longest_first}
        measuring = pool.submit(measure_base)
        found = [running[scenario.name].result() for scenario in chosen]
        base = measuring.result()
    runs = [base, *chain.from_iterable(found)]
    head = "| run | thumbs | KL per token | abilities, minus base's | taste | liked by fourth |"
    rows = [
        head,
        "| --- | ---: | ---: | --- | --- | --- |",
        *(row_of(figures, base) for figures in runs),
    ]
    table = "\n".join(rows) + "\n" + cost_of_adversaries(runs[1:])
    print(table)
    (RESULTS / "evidence.md").write_text(table.rstrip() + "\n")
    lines = ",\n".join(map(json.dumps, runs))
    (RESULTS / "evidence.json").write_text(f"[\n{lines}\n]\n")
    draw(runs, RESULTS / "evidence.png")


if __name__ == "__main__":
    main()
