"""The policy's part of `signals`: one hidden taste, told in several ways.

A tiny model answers four random words with nine; users like answers of which most words are even,
and never say so. The learner's own ledger, batches and trainers learn from what they say, with the
service's defaults but for all weights, no anchors (they are in English) and a step each round.

Before it serves, the model is taught to follow comments, about as far as a small model does: with
`EVEN` in its hint, `OBEYED` of its words are even. Without a hint all words are alike.
"""

import itertools
import json
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.hidden_preference import make_model
from benchmarks.quality_live import POLICY, START, USERS, rollout_of, thumb_on
from benchmarks.quality_report import figure_of
from benchmarks.quality_task import (
    UNKNOWN,
    WORDS,
    answer,
    evaluate,
    make_tokenizer,
    random_prompts,
    score_of,
    words_of,
)
from tuneloop.feedback import Comment, Demonstration, Signal, SignalKind
from tuneloop.generation.prompts import Tokenization
from tuneloop.learner.batching.batcher import PolicyBatcher, RewardBatcher
from tuneloop.learner.data.hints import hinted_prompt
from tuneloop.learner.data.tokenize import EditTokenizer
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.events.sample_rules import SampleRules
from tuneloop.learner.ledger.events.signal_rules import record_signals
from tuneloop.learner.settings import LearnerSettings
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.reward_model import RewardTrainer
from tuneloop.learner.training_run import TrainingRun
from tuneloop.models.reward_model import load
from tuneloop.policies import WeightsKind
from tuneloop.rollouts import ChatMessage, Rollout, Score, ScoredRollout, ScorerResult

Habit = tuple[float, float]
"""How often a signal comes with an answer that is liked, and with one that is not."""
BUILD = Path("build/signals")
RESULTS = Path(__file__).parent / "results" / "signals-policy.json"
FIGURE = Path(__file__).parents[1] / "docs" / "quality" / "signals.png"

JUDGED = 32
"""Judgements in a round, which are a full step."""
READ = 256
"""Answers of a round at most: users who have no complaint say nothing."""
PATIENCE = 2
"""Rounds, for each that the judgements would fill, after which a run ends."""
ANSWERED = 0.5
"""Share of the answers whose users say something, if they have something to say."""
SCORED = 64
"""Answers of a round that the reward model scores and PPO learns from."""
POINTS = (0, 64, 128, 256, 512)
EVEN, ODD = "w60", "w61"
"""What comments say."""
OBEYED = 0.8
LESSONS = 300
"""Steps of the model's school, where it learns to follow comments."""
WRONG = 0.1
"""Share of judgements that say the opposite."""
HEARD = 0.65
"""Accuracy on what users say from which scores of the reward model count."""
RATE, REWARD_RATE = 3e-3, 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """What users do, and what listens to it."""

    name: str
    says: tuple[str, ...]
    """Of thumb, comment, edit; one of them at each time."""
    scored: bool = False
    """Whether a reward model learns too, and PPO from its scores."""
    signals: bool = False
    """Whether it also learns from signals."""


ARMS = (
    Arm(name="thumbs", says=("thumb",)),
    Arm(name="comments", says=("comment",)),
    Arm(name="edits", says=("edit",)),
    Arm(name="thumbs, scored", says=("thumb",), scored=True),
    Arm(name="thumbs and signals, scored", says=("thumb",), scored=True, signals=True),
    Arm(
        name="all together, scored",
        says=("thumb", "comment", "edit"),
        scored=True,
        signals=True,
    ),
)


RULES = SampleRules(comments_train=True)
COMPARED = (
    ("comments", "thumbs"),
    ("edits", "thumbs"),
    ("thumbs and signals, scored", "thumbs, scored"),
    ("all together, scored", "thumbs, scored"),
)


def is_even(token: int) -> bool:
    """Whether users like a word."""
    return token % 2 == 0


def likes(rollout: Rollout) -> bool:
    """Whether an honest user likes an answer."""
    return score_of((), rollout.completion_token_ids, conditional=False) > 0.5


