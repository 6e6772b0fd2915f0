"""The reference curves of docs/algorithms.md: `python -m benchmarks.learner_curves [NAME …]`.

A tiny random model learns the hidden preference of `benchmarks.hidden_preference`, with several
seeds for each algorithm; a few minutes on one CPU core. The line is the mean over seeds, the band
goes from the lowest to the highest.
"""

import random
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.hidden_preference import (
    VOCABULARY,
    Task,
    feedback,
    learn,
    make_model,
    make_trainer,
    random_prompts,
    sample,
)
from tuneloop.learner.samples import PreferredText
from tuneloop.learner.trainer.reward_model import RewardTrainer
from tuneloop.learner.trainer.settings import RewardTrainerSettings

CURVES = Path(__file__).parents[1] / "docs" / "curves"
SEEDS = range(4)
STEPS = 40
TASK = Task()
RATE = 3e-3
GROW_EVERY = 8
"""Steps of ReST on one grown data set, its threshold rising twice."""

Scores = list[float]
Options = Mapping[str, Any]

LINES: Mapping[str, Mapping[str, tuple[str, Options]]] = {
    "sft": {"SFT on the best of 4": ("sft", {})},
    "dpo": {
        "sigmoid": ("dpo", {}),
        "sigmoid_norm, β 1": ("dpo", {"dpo_loss_type": "sigmoid_norm", "beta_dpo": 1.0}),
        "ipo": ("dpo", {"dpo_loss_type": "ipo"}),
    },
    "kto": {"KTO": ("kto", {}), "with z estimated": ("kto", {"kto_z": "mismatched"})},
    "ppo": {"PPO": ("ppo", {}), "kl_coef 0": ("ppo", {"kl_coef": 0.0})},
    "grpo": {
        "GRPO": ("grpo", {}),
        "Dr. GRPO": ("grpo", {"scale_rewards": "none"}),
        "RLOO": ("grpo", {"advantage_estimator": "rloo"}),
    },
}


def of_policy(folder: Path, objective: str, options: Options) -> Callable[[int], Scores]:
    """Scores of a policy that learns by an algorithm, by seed."""

    def run(seed: int) -> Scores:
        settings = {"learning_rate": RATE, **options}
        return learn(folder, objective, seed=seed, steps=STEPS, task=TASK, **settings).scores

    return run


def of_rest(folder: Path) -> Callable[[int], Scores]:
    """Scores of a policy that learns by ReST: SFT on what is above a rising quantile."""

    def run(seed: int) -> Scores:
        trainer = make_trainer(folder, seed, learning_rate=RATE)
        generator, choose = torch.Generator().manual_seed(seed), random.Random(seed)
        scores: Scores = []
        for step in range(STEPS):
            groups = sample(trainer, random_prompts(TASK.prompts, choose), TASK, generator)
            fresh = [s for group in groups for s in group]
            scores.append(sum(map(TASK.score, fresh)) / len(fresh))
            if step % GROW_EVERY == 0:
                grown = sample(trainer, random_prompts(32, choose), TASK, generator)
                ranked = sorted((s for group in grown for s in group), key=TASK.score)
            quantile = 0.5 if step % GROW_EVERY < GROW_EVERY // 2 else 0.75
            best = ranked[int(quantile * len(ranked)) :]
            chosen = choose.sample(best, k=16)
            trainer.step({"sft": feedback("sft", [[s] for s in chosen], TASK)})
        return scores

    return run


def of_reward_model(folder: Path) -> Callable[[int], Scores]:
    """Share of unseen pairs that a reward model ranks right."""

    def run(seed: int) -> Scores:
        settings = RewardTrainerSettings(learning_rate=1e-3, threads=1, seed=seed)
        trainer, choose = RewardTrainer(folder, settings), random.Random(seed)
        accuracies = []
        for _ in range(STEPS):
            pairs = [random_pair(choose) for _ in range(32)]
            accuracies.append(trainer.step({"reward_model": pairs}).metrics["accuracy"])
        return accuracies

    return run


def random_pair(choose: random.Random) -> PreferredText:
    """Two answers of random words, of which the one with more even words is preferred."""
    answers: list[list[int]] = []
    while len(answers) < 2 or odd_words(answers[0]) == odd_words(answers[1]):
        answers = [[choose.randrange(VOCABULARY) for _ in range(12)] for _ in range(2)]
    answers.sort(key=odd_words)
    chosen, rejected = (" ".join(f"w{word}" for word in words) for words in answers)
    return PreferredText(sample_id="", prompt="w0", chosen=chosen, rejected=rejected)


def odd_words(words: Sequence[int]) -> int:
    """How many of them are odd."""
    return sum(word % 2 for word in words)


def make_reader(folder: Path) -> Path:
    """Write a random language model with a tokenizer of words, as a reward model's backbone."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"w{word}": word for word in range(VOCABULARY - 2)}
    words = vocabulary | {"<unk>": VOCABULARY - 2, "<end>": VOCABULARY - 1}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>", pad_token="<end>"
    ).save_pretrained(folder)
    return make_model(folder, seed=0)


def draw(name: str, lines: Mapping[str, Sequence[Scores]], what: str) -> Path:
    """Write a picture of each line's scores, one list of them for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for label, runs in lines.items():
        columns = list(zip(*runs, strict=True))
        (line,) = axes.plot([sum(c) / len(c) for c in columns], label=label)
        axes.fill_between(
            range(len(columns)),
            [min(c) for c in columns],
            [max(c) for c in columns],
            color=line.get_color(),
            alpha=0.2,
            linewidth=0,
        )
    # The reward model starts with all scores at 0, and a tie is not right.
    axes.set(xlabel="step", ylabel=what, ylim=(-0.02 if name == "reward-model" else 0.35, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    CURVES.mkdir(exist_ok=True)
    path = CURVES / f"{name}.png"
    figure.savefig(path, dpi=100, metadata={"Software": None})
    return path


def main() -> None:
    """Learn and draw all, or those named on the command line."""
    wanted = set(sys.argv[1:])
    with tempfile.TemporaryDirectory() as scratch:
        policy = make_model(Path(scratch) / "policy", seed=0)
        jobs = {
            name: {label: of_policy(policy, *how) for label, how in lines.items()}
            for name, lines in LINES.items()
        }
        jobs["rest"] = {"ReST": of_rest(policy)}
        jobs["reward-model"] = {"pairs": of_reward_model(make_reader(Path(scratch) / "reader"))}
        for name, lines in jobs.items():
            if wanted and name not in wanted:
                continue
            runs = {label: [run(seed) for seed in SEEDS] for label, run in lines.items()}
            what = "unseen pairs ranked right" if name == "reward-model" else "hidden preference"
            print(draw(name, runs, what))


if __name__ == "__main__":
    main()
