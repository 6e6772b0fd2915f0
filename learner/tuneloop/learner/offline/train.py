"""`tuneloop train`: from options to a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.errors import SettingsError
from tuneloop.gpus.devices import check_device
from tuneloop.learner.data.rows import RowsData, read_prompts, read_samples, read_texts
from tuneloop.learner.data.table import Table, open_table
from tuneloop.learner.data.tokenize import PromptTokenizer
from tuneloop.learner.models.world import ALONE, World
from tuneloop.learner.offline.build import build_run
from tuneloop.learner.offline.run.console import Console
from tuneloop.learner.offline.run.folder import RunFolder
from tuneloop.learner.offline.run.settings import RunInputs, Settings, make_settings
from tuneloop.learner.offline.sources.judge import JudgeOptions, Verdicts
from tuneloop.learner.offline.sources.judged import has_answers, judged_pairs
from tuneloop.learner.offline.sources.ledger_rows import is_ledger, read_ledger, read_ledger_prompts
from tuneloop.learner.offline.sources.rewards import Rewards, load_rewards
from tuneloop.learner.trainer.algorithms import Algorithm, algorithms, offline_algorithms
from tuneloop.models.resolve import resolve
from tuneloop.policies import WeightsKind
from tuneloop.weights.files import sha256_of


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """The options of `tuneloop train`."""

    algorithm: str
    """Name of an algorithm that runs offline."""
    model: str
    data: str
    output: Path
    kind: WeightsKind | None = None
    """None is LoRA for the policy, all weights for the reward model."""
    seed: int = 0
    assignments: Sequence[str] = ()
    """`key=value`."""
    rewards: Sequence[str] = ()
    reward_model: str | None = None
    judge: JudgeOptions | None = None
    restart: bool = False
    cache_dir: Path = Path("~/.cache/tuneloop")

    @property
    def facts(self) -> Algorithm:
        """Return the algorithm's entry in the registry."""
        return algorithms[self.algorithm]


def train(options: TrainOptions, world: World = ALONE) -> dict[str, Any] | None:
    """Train; return the summary, or None when the user stopped the run.

    Everything that can be checked is checked before a model is loaded. With several ranks in
    `world` this is for the first; the others `follow`. Raises `TuneloopError`.
    """
    check_rewards(options)
    folder = RunFolder(options.output)
    with folder.locked():
        inputs = gather_inputs(options, folder)
        folder.begin(inputs.identity, restart=options.restart)
        finished = folder.finished()
        if finished is not None:
            Console(every=1).line(f"{folder.root}: this run is over; --restart throws it away")
            return finished
        return build_run(inputs, folder, world).go()


def check_rewards(options: TrainOptions) -> None:
    """Raise `SettingsError` for rewards that are absent or would not be used."""
    offline = offline_algorithms()
    scored = bool(options.rewards) or options.reward_model is not None
    samples = options.facts.samples_completions
    if samples and not scored and options.judge is None:
        raise SettingsError(
            f"{options.algorithm} needs a reward: --reward module:function, --reward-model DIR or "
            "--judge URL",
            param="reward",
        )
    if scored and not samples:
        raise SettingsError(
            f"{options.algorithm} learns from the data alone: --reward and --reward-model are for "
            f"{', '.join(name for name in offline if algorithms[name].samples_completions)}",
            param="reward",
        )
    judged = [n for n in offline if algorithms[n].samples_completions or algorithms[n].takes_judge]
    if options.judge is not None and options.algorithm not in judged:
        raise SettingsError(f"--judge is for {', '.join(judged)}", param="judge")


def gather_inputs(options: TrainOptions, folder: RunFolder) -> RunInputs:
    """Find the model, read the data, load the rewards, ask the judge of answers in the data."""
    table = None if is_ledger(options.data) else open_table(options.data)
    facts = options.facts
    compares = options.judge is not None and not facts.samples_completions
    answered = compares and table is not None and has_answers(table)
    samples = facts.samples_completions or (compares and not answered)
    if compares and samples and not facts.trains_policy:
        columns = "prompt and completions, or chosen and rejected"
        raise SettingsError(f"a judge of a reward model's data needs {columns}", param="data")
    settings = make_settings(
        options.algorithm,
        options.assignments,
        fixed_settings(options),
        sampled=samples,
        recorded=None if options.restart else folder.recorded_settings(),
    )
    check_device(settings.trainer.device)
    model = resolve(options.model, options.cache_dir.expanduser())
    run = settings.run
    tokens = None
    if facts.trains_policy:
        tokens = PromptTokenizer(model, max_length=settings.trainer.max_length, as_chat=run.as_chat)
    rewards = read_rewards(options) if facts.samples_completions else None
    verdicts = read_verdicts(options, folder) if compares else None
    if answered:
        assert table is not None
        assert verdicts is not None
        data = judged_pairs(table, verdicts, tokens, run.on_long)
    else:
        data = read_data(options, settings, model, tokens, table, samples=samples)
    return RunInputs(
        algorithm=options.algorithm,
        model=model,
        model_name=options.model,
        settings=settings,
        samples=data.samples,
        dropped=data.dropped,
        tokens=tokens,
        rewards=rewards,
        verdicts=verdicts if samples else None,
        identity=identity_of(options, settings, model, data, rewards),
    )


def fixed_settings(options: TrainOptions) -> dict[str, Any]:
    """Return the trainer's settings that have options of their own, and the device."""
    import torch

    fixed: dict[str, Any] = {"seed": options.seed}
    if options.kind is not None:
        fixed["kind"] = options.kind
    if not any(a.startswith("device=") for a in options.assignments) and torch.cuda.is_available():
        fixed["device"] = "cuda"
    return fixed


def read_data(
    options: TrainOptions,
    settings: Settings,
    model: Path,
    tokens: PromptTokenizer | None,
    table: Table | None,
    *,
    samples: bool,
) -> RowsData:
    """Return samples, or prompts; raises `InvalidRequest` naming the row at fault."""
    on_long, room = settings.run.on_long, settings.run.max_completion_length
    if table is None:
        if not samples:
            return read_ledger(options.facts.objective, options.data, model)
        assert tokens is not None
        longest = tokens.max_length - room
        return read_ledger_prompts(options.data, model, max_length=longest, on_long=on_long)
    if tokens is None:
        return read_texts(table)
    if samples:
        return read_prompts(options.algorithm, table, tokens, room=room, on_long=on_long)
    return read_samples(options.facts.objective, table, tokens, on_long, options.algorithm)


def read_rewards(options: TrainOptions) -> Rewards:
    """Load the scorers."""
    folder = None
    if options.reward_model is not None:
        folder = resolve(options.reward_model, options.cache_dir.expanduser())
    judge = None if options.judge is None else options.judge.make()
    return load_rewards(options.rewards, folder, judge)


def read_verdicts(options: TrainOptions, folder: RunFolder) -> Verdicts:
    """Return the judge, with the verdicts it gave before."""
    assert options.judge is not None
    judge = options.judge.make()
    return Verdicts(judge, identity=options.judge.identity, path=folder.verdicts)


def identity_of(
    options: TrainOptions, settings: Settings, model: Path, data: RowsData, rewards: Rewards | None
) -> dict[str, Any]:
    """Return what decides the result; a run resumes only with the same."""
    return {
        "algorithm": options.algorithm,
        "model": options.model,
        "model_sha256": {p.name: sha256_of(p) for p in sorted(model.glob("*.safetensors"))},
        "data": options.data,
        **data.identity,
        "rewards": [] if rewards is None else rewards.names,
        "judge": None if options.judge is None else options.judge.identity,
        "settings": settings.document(),
    }
