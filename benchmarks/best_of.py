"""What the best of several is worth, and what it costs.

    python -m benchmarks.best_of [--seeds 0 1] [--questions 24] [--quick]

The demo's hidden taste: an answer that ends by itself within forty tokens is liked. Its questions
ask for one sentence here, so that some answers of SmolLM2 are liked and some are not. Users press
thumbs on answers to the learning questions, the reward model learns from these alone, and then the
policy, which has learned nothing, answers fresh questions of other topics with eight candidates
each. The best of one, two, four or eight is the one with the highest reward of so many of them, as
the gateway chooses it: of each eight there are eight, four, two and one such, of which a question's
value is the mean. Intervals are over questions.

Writes best-of.json and .md into benchmarks/results/; `--quick` is one small seed that writes
nothing.
"""

import argparse
import json
import os
import platform
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.evidence import MODEL, ids_of
from examples.demo.prompts import questions
from examples.demo.users import LONGEST_LIKED_ANSWER, MAX_TOKENS
from tuneloop.generation.prompts import Tokenization
from tuneloop.learner.samples import LabelledText
from tuneloop.learner.stats.intervals import mean_of
from tuneloop.models.reward_model import RewardModel, load

console = Console()
RESULTS = Path(__file__).parent / "results"
CANDIDATES = 8
SIZES = (1, 2, 4, 8)
BRIEFLY = "Answer in one sentence."
BACKBONE = MODEL.with_name("all-minilm-l6-v2")
BATCH = 64
"""Answers that are sampled together."""
STEP, EPOCHS = 16, 6
"""Labels of a step of the reward model, and how often it reads each."""
MAX_LENGTH = 256
"""Tokens of a question and its answer, at most."""
COLUMNS = ("best of", "liked", "by seed", "tokens sampled", "tokens answered")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer of the policy."""

    text: str
    tokens: int
    """With the one that ends it."""
    ended: bool

    @property
    def liked(self) -> bool:
        """What a user thinks of it."""
        return self.ended and self.tokens <= LONGEST_LIKED_ANSWER


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One candidate of an answer."""

    reward: float
    answer: Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The candidates for the answer to a fresh question."""

    seed: int
    candidates: tuple[Candidate, ...]

    def best_of(self, size: int) -> list[Candidate]:
        """Return the best of each so many candidates; of equal ones the first, as is answered."""
        parts = range(0, len(self.candidates), size)
        return [max(self.candidates[i : i + size], key=lambda c: c.reward) for i in parts]


@torch.no_grad()
def answers_to(asked: Sequence[str], tries: int, seed: int) -> list[list[Answer]]:
    """Return so many answers to each question by the base model, at temperature 1."""
    from transformers import AutoModelForCausalLM

    tokenization = Tokenization(MODEL)
    module = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    end = module.generation_config.eos_token_id
    prompts = [ids_of(tokenization, question) for question in asked for _ in range(tries)]
    answers: list[Answer] = []
    torch.manual_seed(seed)
    for start in range(0, len(prompts), BATCH):
        rows = prompts[start : start + BATCH]
        width = max(map(len, rows))
        padded = torch.tensor([[end] * (width - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        sampled = module.generate(
            input_ids=padded,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=MAX_TOKENS,
            pad_token_id=end,
        )
        for row in sampled[:, width:].tolist():
            ended = end in row
            tokens = row[: row.index(end)] if ended else row
            text = tokenization.tokenizer.decode(tokens)
            answers.append(Answer(text=text, tokens=len(tokens) + ended, ended=ended))
    return [answers[i : i + tries] for i in range(0, len(answers), tries)]


def train_reward_model(labels: Sequence[LabelledText], seed: int) -> RewardModel:
    """Return a reward model that read the labels a few times, in the learner's steps."""
    from tuneloop.learner.trainer.reward_model import RewardTrainer
    from tuneloop.learner.trainer.settings import RewardTrainerSettings

    trainer = RewardTrainer(BACKBONE, RewardTrainerSettings(seed=seed))
    choose, order = random.Random(seed), list(labels)
    for _ in range(EPOCHS):
        choose.shuffle(order)
        for start in range(0, len(order), STEP):
            trainer.step({"reward_model": order[start : start + STEP]})
    with tempfile.TemporaryDirectory() as folder:
        trainer.save_weights(Path(folder))
        return load(Path(folder), MAX_LENGTH)


