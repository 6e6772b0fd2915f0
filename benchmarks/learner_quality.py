"""Does it learn what people like: `python -m benchmarks.learner_quality [--quick] [--only NAME]`.

Three parts, each scored by the hidden preference of `quality_task` on fresh prompts:

`peers`   tuneloop and TRL on the same samples, DPO, KTO, GRPO, RLOO, each at the best of the same
          rates and schedules, chosen on seeds that are not among those reported; and PPO.
`thumbs`  the conditional task from thumbs alone: KTO, a reward model and GRPO together.
`live`    users with flipped thumbs, adversaries, late and rare answers, through the ledger.

Each run is appended to a file of its own as it ends; an interrupted benchmark goes on from there.
"""

import argparse
import json
import multiprocessing
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.quality_report import draw, report
from benchmarks.quality_task import Job

RESULTS = Path(__file__).parent / "results"
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SCHEDULES = ("constant", "linear")
TUNING_SEEDS = (100, 101, 102)
"""Never reported: the first chooses the finalists among all settings, the others among those."""
FINALISTS = 2
CELLS = (
    *(
        (method, side)
        for method in ("dpo", "kto", "grpo", "rloo")
        for side in ("tuneloop", "trl_tuned")
    ),
    ("ppo", "tuneloop"),
)
"""Methods and sides; TRL 1.16 has no PPO."""
RECIPES = ((1.0, 1.0), (1.0, 0.0))
"""Weights of KTO and GRPO, where there are thumbs only."""
TRAFFIC = ((0.3, 0), (0.05, 8))
"""Share of answers that get a thumb, and versions that it comes late at most."""
PARTS = ("peers", "thumbs", "live")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSize:
    """How much is run of a task of the peers."""

    steps: int
    rates: Sequence[float] = RATES
    schedules: Sequence[str] = SCHEDULES
    tuning_seeds: Sequence[int] = TUNING_SEEDS
    as_it_comes: bool = True
    """Whether TRL has a row with its defaults, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is run."""

    seeds: int = 5
    tasks: Mapping[str, TaskSize]
    some_seeds: int = 3
    """Of the parts that are slow."""
    thumbs_steps: int = 540
    live_steps: int = 32


FULL = Size(
    tasks={
        "unconditional": TaskSize(steps=40),
        # Four times the steps: fewer settings.
        "conditional": TaskSize(
            steps=160,
            rates=(1e-3, 3e-3),
            schedules=("constant",),
            as_it_comes=False,
        ),
    }
)
QUICK = Size(
    seeds=1,
    some_seeds=1,
    tasks={
        "unconditional": TaskSize(
            steps=2, rates=(3e-3,), schedules=("constant",), tuning_seeds=TUNING_SEEDS[:1]
        )
    },
    thumbs_steps=2,
    live_steps=2,
)


class Journal:
    """Finished runs, one JSON object a line; what is known is not run again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: list[Row] = []
        if path.exists():
            self.rows = [json.loads(line) for line in path.read_text().splitlines()]

    def find(self, part: str, job: Mapping[str, Any]) -> Row | None:
        """The row of a run, or None where it has not ended yet."""
        key = {"part": part, **job}
        return next((r for r in self.rows if all(r.get(k) == v for k, v in key.items())), None)

    def add(self, row: Row) -> None:
        """Keep a run."""
        self.rows.append(row)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")


class Runner:
    """Runs jobs, some at a time, in processes of one thread."""

    def __init__(self, journal: Journal, processes: int) -> None:
        self._journal = journal
        self._processes = processes

    def run(self, part: str, run: Callable[[Any], Any], jobs: Iterable[Any]) -> None:
        """Run those jobs that are not known yet."""
        wanted = [(job, asdict(job)) for job in jobs]
        missing = [job for job, key in wanted if self._journal.find(part, key) is None]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self._processes, mp_context=context) as pool:
            started = {pool.submit(run, job): job for job in missing}
            for done in as_completed(started):
                row = {"part": part, **asdict(started[done]), "curve": done.result()}
                self._journal.add(row)
                shown = {k: v for k, v in row.items() if k != "curve"}
                print(f"{row['curve'][-1][-1]:.3f}", shown, flush=True)

    def score(self, part: str, job: Any) -> float:
        """How a finished run ended."""
        row = self._journal.find(part, asdict(job))
        return float("-inf") if row is None else float(row["curve"][-1][-1])


def peers(runner: Runner, size: Size) -> None:
    """Choose each side's rate and schedule on the tuning seeds, then run the others with them."""
    from benchmarks.quality_task import run

    for name, task in size.tasks.items():
        cells = [
            [
                Job(
                    task=name,
                    method=method,
                    side=side,
                    seed=task.tuning_seeds[0],
                    rate=rate,
                    schedule=schedule,
                    steps=task.steps,
                    points=1,
                )
                for schedule in task.schedules
                for rate in task.rates
            ]
            for method, side in CELLS
        ]
        jobs = tuned(runner, cells, task.tuning_seeds)
        if task.as_it_comes:
            # TRL has a schedule of its own; the rate is the best of TRL's other row.
            theirs = [job for job in jobs if job.side == "trl_tuned"]
            jobs += [replace(job, side="trl_default", schedule="linear") for job in theirs]
        # A seed of all cells after the other: what is interrupted compares all the same.
        runner.run(
            "peers", run, [replace(job, seed=seed) for seed in range(size.seeds) for job in jobs]
        )


