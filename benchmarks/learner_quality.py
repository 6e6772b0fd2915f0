"""Does it learn what people like: `python -m benchmarks.learner_quality [--quick] [--only NAME]`.

Three parts, each scored by the hidden preference of `quality_task` on fresh prompts:

`peers`   tuneloop and TRL on the same samples, DPO, KTO, GRPO and PPO, each at the best of the same
          rates, chosen on a seed that is not among those reported.
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
RATES = (1e-3, 3e-3, 1e-2)
TUNING_SEED = 100
SIDES = ("tuneloop", "trl_tuned", "trl_default")
METHODS = ("dpo", "kto", "grpo", "ppo")
PARTS = ("peers", "thumbs", "live")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is run."""

    seeds: int = 5
    steps: Mapping[str, int]
    rates: Sequence[float] = RATES
    thumbs_steps: int = 400
    live_seeds: int = 3
    live_steps: int = 48


FULL = Size(steps={"unconditional": 40, "conditional": 120})
QUICK = Size(
    seeds=1,
    steps={"unconditional": 2},
    rates=(3e-3,),
    thumbs_steps=2,
    live_seeds=1,
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
    """Choose each side's rate on the tuning seed, then run the others at it."""
    from benchmarks.quality_task import run

    for task, steps in size.steps.items():
        cells = [(method, side) for method in METHODS for side in SIDES]
        tuning = [
            Job(
                task=task,
                method=method,
                side=side,
                seed=TUNING_SEED,
                rate=rate,
                schedule=schedule,
                steps=steps,
            )
            for method, side in cells
            for schedule in schedules_of(method, side)
            for rate in size.rates
        ]
        runner.run("peers", run, tuning)
        best = {
            cell: max(
                (job for job in tuning if (job.method, job.side) == cell),
                key=lambda job: runner.score("peers", job),
            )
            for cell in cells
        }
        # A seed of all cells after the other: what is interrupted compares all the same.
        tests = [replace(best[cell], seed=seed) for seed in range(size.seeds) for cell in cells]
        runner.run("peers", run, tests)


def schedules_of(method: str, side: str) -> Sequence[str]:
    """What is tried: KTO runs past its best point at a constant rate, on either side."""
    if side == "trl_default":
        return ("linear",)
    return ("constant", "linear") if method == "kto" else ("constant",)


def thumbs(runner: Runner, size: Size) -> None:
    """The conditional task from thumbs alone, and what KTO makes of them without the rest."""
    from benchmarks.quality_live import ThumbsJob, learn_from_thumbs

    runner.run(
        "thumbs",
        learn_from_thumbs,
        [
            ThumbsJob(seed=seed, steps=size.thumbs_steps, combined=combined)
            for seed in range(size.live_seeds)
            for combined in (True, False)
        ],
    )


def live(runner: Runner, size: Size) -> None:
    """All kinds of users."""
    from benchmarks.quality_live import LiveJob, serve_users

    traffic = [(0.3, 0), (0.3, 8), (0.05, 8)]
    runner.run(
        "live",
        serve_users,
        [
            LiveJob(seed=seed, steps=size.live_steps, flips=flips, response_rate=rate, delay=delay)
            for seed in range(size.live_seeds)
            for flips in (0.0, 0.1, 0.2)
            for rate, delay in traffic
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
    document = report(journal.rows, device, tuning_seed=TUNING_SEED)
    if not options.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
        draw(journal.rows, tuning_seed=TUNING_SEED)


if __name__ == "__main__":
    main()
