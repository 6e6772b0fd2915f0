"""What the guards save of a simulated attack: `python -m benchmarks.attack [--quick]`.

Of 40 raters 8 are adversaries (20 %; the last two attacks have their own), and the others press
the wrong thumb one time in ten. A policy that is a table answers 24 prompts, 8 answers each, half
of them good, and learns by KTO; a reward model that is a table learns beside it and scores every
answer. All between is the service's own: the ledger, the batches, the guards, `TrainingRun`, the
losses. Attacks:

`opposite`   adversaries give as many thumbs as others, each the wrong way round
`collusion`  they push one bad answer to each prompt; all judge whatever one of them meets
`flood`      as `opposite`, and one of them judges every answer there is
`all_day`    one adversary judges as many answers of their own as all 39 others together
`newcomers`  from round 6 on, half of all answers are judged by new users, two by each, who say
             the opposite and never come again

The figure is the chance that the policy's answer is good: 0.5 before training. Runs of a seed have
the same world; intervals are of the mean over seeds, by the bootstrap.
"""

import argparse
import json
import logging
import multiprocessing
import platform
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.attack_world import ADVERSARIES, ANSWERS, ATTACKS, PROMPTS, RATERS, World
from benchmarks.intervals import estimate
from tuneloop.learner.guards.settings import GuardSettings

RESULTS = Path(__file__).parent / "results"
OFF = {"user_share": 1.0, "rater_weights": False, "judgements_in_full": 0, "probation": 0}
DEFAULT = GuardSettings()
STANDING = {
    "judgements_in_full": DEFAULT.judgements_in_full,
    "probation": DEFAULT.probation,
}
GUARDS: Mapping[str, Mapping[str, Any]] = {
    "off": OFF,
    "shares": {**OFF, "user_share": 0.25},
    "weights": {**OFF, "rater_weights": True},
    "standing": {**OFF, "user_share": 0.25, **STANDING},
    "before": {"judgements_in_full": 0, "probation": 0},
    "on": {},
}
"""`on` is what the learner has by default."""
ROUNDS = 25
ROUND_SECONDS = 60.0
START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run."""

    attack: str
    guards: str
    seed: int
    rounds: int = ROUNDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of it."""

    good: float
    """Chance that the policy's answer is good."""
    target: float
    """Chance that it is the one that colluding adversaries push."""
    thumbs: int
    adversaries_weight: float
    """Mean weight of the adversaries by the guards; 1 without."""
    honest_weight: float
    alarms: tuple[str, ...]


def run(job: Job) -> Outcome:
    """One service from its first answer to its last step."""
    import torch

    from benchmarks.attack_service import Service

    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    world = World(job.attack, job.seed)
    with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
        service = Service(Path(folder), GUARDS[job.guards], seed=job.seed)
        for number in range(job.rounds):
            service.now = (START + timedelta(seconds=ROUND_SECONDS * (number + 1))).timestamp()
            service.answer(world, number)
            service.learn()
        chances = service.policy.probabilities()
        raters = service.rater_weights()
        alarms = service.alarms()
        thumbs = service.thumbs
    adversaries = world.adversaries(job.rounds)
    bad = [raters.get(f"u{rater}", 1.0) for rater in adversaries]
    fine = [raters.get(f"u{rater}", 1.0) for rater in set(range(RATERS)) - set(adversaries)]
    return Outcome(
        good=float((chances * torch.tensor(world.good, dtype=torch.float32)).sum() / PROMPTS),
        target=fmean(float(row[t]) for row, t in zip(chances, world.target, strict=True)),
        thumbs=thumbs,
        adversaries_weight=fmean(bad),
        honest_weight=fmean(fine),
        alarms=alarms,
    )


