"""`tuneloop evaluate`: two versions on the same prompts, with the same random numbers.

Reward, KL to the base model, length and win rate, each with a 95 % interval. Prompts are what was
sampled independently: completions of one prompt are averaged before an interval is taken.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tuneloop.learner.models import PolicyModel
from tuneloop.learner.offline.intervals import Estimate, mean_of, rate_of
from tuneloop.learner.offline.prompt_rows import PromptRow
from tuneloop.learner.offline.prompted import Attempt, ask
from tuneloop.learner.offline.rewards import Rewards
from tuneloop.learner.offline.sampler import Sampler
from tuneloop.learner.offline.versions import Version
from tuneloop.models.reward_model import quiet

Compare = Callable[[Sequence[tuple[str, str, str]]], Sequence[float | None]]
"""For each (prompt, answer of A, answer of B) how much B is preferred: 1, 0, or ½ for a tie."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How both versions are asked."""

    sampler: Sampler
    samples_per_prompt: int
    seed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a version answered: completions of each prompt, one prompt after the other."""

    attempts: Sequence[Attempt]
    rewards: Sequence[float | None]
    kl: Sequence[float] = ()
    """log π − log π_base of each completion, nats: its mean is the KL divergence. Empty where the
    two have different tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two versions, measured alike."""

    prompts: int
    figures: dict[str, tuple[Estimate, Estimate]]
    """By name, of A and of B."""
    win_rate: Estimate | None
    """How often B's answer is better than A's; None without reward and judge."""
    judged_by: str

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "prompts": self.prompts,
            "figures": {
                name: {"a": asdict(a), "b": asdict(b)} for name, (a, b) in self.figures.items()
            },
            "win_rate_of_b": None if self.win_rate is None else asdict(self.win_rate),
            "judged_by": self.judged_by,
        }


def answer(
    version: Version, rows: Sequence[PromptRow], sampling: Sampling, rewards: Rewards | None
) -> Answers:
    """Ask a version every prompt, and score what it says."""
    attempts = ask(
        load_policy(version),
        sampling.sampler,
        rows,
        samples_per_prompt=sampling.samples_per_prompt,
        seed=sampling.seed,
    )
    scores: Sequence[float | None] = [None] * len(attempts)
    if rewards is not None:
        scores = rewards.score([attempt.answer for attempt in attempts])
    return Answers(attempts=attempts, rewards=scores)


def load_policy(version: Version) -> Any:
    """The version as a transformers model."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with quiet():
        folder = version.base if version.adapter else version.folder
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True
        )
        if version.adapter:
            model = PeftModel.from_pretrained(model, str(version.weights)).merge_and_unload()
    return model.to(device).eval()


def log_ratios(answers: Answers, base: Path, temperature: float) -> list[float]:
    """Log-ratios of the answers to the base model, at the temperature they were sampled."""
    model = PolicyModel(base, device="cuda" if torch.cuda.is_available() else "cpu")
    sequences = [attempt.sequence(temperature) for attempt in answers.attempts]
    base_logprobs = model.compute_reference_logprobs(sequences, token_budget=2048)
    return [
        sum(attempt.sampled.logprobs) - sum(row)
        for attempt, row in zip(answers.attempts, base_logprobs, strict=True)
    ]


def compare(
    a: Answers, b: Answers, *, samples_per_prompt: int, judge: Compare | None
) -> Comparison:
    """Every figure of both, and how often B wins."""

    def by_prompt(values: Sequence[float | None]) -> list[float]:
        """The mean of each prompt's values; prompts without any are left out."""
        groups = [
            [v for v in values[start : start + samples_per_prompt] if v is not None]
            for start in range(0, len(values), samples_per_prompt)
        ]
        return [sum(group) / len(group) for group in groups if group]

    measured: dict[str, tuple[list[float], list[float]]] = {}
    for name, of in FIGURES.items():
        pair = by_prompt(of(a)), by_prompt(of(b))
        if all(pair):
            measured[name] = pair
    outcomes, judged_by = outcomes_of(a, b, judge)
    wins = by_prompt(outcomes)
    return Comparison(
        prompts=len(a.attempts) // samples_per_prompt,
        figures={name: (mean_of(x), mean_of(y)) for name, (x, y) in measured.items()},
        win_rate=rate_of(sum(wins), len(wins)) if wins else None,
        judged_by=judged_by,
    )


FIGURES: dict[str, Callable[[Answers], Sequence[float | None]]] = {
    "reward": lambda answers: answers.rewards,
    "KL to base": lambda answers: answers.kl,
    "tokens": lambda answers: [float(len(a.sampled.token_ids)) for a in answers.attempts],
    "stopped": lambda answers: [float(a.sampled.stopped) for a in answers.attempts],
}


def outcomes_of(
    a: Answers, b: Answers, judge: Compare | None
) -> tuple[Sequence[float | None], str]:
    """Who wins each completion, by the judge or else by the reward."""
    if judge is not None:
        texts = [
            (x.row.asked.text, x.sampled.text, y.sampled.text)
            for x, y in zip(a.attempts, b.attempts, strict=True)
        ]
        return judge(texts), "judge"
    pairs = zip(a.rewards, b.rewards, strict=True)
    return [
        None if x is None or y is None else 0.5 + 0.5 * ((y > x) - (y < x)) for x, y in pairs
    ], "reward"
