"""`tuneloop evaluate`: two versions on the same prompts, with the same random numbers."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tuneloop.errors import InvalidRequest
from tuneloop.learner.data.prompt_rows import PromptRow
from tuneloop.learner.data.rows import read_prompts
from tuneloop.learner.data.table import open_table
from tuneloop.learner.data.tokenize import PromptTokenizer, TooLong
from tuneloop.learner.models.decoding.sampling import Sampler
from tuneloop.learner.models.policy import PolicyModel
from tuneloop.learner.offline.run.console import Console
from tuneloop.learner.offline.sources.judge import JudgeOptions, Question, Verdicts
from tuneloop.learner.offline.sources.on_policy import SampledCompletion, sample_completions
from tuneloop.learner.offline.sources.rewards import Rewards, load_rewards
from tuneloop.learner.offline.versions import VersionFolder, Versions
from tuneloop.learner.stats.intervals import Estimate, mean_of, rate_of
from tuneloop.models.resolve import resolve
from tuneloop.models.reward_model import silence_loading
from tuneloop.weights.files import sha256_of

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

    completions: Sequence[SampledCompletion]
    rewards: Sequence[float | None]
    kl: Sequence[float] = ()
    """log π − log π_base of each completion, nats: its mean is the KL divergence. Empty where the
    two have different tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionComparison:
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
    version: VersionFolder, rows: Sequence[PromptRow], sampling: Sampling, rewards: Rewards | None
) -> Answers:
    """Ask a version every prompt, and score what it says."""
    completions = sample_completions(
        load_policy(version),
        sampling.sampler,
        rows,
        samples_per_prompt=sampling.samples_per_prompt,
        seed=sampling.seed,
    )
    scores: Sequence[float | None] = [None] * len(completions)
    if rewards is not None:
        scores = rewards.score([completion.answer for completion in completions])
    return Answers(completions=completions, rewards=scores)


def load_policy(version: VersionFolder) -> Any:
    """Return the version as a transformers model."""
    from peft import PeftModel

    from tuneloop.models.causal_lm import load_causal_lm

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with silence_loading():
        folder = version.base if version.adapter else version.folder
        model = load_causal_lm(folder, dtype, device, keep_packed=False)
        if version.adapter:
            model = PeftModel.from_pretrained(model, str(version.weights)).merge_and_unload()
    return model.eval()


def log_ratios(answers: Answers, base: Path, temperature: float) -> list[float]:
    """Log-ratios of the answers to the base model, at the temperature they were sampled."""
    model = PolicyModel(base, device="cuda" if torch.cuda.is_available() else "cpu")
    sequences = [completion.sequence(temperature) for completion in answers.completions]
    base_logprobs = [r.logprobs for r in model.compute_references(sequences, token_budget=2048)]
    return [
        sum(completion.sampled.logprobs) - sum(row)
        for completion, row in zip(answers.completions, base_logprobs, strict=True)
    ]


def compare(
    a: Answers, b: Answers, *, samples_per_prompt: int, judge: Compare | None
) -> VersionComparison:
    """Return every figure of both, and how often B wins."""

    def by_prompt(values: Sequence[float | None]) -> list[float]:
        """Return the mean of each prompt's values; prompts without any are left out."""
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
    return VersionComparison(
        prompts=len(a.completions) // samples_per_prompt,
        figures={name: (mean_of(x), mean_of(y)) for name, (x, y) in measured.items()},
        win_rate=rate_of(sum(wins), len(wins)) if wins else None,
        judged_by=judged_by,
    )


FIGURES: dict[str, Callable[[Answers], Sequence[float | None]]] = {
    "reward": lambda answers: answers.rewards,
    "KL to base": lambda answers: answers.kl,
    "tokens": lambda answers: [float(len(a.sampled.token_ids)) for a in answers.completions],
    "stopped": lambda answers: [float(a.sampled.stopped) for a in answers.completions],
}