def fast_folder() -> str | None:
    """Memory, where there is a folder of it: the ledger waits for the disk at every commit."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def cells() -> list[tuple[str, str]]:
    """Attacks and guards that are run."""
    without = [("none", "off"), ("none", "on")]
    return without + [(a, g) for a in ATTACKS if a != "none" for g in GUARDS]


def summary(outcomes: Mapping[tuple[str, str], Sequence[Outcome]]) -> list[dict[str, Any]]:
    """A row for each cell, seeds in their order."""
    clean = [o.good for o in outcomes["none", "off"]]
    rows = []
    for (attack, guards), found in outcomes.items():
        row: dict[str, Any] = {
            "attack": attack,
            "guards": guards,
            "good": estimate([o.good for o in found], fmean),
            "target": estimate([o.target for o in found], fmean),
            "thumbs": fmean(o.thumbs for o in found),
            "adversaries_weight": fmean(o.adversaries_weight for o in found),
            "honest_weight": fmean(o.honest_weight for o in found),
            "alarms": {
                name: sum(name in o.alarms for o in found)
                for name in sorted({name for o in found for name in o.alarms})
            },
        }
        if attack != "none":
            off = [o.good for o in outcomes[attack, "off"]]
            triples = list(zip((o.good for o in found), off, clean, strict=True))
            row["lost"] = estimate([c - g for g, _, c in triples], fmean)
            row["saved"] = estimate(triples, saved)
        rows.append(row)
    return rows


def saved(triples: Sequence[tuple[float, float, float]]) -> float:
    """The part of what the attack costs without guards that is kept with them."""
    lost = sum(clean - off for _, off, clean in triples)
    return sum(good - off for good, off, _ in triples) / lost if lost else 0.0


def page(rows: Sequence[Mapping[str, Any]], seeds: int, machine: str) -> str:
    """The table for people."""

    def spelled(value: Mapping[str, float] | None) -> str:
        if value is None:
            return ""
        return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"

    lines = [
        "# Guards under attack",
        "",
        f"{machine}. `python -m benchmarks.attack`; {seeds} seeds, in brackets 95 % intervals of "
        f"the mean over seeds. {ADVERSARIES} of {RATERS} raters are adversaries. `good` is the "
        f"chance that the policy's answer is good (0.5 before training), `target` that it is the "
        f"one of {ANSWERS} that colluders push (0.125 before), `saved` the part of the attack's "
        "damage that the guards undo.",
        "",
        "| attack | guards | good | target | saved | weight of adversaries | of others | alarms |",
        "| --- | --- | --- | --- | --- | ---: | ---: | --- |",
    ]
    for row in rows:
        alarms = ", ".join(f"{name} {count}/{seeds}" for name, count in row["alarms"].items())
        lines.append(
            f"| {row['attack']} | {row['guards']} | {spelled(row['good'])} "
            f"| {spelled(row['target'])} | {spelled(row.get('saved'))} "
            f"| {row['adversaries_weight']:.2f} | {row['honest_weight']:.2f} | {alarms} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all, print, and write both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed, few rounds; writes nothing")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    seeds, rounds = (1, 8) if options.quick else (options.seeds, ROUNDS)
    jobs = [
        Job(attack=attack, guards=guards, seed=seed, rounds=rounds)
        for attack, guards in cells()
        for seed in range(seeds)
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        found = list(pool.map(run, jobs))
    outcomes: dict[tuple[str, str], list[Outcome]] = {}
    for job, outcome in zip(jobs, found, strict=True):
        outcomes.setdefault((job.attack, job.guards), []).append(outcome)
    rows = summary(outcomes)
    machine = f"Python {platform.python_version()}, {platform.machine()}"
    text = page(rows, seeds, machine)
    print(text)
    if options.quick:
        return
    runs = [asdict(job) | asdict(outcome) for job, outcome in zip(jobs, found, strict=True)]
    document = {"machine": machine, "seeds": seeds, "rounds": rounds, "rows": rows, "runs": runs}
    (RESULTS / "attack.json").write_text(json.dumps(document, indent=1) + "\n")
    (RESULTS / "attack.md").write_text(text)


if __name__ == "__main__":
    main()