def run_seed(seed: int, thumbs: int, count: int) -> list[Question]:
    """Press thumbs, learn from them, and score candidates for the answers to fresh questions."""
    learning, fresh = ([f"{q} {BRIEFLY}" for q in part] for part in questions(seed))
    tries = max(1, thumbs // len(learning))
    labels = [
        LabelledText(
            sample_id=f"{question}-{number}",
            prompt=question,
            completion=answer.text,
            desirable=answer.liked,
        )
        for question, answers in zip(learning, answers_to(learning, tries, 2 * seed), strict=True)
        for number, answer in enumerate(answers)
    ]
    console.print(f"seed {seed}: {sum(x.desirable for x in labels)} of {len(labels)} thumbs up")
    reward_model = train_reward_model(labels, seed)
    picked = fresh[:: max(1, len(fresh) // count)][:count]
    found = []
    for question, answers in zip(picked, answers_to(picked, CANDIDATES, 2 * seed + 1), strict=True):
        rewards = reward_model.score([question] * CANDIDATES, [answer.text for answer in answers])
        candidates = tuple(
            Candidate(reward=reward or 0.0, answer=a)
            for reward, a in zip(rewards, answers, strict=True)
        )
        found.append(Question(seed=seed, candidates=candidates))
    return found


def ranking_accuracy(found: Sequence[Question]) -> float:
    """Return how often the liked one of two candidates has the higher reward; a tie is half."""
    pairs = [
        (up.reward > down.reward) + 0.5 * (up.reward == down.reward)
        for question in found
        for up in question.candidates
        for down in question.candidates
        if up.answer.liked and not down.answer.liked
    ]
    return sum(pairs) / len(pairs)


def rows_of(found: Sequence[Question]) -> list[dict[str, Any]]:
    """Return a row for each size."""
    rows = []
    for size in SIZES:
        best = [(question.seed, question.best_of(size)) for question in found]
        liked = [(seed, sum(c.answer.liked for c in chosen) / len(chosen)) for seed, chosen in best]
        answered = [sum(c.answer.tokens for c in chosen) / len(chosen) for _, chosen in best]
        sampled = [size * sum(c.answer.tokens for c in q.candidates) / CANDIDATES for q in found]
        by_seed = [[value for s, value in liked if s == seed] for seed in seeds_of(found)]
        rows.append(
            {
                "best_of": size,
                "liked": asdict(mean_of([value for _, value in liked])),
                "liked_by_seed": [sum(values) / len(values) for values in by_seed],
                "tokens_sampled": asdict(mean_of(sampled)),
                "tokens_answered": asdict(mean_of(answered)),
            }
        )
    return rows


def seeds_of(found: Sequence[Question]) -> list[int]:
    return sorted({question.seed for question in found})


def shown(figure: Mapping[str, float], digits: int) -> str:
    """Return a figure and its interval."""
    value, low, high = (f"{figure[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} ({low} – {high})"


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return a row as text."""
    return [
        str(row["best_of"]),
        shown(row["liked"], 2),
        " ".join(f"{rate:.2f}" for rate in row["liked_by_seed"]),
        shown(row["tokens_sampled"], 0),
        shown(row["tokens_answered"], 0),
    ]


def write(document: Mapping[str, Any]) -> None:
    """Write the results as JSON and as a table."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "best-of.json").write_text(json.dumps(document, indent=1) + "\n")
    lines = [" | ".join(line) for line in (COLUMNS, ["---:"] * len(COLUMNS))]
    lines += [" | ".join(cells(row)) for row in document["rows"]]
    table = "\n".join(f"| {line} |" for line in lines)
    head = (
        f"# The best of several\n\n`python -m benchmarks.best_of` on {document['device']}, seeds "
        f"{', '.join(map(str, document['seeds']))}, {document['thumbs']} thumbs and "
        f"{document['questions']} fresh questions each. The reward model ranks "
        f"{document['ranking_accuracy']:.2f} of the pairs of candidates right.\n"
    )
    (RESULTS / "best-of.md").write_text(f"{head}\n{table}\n")


def main() -> None:
    """Run the seeds, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--thumbs", type=int, default=200)
    parser.add_argument("--questions", type=int, default=24, help="for each seed, 50 at most")
    parser.add_argument("--quick", action="store_true", help="a smoke test; writes no results")
    options = parser.parse_args()
    seeds, thumbs, count = options.seeds, options.thumbs, options.questions
    if options.quick:
        seeds, thumbs, count = seeds[:1], 100, 2
    found = [question for seed in seeds for question in run_seed(seed, thumbs, count)]
    rows, accuracy = rows_of(found), ranking_accuracy(found)
    console.print(f"the reward model ranks {accuracy:.2f} of the pairs of candidates right")
    table = Table(title="The best of several, by the hidden taste")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*cells(row))
    Console(width=120).print(table)
    if not options.quick:
        device = f"cpu-{os.cpu_count()}-cores-{platform.machine()}"
        sizes = {"seeds": seeds, "thumbs": thumbs, "questions": count}
        write({"device": device, **sizes, "ranking_accuracy": accuracy, "rows": rows})


if __name__ == "__main__":
    main()