def outcomes_of(
    a: Answers, b: Answers, judge: Compare | None
) -> tuple[Sequence[float | None], str]:
    """Who wins each completion, by the judge or else by the reward."""
    if judge is not None:
        texts = [
            (x.row.asked.text, x.sampled.text, y.sampled.text)
            for x, y in zip(a.completions, b.completions, strict=True)
        ]
        return judge(texts), "judge"
    pairs = zip(a.rewards, b.rewards, strict=True)
    return [
        None if x is None or y is None else 0.5 + 0.5 * ((y > x) - (y < x)) for x, y in pairs
    ], "reward"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions:
    """The options of `tuneloop evaluate`."""

    a: str
    b: str
    prompts: str
    versions: Versions
    rewards: Sequence[str] = ()
    reward_model: str | None = None
    judge: JudgeOptions | None = None
    samples_per_prompt: int = 1
    temperature: float = 0.7
    max_tokens: int = 128
    as_chat: bool = False
    seed: int = 0


def evaluate(options: EvaluateOptions) -> VersionComparison:
    """Compare two versions. Raises `TuneloopError` for what is wrong with options or prompts."""
    if options.temperature <= 0 or options.samples_per_prompt < 1 or options.max_tokens < 1:
        raise InvalidRequest("temperature must be above 0, samples and max-tokens 1 or more")
    found = options.versions.find(options.a), options.versions.find(options.b)
    base = found[0].base
    if options.versions.base is not None:
        base = resolve(options.versions.base, options.versions.cache_dir.expanduser())
    rewards = find_rewards(options)
    console = Console(every=1)
    verdicts = None
    if options.judge is not None:
        verdicts = Verdicts(options.judge.make())
        # Before the first answer is sampled: that takes long.
        verdicts.probe()
    a, b = (measure(options, version, base, rewards, console) for version in found)
    judge = None if verdicts is None else lambda questions: preferences_of_b(verdicts, questions)
    return compare(a, b, samples_per_prompt=options.samples_per_prompt, judge=judge)


def find_rewards(options: EvaluateOptions) -> Rewards | None:
    """Return the scorers; None where none is named."""
    if not options.rewards and options.reward_model is None:
        return None
    folder = None
    if options.reward_model is not None:
        folder = resolve(options.reward_model, options.versions.cache_dir.expanduser())
    return load_rewards(options.rewards, folder)


def measure(
    options: EvaluateOptions,
    version: VersionFolder,
    base: Path,
    rewards: Rewards | None,
    console: Console,
) -> Answers:
    """Return a version's scored answers, with log-ratios to the base where defined."""
    tokens = PromptTokenizer(version.base, max_length=None, as_chat=options.as_chat)
    table = open_table(options.prompts)
    try:
        data = read_prompts("evaluate", table, tokens, room=options.max_tokens, on_long="error")
    except TooLong as error:
        problem = f"{error.problem}; shorten it, or lower --max-tokens"
        raise InvalidRequest(problem, param="max_tokens") from error
    rows = data.samples
    sampler = Sampler(
        tokens.tokenization,
        temperature=options.temperature,
        max_tokens=options.max_tokens,
        batch_size=32,
        report=console.sampled,
    )
    sampling = Sampling(
        sampler=sampler,
        samples_per_prompt=options.samples_per_prompt,
        seed=f"evaluate, seed {options.seed}",
    )
    with console.bar(f"asking {version.name}", len(rows) * options.samples_per_prompt):
        answers = answer(version, rows, sampling, rewards)
    if same_tokenizer(version.base, base):
        return replace(answers, kl=log_ratios(answers, base, options.temperature))
    return answers


def same_tokenizer(one: Path, other: Path) -> bool:
    """Return whether two models read and write the same tokens."""
    if one == other:
        return True
    files = [folder / "tokenizer.json" for folder in (one, other)]
    return all(file.is_file() for file in files) and sha256_of(files[0]) == sha256_of(files[1])


def preferences_of_b(verdicts: Verdicts, questions: Sequence[Question]) -> list[float | None]:
    """Return how much the judge prefers b; None where it abstained."""
    return [1 - p.probability_a if p.votes else None for p in verdicts.ask(questions)]