def listening_model(seed: int) -> Path:
    """Return a model that follows comments: even words or odd ones, in `OBEYED` of all places.

    What it was taught is kept in build/signals/. What it writes does not depend on what it wrote
    before.
    """
    from transformers import AutoModelForCausalLM

    folder = BUILD / f"model-{seed}"
    if (folder / "taught").exists():
        return folder
    make_model(folder, seed)
    make_tokenizer().save_pretrained(folder)
    chance, tokenization = random.Random(seed), Tokenization(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(LESSONS):
        loss = torch.zeros(())
        for comment in ("", EVEN, ODD):
            rows, told = list[list[int]](), list[list[int]]()
            for prompt in random_prompts(32, chance):
                asked = ChatMessage(role="user", content=words_of(prompt))
                shown = prompt
                if comment:
                    shown = hinted_prompt(tokenization, prompt, (asked,), comment)
                rows.append([*shown, *a_lesson("", chance)])
                told.append(a_lesson(comment, chance))
            logits = model(input_ids=torch.tensor(rows)).logits[:, -WORDS - 1 : -1]
            loss = loss + torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), torch.tensor(told).flatten()
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    (folder / "taught").touch()
    return folder


def a_lesson(comment: str, chance: random.Random) -> list[int]:
    """Return an answer of random words, with more even ones, or odd ones, for a comment."""
    words = [chance.randrange(UNKNOWN) for _ in range(WORDS)]
    if not comment:
        return words
    even = OBEYED if comment == EVEN else 1 - OBEYED
    return [word & ~1 if chance.random() < even else word | 1 for word in words]


