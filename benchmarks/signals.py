"""What signals add to the reward model, and what each kind of feedback teaches the policy.

    python -m benchmarks.signals [--seeds 5] [--only reward_model|policy] [--quick]

Simulated users whose habits are known. The policy's part is `signals_policy`; the reward model's is
here.

An answer is `WORDS` numbers; a hidden taste weighs them, and the answer is good if the sum is
above 0. A user rates few answers, bad ones more often than good ones, and one rating in ten is
wrong. What else users do depends on the answer by `HABITS`: P(signal | good), P(signal | bad).

The reward model is linear, so that one is fitted in a blink. Its losses, how signals are calibrated
and what they weigh beside thumbs are the service's own: `thumb_loss`, `signal_loss`, `calibrate`.
Measured is how often it scores a fresh good answer above a fresh bad one (its AUC), by the number
of thumbs.

| users | what they are like |
| --- | --- |
| thumbs alone | their signals are not looked at |
| signals | as in `HABITS` |
| a signal means nothing | `copied` is as common with good answers as with bad ones |
| a signal means the opposite | `copied` as if good were bad |
| a signal lies where nobody rates | the same, but of answers without a thumb: no rating can tell |
| by their names | as in rows 3 and 4, but believed by name: `copied` is a thumb up, and so on |

Each seed has one world and one stream of answers, which all rows share. What is finished is kept in
benchmarks/results/signals*.json and not run again; --quick keeps nothing.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks import signals_policy
from benchmarks.intervals import estimate
from tuneloop.learner.guards.signals import Behavior, Calibration, calibrate
from tuneloop.learner.losses.kto import RAREST, class_weights
from tuneloop.learner.losses.reward_model import signal_loss, thumb_loss

Array: TypeAlias = npt.NDArray[np.float64]
RESULTS = Path(__file__).parent / "results" / "signals.json"

WORDS, USERS, FRESH = 128, 64, 2000
WRONG = 0.1
RATED = {True: 0.04, False: 0.08}
HABITS: Mapping[str, tuple[float, float]] = {
    "copied": (0.35, 0.08),
    "regenerated": (0.05, 0.25),
    "continued": (0.25, 0.12),
    "edited": (0.12, 0.15),
    "abandoned": (0.12, 0.25),
    "follow_up": (0.4, 0.4),
}
NAMES = {"copied": 0.95, "continued": 0.95, "regenerated": 0.05, "abandoned": 0.05}
"""What an uncalibrated chance of a thumb up would be."""
JUDGEMENTS = (32, 64, 128, 256, 512, 1024)
ROUNDS = 300
DECAY = 0.02
ARMS = (
    "thumbs alone",
    "signals",
    "a signal means nothing",
    "a signal means the opposite",
    "a signal lies where nobody rates",
    "by their names, one means nothing",
    "by their names, one means the opposite",
)


class World:
    """One hidden taste, and a stream of answers with what users think of them."""

    def __init__(self, seed: int, thumbs: int) -> None:
        chance = np.random.default_rng(seed)
        self.taste = chance.normal(size=WORDS)
        count = int(thumbs / min(RATED.values())) + 1000
        self.answers = chance.normal(size=(count, WORDS))
        self.good = self.answers @ self.taste > 0
        rate = np.where(self.good, RATED[True], RATED[False])
        self.rated = chance.random(count) < rate
        self.up = self.good ^ (chance.random(count) < WRONG)
        self.users = chance.integers(USERS, size=count)
        self.draws = {kind: chance.random(count) for kind in HABITS}
        self.distances = chance.beta(np.where(self.good, 1, 3), np.where(self.good, 3, 1))
        self.fresh = chance.normal(size=(FRESH, WORDS))
        self.fresh_good = self.fresh @ self.taste > 0

    def until(self, thumbs: int) -> int:
        """Return after how many answers there are so many thumbs."""
        return int(np.searchsorted(np.cumsum(self.rated), thumbs)) + 1

    def behaviors(self, arm: str, count: int) -> list[Behavior]:
        """Return what users did with the first `count` answers."""
        chances = {kind: np.where(self.good[:count], *habit) for kind, habit in HABITS.items()}
        opposite = np.where(self.good[:count], *reversed(HABITS["copied"]))
        if arm.endswith("nothing"):
            chances["copied"] = np.full(count, np.mean(HABITS["copied"]))
        elif arm.endswith("opposite"):
            chances["copied"] = opposite
        elif arm.endswith("rates"):
            chances["copied"] = np.where(self.rated[:count], chances["copied"], opposite)
        done = {kind: self.draws[kind][:count] < chance for kind, chance in chances.items()}
        return [
            Behavior(
                completion_id=f"c{n}",
                user=f"u{self.users[n]}",
                signals={
                    kind: float(self.distances[n]) if kind == "edited" else 1.0
                    for kind, happened in done.items()
                    if happened[n]
                },
                up=bool(self.up[n]) if self.rated[n] else None,
            )
            for n in range(count)
        ]


def soft_labels(
    arm: str, behaviors: Sequence[Behavior], thumbs: int
) -> tuple[list[int], list[float], list[float], Calibration]:
    """Return the answers that signals speak of, the chances and the weights, the newest first.

    As in the service they weigh as much as the thumbs together at most.
    """
    calibration = calibrate(behaviors)
    indices, chances, weights = list[int](), list[float](), list[float]()
    total = 0.0
    for n in reversed(range(len(behaviors))):
        behavior = behaviors[n]
        if behavior.up is not None:
            continue
        if arm.startswith("by their names"):
            named = [NAMES[kind] for kind in behavior.signals if kind in NAMES]
            chance = float(np.mean(named)) if named else None
            weight = 0.0 if chance is None else replace(calibration, base=0.5).says(chance)
        else:
            chance = calibration.chance(behavior.signals)
            weight = 0.0 if chance is None else calibration.says(chance)
        if chance is None or weight == 0:
            continue
        total += weight
        if total > thumbs:
            break
        indices.append(n)
        chances.append(chance)
        weights.append(weight)
    return indices, chances, weights, calibration


def fit(world: World, arm: str, thumbs: int) -> tuple[Tensor, Calibration]:
    """Fit a linear reward model to so many thumbs, and to signals beside them; return its taste."""
    count = world.until(thumbs)
    behaviors = world.behaviors(arm, count)
    rated = np.flatnonzero(world.rated[:count])
    given = torch.tensor(world.answers[rated])
    desirable = torch.tensor(world.up[rated])
    share = float(desirable.double().mean())
    indices, chances, weights, calibration = soft_labels(arm, behaviors, len(rated))
    if arm == "thumbs alone":
        indices = []
    told, ones = torch.tensor(world.answers[indices]), torch.ones(len(indices), dtype=torch.bool)
    parameters = torch.zeros(WORDS + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([parameters], lr=0.05)
    for _ in range(ROUNDS):
        loss, _ = thumb_loss(
            scores=given @ parameters[1:] + parameters[0],
            desirable=desirable,
            weights=class_weights(desirable, share, limit=RAREST).double(),
            total_weight=len(rated),
        )
        if indices:
            extra, _ = signal_loss(
                scores=told @ parameters[1:] + parameters[0],
                chances=torch.tensor(chances, dtype=torch.float64),
                weights=torch.tensor(weights, dtype=torch.float64),
                class_weights=(
                    class_weights(ones, share, limit=RAREST),
                    class_weights(~ones, share, limit=RAREST),
                ),
                total_weight=sum(weights),
            )
            loss = loss + min(1.0, sum(weights) / len(rated)) * extra
        optimizer.zero_grad()
        (loss + DECAY * parameters[1:].square().sum() / 2).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return parameters.detach()[1:], calibration


def auc(world: World, taste: Tensor) -> float:
    """Return how often a fresh good answer scores above a fresh bad one."""
    scores = world.fresh @ taste.numpy()
    ranks = scores.argsort().argsort() + 1
    good = int(world.fresh_good.sum())
    above = ranks[world.fresh_good].sum() - good * (good + 1) / 2
    return float(above / (good * (FRESH - good)))


def run_seed(seed: int, judgements: Sequence[int]) -> list[dict[str, Any]]:
    """Return a row for each number of thumbs and each kind of users."""
    world = World(seed, max(judgements))
    rows = []
    for thumbs in judgements:
        for arm in ARMS:
            taste, calibration = fit(world, arm, thumbs)
            row = {"seed": seed, "thumbs": thumbs, "arm": arm, "auc": auc(world, taste)}
            rows.append(row | {"used": list(calibration.kinds)})
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as Markdown."""
    numbers = sorted({row["thumbs"] for row in rows})
    seeds = sorted({row["seed"] for row in rows})
    found = {(row["seed"], row["thumbs"], row["arm"]): row for row in rows}

    def cell(arm: str, thumbs: int) -> str:
        values = [found[seed, thumbs, arm]["auc"] for seed in seeds]
        base = [found[seed, thumbs, ARMS[0]]["auc"] for seed in seeds]
        if arm == ARMS[0]:
            return f"{np.mean(values):.3f}"
        gains = [one - other for one, other in zip(values, base, strict=True)]
        gain = estimate(gains, lambda drawn: float(np.mean(drawn)))
        return f"{np.mean(values):.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})"

    lines = [
        "# What signals add to the reward model",
        "",
        f"{len(seeds)} seeds. How often a fresh good answer scores above a fresh bad one, by the "
        "number of thumbs; in parentheses the 95 % interval of the gain over thumbs alone, by the "
        "bootstrap over seeds. One in ten thumbs is wrong, and about 17 answers come for each.",
        "",
        f"| users | {' | '.join(map(str, numbers))} |",
        f"| --- |{' --- |' * len(numbers)}",
    ]
    lines += [f"| {arm} | {' | '.join(cell(arm, n) for n in numbers)} |" for arm in ARMS]
    lines += ["", "Seeds in which a kind was used:", ""]
    lines += [
        f"| users | kind | {' | '.join(map(str, numbers))} |",
        f"| --- | --- |{' --- |' * len(numbers)}",
    ]
    for arm in ARMS[1:5]:
        for kind in HABITS:
            counts = [sum(kind in found[s, n, arm]["used"] for s in seeds) for n in numbers]
            lines.append(f"| {arm} | `{kind}` | {' | '.join(map(str, counts))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the seeds that are missing, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one seed, few thumbs, nothing kept")
    parser.add_argument("--only", choices=("reward_model", "policy"), help="one part")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.quick:
        print(table(run_seed(0, JUDGEMENTS[:3])))
        print(signals_policy.compare_quickly(HABITS))
        return
    if options.only != "policy":
        print(learn_rewards(options.seeds))
    if options.only != "reward_model":
        print(signals_policy.compare_kinds(options.seeds, HABITS))


def learn_rewards(seeds: int) -> str:
    """Run the reward model's seeds that are missing, store; return the table."""
    rows: list[dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for seed in range(seeds):
        if not any(row["seed"] == seed for row in rows):
            rows += run_seed(seed, JUDGEMENTS)
            RESULTS.write_text(json.dumps(rows, indent=0) + "\n")
    RESULTS.with_suffix(".md").write_text(table(rows))
    return table(rows)


if __name__ == "__main__":
    main()
