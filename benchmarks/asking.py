"""Does it pay to choose what to ask? `python -m benchmarks.asking`

People compare two answers to any question, or to those on which the reward model is least sure.
Questions are the pipeline example's and some of the demo's. Answers differ in length, in being
right or on the subject, in saying anything, or in being right but long; or in nothing that is
liked, and then the choice is a coin's (noise). One judgement in ten is wrong. Features are what
all-MiniLM-L6-v2, as it comes, gives its head. Eight linear heads (Bradley-Terry with a ridge) are
fitted, each to a resample of the judgements, after every eight comparisons. Ways to choose eight:

`random`        any
`disagreement`  where the heads' probabilities have the largest standard deviation
`bald`          where the choice tells most about which head is right (arXiv:1112.5745)
`margin`        where the mean margin is smallest

All begin with the same eight. The figure is the share of the pairs of other questions, noise left
out, that the mean head ranks right. The ridge is the best for `random` on seeds from 1000 on.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from examples.demo.prompts import FORMS, TOPICS
from examples.pipeline.__main__ import CHATTER, NOTHING, questions
from tuneloop.learner.stats.paired import paired_difference

RESULTS = Path(__file__).parent / "results"
MODELS = Path.home() / ".cache/tuneloop/models"
SIZES = (16, 32, 64, 128)
NOISE_SHARES = (0.0, 0.2, 0.6)
SEEDS, POOL = 20, 240
HEADS, ROUND, FLIPPED, RIDGE, NEWTON_STEPS = 8, 8, 0.1, 0.3, 6
REMARKS = ("Much is known about {}.", "There is a lot to say about {}.")
NOISE = "noise"
Numbers: TypeAlias = npt.NDArray[Any]


class Pair(NamedTuple):
    """A question with two answers; of kind `noise`, neither is better."""

    kind: str
    question: str
    better: str
    worse: str


def pairs() -> list[Pair]:
    """Every pair of every question."""
    source = random.Random(0)
    asked = [(q.text, q.answer, q.wrong, "right") for q in questions()]
    asked += [
        (form.format(one), said.format(one), said.format(other), "subject")
        for form, said in zip(FORMS, REMARKS, strict=False)
        for one, other in zip(TOPICS, TOPICS[1:] + TOPICS[:1], strict=True)
    ]
    found = []
    for question, good, bad, kind in asked:
        long, *others = [f"{good} {chatter}" for chatter in source.sample(CHATTER, 3)]
        found += [
            Pair("length", question, good, long),
            Pair("something", question, good, source.choice(NOTHING)),
            Pair(kind, question, good, bad),
            *(Pair(NOISE, question, long, other) for other in others),
        ]
        if kind == "right":
            found.append(Pair("right but long", question, long, bad))
    return found


def features(of: Sequence[Pair]) -> Numbers:
    """What the head is given of better answers minus that of worse ones, (pairs, width)."""
    import torch

    from tuneloop.models.catalog import default_reward_backbone
    from tuneloop.models.reward_model import load

    model = load(MODELS / default_reward_backbone)
    model.module.classifier = torch.nn.Identity()
    both = {(p.question, answer) for p in of for answer in (p.better, p.worse)}
    texts = sorted(both, key=lambda text: (len(text[1]), text))
    encoded = [e for e in model.encode(*zip(*texts, strict=True)) if e is not None]
    with torch.inference_mode():
        parts = [model.forward(encoded[i : i + 16]) for i in range(0, len(texts), 16)]
    vectors = dict(zip(texts, torch.cat(parts).double().numpy(), strict=True))
    given = np.array([vectors[p.question, p.better] - vectors[p.question, p.worse] for p in of])
    scaled: Numbers = given / np.sqrt((given**2).sum(axis=1).mean())
    return scaled


def sigmoid(x: Numbers) -> Numbers:
    p: Numbers = 0.5 * (1 + np.tanh(x / 2))
    return p


def fit(gram: Numbers, chosen: Numbers, counts: Numbers) -> Numbers:
    """Fit heads by Newton steps; return their weights of the comparisons, (heads, comparisons).

    Head h minimises −Σᵢ counts[h, i]·log P(choice i) + RIDGE/2·|w|², and w = Σᵢ weights[h, i]·xᵢ.
    `chosen` is 1 where the better answer was, and `gram` has the products of the features x.
    """
    weights = np.zeros_like(counts)
    for _ in range(NEWTON_STEPS):
        margins = weights @ gram
        p = sigmoid(margins)
        curvature = counts * p * (1 - p)
        system = curvature[:, :, None] * gram + RIDGE * np.eye(len(gram))
        goal = curvature * margins + counts * (chosen - p)
        weights = np.linalg.solve(system, goal[:, :, None])[:, :, 0]
    return weights


def entropy(p: Numbers) -> Numbers:
    p = p.clip(1e-12, 1 - 1e-12)
    nats: Numbers = -p * np.log(p) - (1 - p) * np.log(1 - p)
    return nats


# From the heads' margins, (heads, pairs): how much a comparison of each pair would teach.
WAYS: Mapping[str, Callable[[Numbers, np.random.Generator], Numbers]] = {
    "random": lambda m, chance: chance.random((m.shape[1],)),
    "disagreement": lambda m, _: sigmoid(m).std(axis=0),
    "bald": lambda m, _: entropy(sigmoid(m).mean(axis=0)) - entropy(sigmoid(m)).mean(axis=0),
    "margin": lambda m, _: -np.abs(m.mean(axis=0)),
}


class Task(NamedTuple):
    """Pairs that may be asked about, what would be said, and pairs to try the heads on."""

    pool: Numbers
    chosen: Numbers
    unseen: Numbers


def draw_task(of: Sequence[Pair], given: Numbers, noise_share: float, seed: int) -> Task:
    """Draw the questions that may be asked, pairs of them, and judgements."""
    chance = np.random.default_rng(seed)
    asked = sorted({pair.question for pair in of})
    kept = set(chance.choice(asked, size=len(asked) // 3, replace=False).tolist())
    noise = np.array([pair.kind == NOISE for pair in of])
    held_out = np.array([pair.question in kept for pair in of])
    noisy = round(POOL * noise_share)
    clear = chance.choice(np.flatnonzero(~held_out & ~noise), POOL - noisy, replace=False)
    rows = np.append(clear, chance.choice(np.flatnonzero(~held_out & noise), noisy, replace=False))
    chosen = chance.random(POOL) >= np.where(noise[rows], 0.5, FLIPPED)
    return Task(pool=given[rows], chosen=chosen * 1.0, unseen=given[held_out & ~noise])


def ask(task: Task, way: str, seed: int) -> list[float]:
    """Return the share of unseen pairs that are ranked right after each of `SIZES` comparisons."""
    chance = np.random.default_rng([seed, 1])
    gram = task.pool @ task.pool.T
    asked = chance.choice(POOL, ROUND, replace=False)
    accuracies = []
    while len(asked) <= max(SIZES):
        counts = chance.multinomial(len(asked), np.full(len(asked), 1 / len(asked)), size=HEADS)
        weights = fit(gram[np.ix_(asked, asked)], task.chosen[asked], counts.astype(float))
        if len(asked) in SIZES:
            margins = task.unseen @ (weights.mean(axis=0) @ task.pool[asked])
            accuracies.append(float((margins > 0).mean()))
        worth = WAYS[way](weights @ gram[asked], chance)
        worth[asked] = -np.inf
        asked = np.append(asked, np.argsort(-worth, kind="stable")[:ROUND])
    return accuracies


def measure(of: Sequence[Pair], given: Numbers, noise_share: float) -> list[Any]:
    """Ask in every way, and compare each with `random`."""
    tasks = [draw_task(of, given, noise_share, seed) for seed in range(SEEDS)]
    runs = {way: [ask(task, way, seed) for seed, task in enumerate(tasks)] for way in WAYS}
    rows = []
    for i, size in enumerate(SIZES):
        row: dict[str, Any] = {"noise_share": noise_share, "comparisons": size}
        for way, found in runs.items():
            of_way, of_random = ([run[i] for run in r] for r in (found, runs["random"]))
            compared = paired_difference(of_way, of_random, confidence=0.95)
            row[way] = {"accuracy": fmean(of_way)} | (asdict(compared) if compared else {})
        rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as Markdown, in percent and points."""
    ways = [way for way in WAYS if way != "random"]
    lines = [f"| noise | comparisons | random | {' | '.join(f'{w} − random' for w in ways)} |"]
    lines += ["| ---: | ---: | ---: |" + " --- |" * len(ways)]
    for row in rows:
        cells = [f"{row['noise_share']:.0%}".replace("%", " %"), str(row["comparisons"])]
        cells.append(f"{100 * row['random']['accuracy']:.1f}")
        for found in (row[way] for way in ways):
            ends = [f"{100 * found[k]:+.1f}" for k in ("difference", "low", "high")]
            cells.append("{} ({} to {})".format(*ends).replace("-", "−"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, print and store."""
    of = pairs()
    given = features(of)
    rows = [row for share in NOISE_SHARES for row in measure(of, given, share)]
    found = {"seeds": SEEDS, "pool": POOL, "flipped": FLIPPED, "ridge": RIDGE, "rows": rows}
    (RESULTS / "asking.json").write_text(json.dumps(found, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