class Service:
    """A policy that answers and learns, and its reward model, in one process."""

    def __init__(self, arm: Arm, seed: int, folder: Path, habits: Mapping[str, Habit]) -> None:
        self.arm = arm
        self.judgements = self.rounds = 0
        self._folder, self._habits = folder, habits
        self._chance = random.Random(seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._names = itertools.count(1)
        model = listening_model(seed)
        settings = settings_of(arm, seed, folder, model)
        self.database = Database.at(folder / "ledger.db")
        # Signals wait until their user has been silent for five minutes.
        clock = itertools.count(START.timestamp() + 1000, 1000.0)
        trainer = PolicyTrainer(model, settings.trainer(), base_model="tiny")
        self.policy = self._run("policy", trainer)
        self._batches = PolicyBatcher(
            self.database,
            settings,
            edit_tokens=EditTokenizer(model),
            clock=lambda: float(next(clock)),
        )
        if arm.scored:
            backbone = make_model(folder / "backbone", seed, spread=64**-0.5)
            make_tokenizer().save_pretrained(backbone)
            reward_model = RewardTrainer(backbone, settings.reward_trainer())
            self.reward_model = self._run("reward_model", reward_model)
            self._labels = RewardBatcher(self.database, settings, clock=lambda: float(next(clock)))
            self._accuracy = 0.5

    @property
    def module(self) -> Any:
        """The policy as it is."""
        trainer: Any = self.policy.trainer
        return trainer.model.module

    def round(self) -> None:
        """Answer, listen and learn, once."""
        self.rounds += 1
        answers = list(itertools.islice(self._answers(), READ))
        said: list[Rollout] = []
        for rollout in answers:
            if len(said) == JUDGED:
                break
            if self._chance.random() < ANSWERED and self._say(rollout):
                said.append(rollout)
        if self.arm.signals:
            self._signal([r for r in answers if r not in said])
        if self.arm.scored:
            self._score(answers[:SCORED], said)
            train(self.reward_model, self._labels)
        train(self.policy, self._batches)

    def _answers(self) -> Iterator[Rollout]:
        """Yield answers to fresh prompts, recorded."""
        while True:
            sampled = answer(self.module, random_prompts(SCORED, self._chance), self._generator)
            texts = [
                (words_of(s.prompt_token_ids), words_of(s.completion_token_ids)) for s in sampled
            ]
            rollouts = [
                rollout_of(s, f"c{next(self._names)}", self._user(), 0, texts=text)
                for s, text in zip(sampled, texts, strict=True)
            ]
            recorder.record_rollouts(self.database, rollouts, START.timestamp())
            yield from rollouts

    def _user(self) -> str:
        return f"u{self._chance.randrange(USERS)}"

    def _say(self, rollout: Rollout) -> bool:
        """Say what a user thinks of an answer; return whether there was anything to say."""
        wrong, liked = self._chance.random() < WRONG, likes(rollout)
        kind = self._chance.choice(self.arm.says)
        if kind != "thumb" and liked:
            return False
        event = thumb_on(rollout, liked != wrong, next(self._names))
        if kind == "comment":
            event = replace(event, judgement=Comment(text=ODD if wrong else EVEN))
        if kind == "edit":
            text = self._rewritten(rollout, odd=wrong)
            if text == rollout.completion_text:
                return False
            event = replace(event, judgement=Demonstration(text=text))
        number = next(self._names)
        now = START.timestamp()
        recorder.record_feedback(self.database, [(event, number)], now, RULES)
        self.judgements += 1
        return True

    def _rewritten(self, rollout: Rollout, *, odd: bool) -> str:
        """Return an answer in which a user changed half of the words they do not like."""
        words = [
            word ^ 1 if is_even(word) == odd and self._chance.random() < 0.5 else word
            for word in rollout.completion_token_ids
        ]
        return words_of(words)

    def _signal(self, rollouts: Sequence[Rollout]) -> None:
        """Do with answers what users do with them."""
        events = []
        for rollout in rollouts:
            for kind, (if_liked, if_not) in self._habits.items():
                if self._chance.random() >= (if_liked if likes(rollout) else if_not):
                    continue
                number = next(self._names)
                signal = Signal(
                    signal_id=f"s{number}",
                    kind=SignalKind(kind),
                    policy=POLICY,
                    tenant="default",
                    user_hash=rollout.user_hash,
                    completion_id=rollout.completion_id,
                    accepted_time=START,
                    distance=self._chance.random() if kind == "edited" else None,
                )
                events.append((signal, number))
        record_signals(self.database, events, START.timestamp(), learned=True)

    def _score(self, answers: Sequence[Rollout], said: Sequence[Rollout]) -> None:
        """Score answers by the reward model, if it is right on what was said."""
        self.reward_model.trainer.save_weights(self._folder / "scores")
        model = load(self._folder / "scores", 512, "cpu", torch.float32)

        def scores(rollouts: Sequence[Rollout]) -> list[float | None]:
            return model.score(
                [r.prompt_text for r in rollouts], [r.completion_text for r in rollouts]
            )

        right = [(s or 0.0) > 0 for s in scores(said)]
        hits = [one == likes(rollout) for one, rollout in zip(right, said, strict=True)]
        if hits:
            self._accuracy += 0.3 * (sum(hits) / len(hits) - self._accuracy)
        if self._accuracy < HEARD:
            return
        events = [
            ScoredRollout(
                completion_id=rollout.completion_id,
                policy=POLICY,
                score=Score(
                    reward=score,
                    results=(
                        ScorerResult(
                            scorer="reward_model", score=score, weight=1.0, informative=True
                        ),
                    ),
                ),
                reward_model_version=1,
                scored_time=START,
            )
            for rollout, score in zip(answers, scores(answers), strict=True)
        ]
        recorder.record_scores(self.database, events, START.timestamp())

    def _run(self, model: str, trainer: Any) -> TrainingRun:
        run = TrainingRun(
            model=model,
            policy=POLICY,
            trainer=trainer,
            database=self.database,
            checkpoints=self._folder / f"{model}-checkpoints",
            keep_checkpoints=1,
        )
        run.restore()
        return run


def settings_of(arm: Arm, seed: int, folder: Path, model: Path) -> LearnerSettings:
    """Return the service's defaults, but for what the module says."""
    options: dict[str, Any] = {
        "model": model,
        "weights_uri": str(folder),
        "signing_key_file": folder / "private.pem",
        "verify_key_file": folder / "public.pem",
        "data_dir": folder,
        "weights_kind": WeightsKind.FULL,
        "learning_rate": RATE,
        "batch_size": JUDGED,
        "batch_wait_seconds": 0.0,
        "comments": "train",
        "policy_gradient": "ppo" if arm.scored else "off",
        "policy_gradient_batch_size": SCORED,
        "reward_batch_size": JUDGED,
        "reward_replay_fraction": 0.75,
        "reward_learning_rate": REWARD_RATE,
        "signals": "reward_model" if arm.signals else "off",
        "trainer_settings": {"anchor_weight": 0.0, "betas": [0.9, 0.999]},
        "seed": seed,
        "threads": 1,
    }
    return LearnerSettings(**options)


def train(run: TrainingRun, batches: Any) -> None:
    """Take all steps that are due."""
    while (batch := run.next_batch(batches)) is not None:
        run.train(batch)
    run.commit()


def run_arm(
    arm: Arm, seed: int, points: Sequence[int], habits: Mapping[str, Habit]
) -> dict[str, Any]:
    """Return the hidden preference on fresh prompts after so many judgements."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        service = Service(arm, seed, Path(scratch), habits)
        curve = []
        for point in points:
            while service.judgements < point and service.rounds < PATIENCE * max(points) / JUDGED:
                service.round()
            curve.append([point, evaluate(service.module, conditional=False)])
        service.database.close()
    return {"seed": seed, "arm": arm.name, "curve": curve}


def curves(rows: Sequence[Mapping[str, Any]], arm: str) -> list[list[float]]:
    """Return the preference at each of `POINTS`, of each seed."""
    return [[share for _, share in row["curve"]] for row in rows if row["arm"] == arm]


def table(rows: Sequence[Mapping[str, Any]], points: Sequence[int] = POINTS) -> str:
    """Return the hidden preference by judgements as Markdown, and how arms differ."""

    def cells(values: Sequence[Sequence[float]]) -> str:
        return " | ".join(str(figure_of(column)) for column in zip(*values, strict=True))

    head = f" {' | '.join(map(str, points))} |\n| --- |{' --- |' * len(points)}\n"
    lines = [f"| {arm.name} | {cells(curves(rows, arm.name))} |\n" for arm in ARMS]
    more = []
    for one, other in COMPARED:
        pairs = zip(curves(rows, one), curves(rows, other), strict=True)
        gains = [[a - b for a, b in zip(*pair, strict=True)] for pair in pairs]
        more.append(f"| {one} − {other} | {cells(gains)} |\n")
    seeds = len({row["seed"] for row in rows})
    return (
        f"# What each kind of feedback teaches the policy\n\n{seeds} seeds. The hidden preference "
        "on fresh prompts by the number of judgements, and differences by seed; in parentheses "
        f"95 % intervals over seeds, by Student's t.\n\n| users give |{head}{''.join(lines)}\n"
        f"| difference |{head}{''.join(more)}"
    )


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the curves: means, and each seed's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for arm in ARMS:
        found = curves(rows, arm.name)
        means = [sum(column) / len(column) for column in zip(*found, strict=True)]
        [line] = axes.plot(POINTS, means, label=arm.name)
        for curve in found:
            axes.plot(POINTS, curve, color=line.get_color(), alpha=0.15)
    axes.set_xlabel("judgements")
    axes.set_ylabel("hidden preference on fresh prompts")
    axes.set_ylim(0.45, 1)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def compare_kinds(seeds: int, habits: Mapping[str, Habit]) -> str:
    """Run what was not run yet, write the table and the figure; return the table."""
    rows: list[dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for seed, arm in itertools.product(range(seeds), ARMS):
        if not any((row["seed"], row["arm"]) == (seed, arm.name) for row in rows):
            rows.append(run_arm(arm, seed, POINTS, habits))
            RESULTS.write_text(json.dumps(rows, indent=0) + "\n")
    found = table(rows)
    RESULTS.with_suffix(".md").write_text(found)
    draw(rows, FIGURE)
    return found


def compare_quickly(habits: Mapping[str, Habit]) -> str:
    """Return the table of one seed and one step."""
    points = POINTS[0], JUDGED
    return table([run_arm(arm, 0, points, habits) for arm in ARMS], points)
