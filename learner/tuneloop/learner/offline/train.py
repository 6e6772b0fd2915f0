"""`tuneloop train`: from options to a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.errors import SettingsError
from tuneloop.learner.offline.assembly import assemble
from tuneloop.learner.offline.data import Data, read_prompts, read_samples, read_texts
from tuneloop.learner.offline.material import Material
from tuneloop.learner.offline.rewards import Rewards, load_rewards
from tuneloop.learner.offline.run_folder import RunFolder
from tuneloop.learner.offline.run_settings import SAMPLING, Settings, make_settings
from tuneloop.learner.offline.tokens import Tokens
from tuneloop.models.resolve import resolve
from tuneloop.policies import WeightsKind
from tuneloop.weights.files import sha256_of


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """What `tuneloop train` was told."""

    algorithm: str
    model: str
    data: str
    output: Path
    kind: WeightsKind = WeightsKind.LORA
    seed: int = 0
    assignments: Sequence[str] = ()
    """`key=value`."""
    rewards: Sequence[str] = ()
    reward_model: str | None = None
    restart: bool = False
    cache_dir: Path = Path("~/.cache/tuneloop")

    @property
    def samples(self) -> bool:
        """Whether the policy samples what it learns from."""
        return self.algorithm in SAMPLING


def train(options: TrainOptions) -> dict[str, Any] | None:
    """Train as told; the summary, or None when the user stopped it.

    Everything that can be told to be wrong is, before a model is loaded. Raises `TuneloopError`.
    """
    check_rewards(options)
    settings = make_settings(
        options.algorithm, options.assignments, fixed_settings(options), sampled=options.samples
    )
    folder = RunFolder(options.output)
    with folder.locked():
        material = gather(options, settings)
        folder.begin(material.identity, restart=options.restart)
        finished = folder.finished()
        if finished is not None:
            return finished
        return assemble(material, folder).go()


def check_rewards(options: TrainOptions) -> None:
    """Raise `SettingsError` for rewards that are absent or would not be used."""
    given = bool(options.rewards) or options.reward_model is not None
    if options.samples and not given:
        raise SettingsError(
            f"{options.algorithm} needs a reward: --reward module:function, or --reward-model DIR",
            param="reward",
        )
    if given and not options.samples:
        raise SettingsError(
            f"{options.algorithm} learns from the data alone: --reward and --reward-model are for "
            f"{', '.join(SAMPLING)}",
            param="reward",
        )


def fixed_settings(options: TrainOptions) -> dict[str, Any]:
    """The trainer's settings that are options of their own, and the device."""
    import torch

    fixed: dict[str, Any] = {"seed": options.seed}
    if options.algorithm != "reward-model":
        fixed["kind"] = options.kind
    if not any(a.startswith("device=") for a in options.assignments) and torch.cuda.is_available():
        fixed["device"] = "cuda"
    return fixed


def gather(options: TrainOptions, settings: Settings) -> Material:
    """Find the model, read the data, load the rewards."""
    model = resolve(options.model, options.cache_dir.expanduser())
    tokens = None
    if options.algorithm != "reward-model":
        tokens = Tokens(model, max_length=settings.trainer.max_length, as_chat=settings.run.as_chat)
    data = read_data(options, settings, tokens)
    rewards = read_rewards(options)
    identity = {
        "algorithm": options.algorithm,
        "model": options.model,
        "model_sha256": {p.name: sha256_of(p) for p in sorted(model.glob("*.safetensors"))},
        "data": options.data,
        **data.identity,
        "rewards": [] if rewards is None else rewards.names,
        "settings": settings.document(),
    }
    return Material(
        algorithm=options.algorithm,
        model=model,
        model_name=options.model,
        settings=settings,
        samples=data.samples,
        dropped=data.dropped,
        tokens=tokens,
        rewards=rewards,
        identity=identity,
    )


def read_data(options: TrainOptions, settings: Settings, tokens: Tokens | None) -> Data:
    """Samples, or prompts; raises `InvalidRequest` naming the row at fault."""
    on_long = settings.run.on_long
    if tokens is None:
        return read_texts(options.data)
    if not options.samples:
        return read_samples(options.algorithm, options.data, tokens, on_long)
    return read_prompts(
        options.algorithm,
        options.data,
        tokens,
        room=settings.run.max_completion_length,
        on_long=on_long,
    )


def read_rewards(options: TrainOptions) -> Rewards | None:
    """The scorers, loaded; None where the algorithm has no use for any."""
    if not options.samples:
        return None
    folder = None
    if options.reward_model is not None:
        folder = resolve(options.reward_model, options.cache_dir.expanduser())
    return load_rewards(options.rewards, folder)
