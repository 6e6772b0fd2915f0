"""From the options of `tuneloop evaluate` to a comparison of two versions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tuneloop.errors import InvalidRequest
from tuneloop.learner.offline.data import read_prompts
from tuneloop.learner.offline.evaluation import (
    Answers,
    Comparison,
    Sampling,
    answer,
    compare,
    log_ratios,
)
from tuneloop.learner.offline.judge_options import JudgeOptions
from tuneloop.learner.offline.judging import Question, Verdicts
from tuneloop.learner.offline.rewards import Rewards, load_rewards
from tuneloop.learner.offline.sampler import Sampler
from tuneloop.learner.offline.screen import Screen
from tuneloop.learner.offline.table import open_table
from tuneloop.learner.offline.tokens import Tokens, TooLong
from tuneloop.learner.offline.versions import Version, Versions
from tuneloop.models.resolve import resolve
from tuneloop.weights.files import sha256_of


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions:
    """What `tuneloop evaluate` was told."""

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


def evaluate(options: EvaluateOptions) -> Comparison:
    """Compare two versions. Raises `TuneloopError` for what is wrong with options or prompts."""
    if options.temperature <= 0 or options.samples_per_prompt < 1 or options.max_tokens < 1:
        raise InvalidRequest("temperature must be above 0, samples and max-tokens 1 or more")
    found = options.versions.find(options.a), options.versions.find(options.b)
    base = found[0].base
    if options.versions.base is not None:
        base = resolve(options.versions.base, options.versions.cache_dir.expanduser())
    rewards = find_rewards(options)
    screen = Screen(every=1)
    verdicts = None
    if options.judge is not None:
        verdicts = Verdicts(options.judge.make())
        # Before the first answer is sampled: that takes long.
        verdicts.probe()
    a, b = (measure(options, version, base, rewards, screen) for version in found)
    judge = None if verdicts is None else lambda questions: preferences_of_b(verdicts, questions)
    return compare(a, b, samples_per_prompt=options.samples_per_prompt, judge=judge)


def find_rewards(options: EvaluateOptions) -> Rewards | None:
    """The scorers; None where none is named."""
    if not options.rewards and options.reward_model is None:
        return None
    folder = None
    if options.reward_model is not None:
        folder = resolve(options.reward_model, options.versions.cache_dir.expanduser())
    return load_rewards(options.rewards, folder)


def measure(
    options: EvaluateOptions,
    version: Version,
    base: Path,
    rewards: Rewards | None,
    screen: Screen,
) -> Answers:
    """A version's answers, scored, with their log-ratio to the base where that is defined."""
    tokens = Tokens(version.base, max_length=None, as_chat=options.as_chat)
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
        report=screen.sampled,
    )
    sampling = Sampling(
        sampler=sampler,
        samples_per_prompt=options.samples_per_prompt,
        seed=f"evaluate, seed {options.seed}",
    )
    with screen.bar(f"asking {version.name}", len(rows) * options.samples_per_prompt):
        answers = answer(version, rows, sampling, rewards)
    if same_tokenizer(version.base, base):
        return replace(answers, kl=log_ratios(answers, base, options.temperature))
    return answers


def same_tokenizer(one: Path, other: Path) -> bool:
    """Whether two models read and write the same tokens."""
    if one == other:
        return True
    files = [folder / "tokenizer.json" for folder in (one, other)]
    return all(file.is_file() for file in files) and sha256_of(files[0]) == sha256_of(files[1])


def preferences_of_b(verdicts: Verdicts, questions: Sequence[Question]) -> list[float | None]:
    """How much the judge prefers b; None where it abstained."""
    return [1 - p.probability_a if p.votes else None for p in verdicts.ask(questions)]