def tuned(runner: Runner, cells: Sequence[Sequence[Job]], seeds: Sequence[int]) -> list[Job]:
    """The best of each cell's settings: of all on one seed, then of the finalists on all seeds."""
    from benchmarks.quality_task import run

    def mean(job: Job, seeds: Sequence[int]) -> float:
        return sum(runner.score("peers", replace(job, seed=s)) for s in seeds) / len(seeds)

    first, rest = seeds[:1], seeds[1:]
    runner.run("peers", run, [job for jobs in cells for job in jobs])
    finalists = [
        sorted(jobs, key=lambda job: mean(job, first), reverse=True)[:FINALISTS] for jobs in cells
    ]
    runner.run(
        "peers", run, [replace(job, seed=s) for jobs in finalists for job in jobs for s in rest]
    )
    best = (max(jobs, key=lambda job: mean(job, seeds)) for jobs in finalists)
    return [replace(job, points=8) for job in best]


def thumbs(runner: Runner, size: Size) -> None:
    """The conditional task from thumbs alone, and what KTO makes of them without the rest."""
    from benchmarks.quality_live import ThumbsJob, learn_from_thumbs

    runner.run(
        "thumbs",
        learn_from_thumbs,
        [
            ThumbsJob(seed=seed, steps=size.thumbs_steps, kto=kto, grpo=grpo)
            for seed in range(size.some_seeds)
            for kto, grpo in RECIPES
        ],
    )


def live(runner: Runner, size: Size) -> None:
    """All kinds of users."""
    from benchmarks.quality_live import LiveJob, serve_users

    runner.run(
        "live",
        serve_users,
        [
            LiveJob(seed=seed, steps=size.live_steps, flips=flips, response_rate=rate, delay=delay)
            for seed in range(size.some_seeds)
            for flips in (0.0, 0.1, 0.2)
            for rate, delay in TRAFFIC
        ],
    )


def main() -> None:
    """Run what is missing, then write the results, the table and the curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test; writes no results")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--journal", type=Path, help="where finished runs are kept")
    parser.add_argument("--report", action="store_true", help="run nothing, report what there is")
    options = parser.parse_args()
    device = f"cpu-{os.cpu_count()}-cores-{platform.machine()}"
    name = f"learner-quality-{'quick-' if options.quick else ''}{device}"
    # The processes inherit them: one thread each, and no hub.
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    journal = Journal(options.journal or Path("build") / f"{name}.jsonl")
    runner, size = Runner(journal, options.processes), QUICK if options.quick else FULL
    for part, how in (("peers", peers), ("thumbs", thumbs), ("live", live)):
        if not options.report and options.only in (None, part):
            how(runner, size)
    document = report(journal.rows, device, TUNING_SEEDS)
    if not options.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
        draw(journal.rows, TUNING_SEEDS)


if __name__ == "__main__":
    main()
