"""Settings of a training run: `--set key=value`, checked, with TRL's names where TRL has one.

A key is looked up in `RunSettings`, then in the settings of the trainer (`TrainerSettings` of the
policy, `RewardTrainerSettings` of the reward model).
"""

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tuneloop.errors import SettingsError
from tuneloop.learner.data.tokenize import PromptTokenizer
from tuneloop.learner.offline.sources.judge import Verdicts
from tuneloop.learner.offline.sources.rewards import Rewards
from tuneloop.learner.samples import Objective
from tuneloop.learner.trainer.algorithms import Algorithm, algorithms
from tuneloop.learner.trainer.settings import (
    BEFORE,
    HELD,
    RewardTrainerSettings,
    TrainerSettings,
    require,
)

TRL_RUN_NAMES = {
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "num_generations": "samples_per_prompt",
    "response_length": "max_completion_length",
    "lora_r": "lora_rank",
}
"""What TRL calls settings of a run that have another name here."""


OWN_OPTIONS = {
    "kind": "--lora or --full",
    "seed": "--seed",
    "objective_weights": "it has one objective only",
    "algorithms": "the algorithm is the command's first argument",
    "resume_warmup_steps": "a resumed run continues as if it had not been interrupted",
}
"""Settings of the trainers that are not for `--set`, and what is or why."""
HARMLESS = {"save_steps", "save_total_limit", "logging_steps", "abilities", "ability_steps"}
"""These may change between the starts of one run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """How a run goes over its data."""

    batch_size: int = 16
    """Samples in an optimizer step; with sampling, completions."""
    epochs: int = 1
    """Passes over the data; with `rest`, over what each improve step keeps."""
    max_steps: int | None = None
    """Ends the run earlier."""
    save_steps: int = 50
    """Steps between checkpoints."""
    save_total_limit: int = 2
    """Checkpoints kept."""
    logging_steps: int = 10
    """Steps between lines where output is no terminal."""
    on_long: Literal["error", "drop"] = "error"
    """What becomes of a row that does not fit the model."""
    as_chat: bool = False
    """Whether a plain prompt is the question of a conversation."""
    samples_per_prompt: int = 1
    """Completions sampled for each prompt."""
    temperature: float = 1.0
    """Of sampling; log-probs are compared at the same one."""
    max_completion_length: int = 128
    """Most tokens sampled for a completion."""
    sampling_batch_size: int = 32
    """Completions sampled at once; bounds memory, never changes which are sampled."""
    grow_steps: int = 2
    """With `rest`: how often the policy samples a new data set."""
    improve_steps: int = 2
    """With `rest`: how often each is filtered and learned from."""
    threshold_start: float = 0.5
    """With `rest`: the share of completions the first improve step leaves out."""
    threshold_end: float = 0.75
    """With `rest`: the share the last one leaves out."""
    abilities: str | None = "builtin"
    """The ability suites that the policy is asked before and after, separated by commas; `none`
    asks nothing."""
    ability_steps: int = 50
    """Steps between further askings; 0 for none."""
    stop_at_ability_drop: bool = False
    """Whether a clear drop ends the run, with the last weights that had not dropped."""

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "epochs",
            "save_steps",
            "save_total_limit",
            "logging_steps",
            "samples_per_prompt",
            "max_completion_length",
            "sampling_batch_size",
            "grow_steps",
            "improve_steps",
        ):
            require(getattr(self, name) >= 1, name, "1 or more")
        require(self.ability_steps >= 0, "ability_steps", "0 or more")
        asked = self.abilities is not None and self.ability_steps > 0
        require(
            asked or not self.stop_at_ability_drop,
            "stop_at_ability_drop",
            "false, unless the suite is asked every ability_steps",
        )
        require(self.max_steps is None or self.max_steps >= 1, "max_steps", "1 or more")
        require(self.temperature > 0, "temperature", "greater than 0")
        rising = 0 <= self.threshold_start <= self.threshold_end < 1
        require(rising, "threshold_start", "0 or more, at most threshold_end, which is below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that decides what a run computes."""

    run: RunSettings
    trainer: TrainerSettings | RewardTrainerSettings
    unrecorded: frozenset[str] = frozenset()
    """Settings that the run being resumed was started without: they are newer than it."""

    def document(self) -> dict[str, Any]:
        """Return what decides the result beside the algorithm, by name, as JSON."""
        everything = {**dataclasses.asdict(self.trainer), **dataclasses.asdict(self.run)}
        left_out = HARMLESS | {"algorithms"} | self.unrecorded
        kept = {name: value for name, value in everything.items() if name not in left_out}
        document: dict[str, Any] = json.loads(json.dumps(kept))
        return document


def make_settings(
    algorithm: str,
    assignments: Iterable[str],
    fixed: Mapping[str, Any],
    *,
    sampled: bool,
    recorded: Mapping[str, Any] | None = None,
) -> Settings:
    """Settings of `key=value` assignments; `fixed` are the trainer's from other options.

    `sampled` says whether completions come from the policy. `recorded` is the document of the run
    that is resumed: what was a default when it was started stays as it was. Raises `SettingsError`
    naming the key.
    """
    facts = algorithms[algorithm]
    trainer: type[Any] = TrainerSettings if facts.trains_policy else RewardTrainerSettings
    owners: dict[type[Any], dict[str, Any]] = {RunSettings: {}, trainer: {}}
    read_assignments(assignments, owners, {**TRL_RUN_NAMES, **facts.trl_names})
    of_run = {"samples_per_prompt": facts.samples_per_prompt} if sampled else {}
    of_trainer = {**(HELD if facts.trains_policy else {}), **facts.settings}
    unrecorded: set[str] = set()
    if recorded is not None:
        for owner, defaults in zip(owners, (of_run, of_trainer), strict=True):
            kept, newer = earlier_defaults(owner, recorded)
            defaults.update(kept)
            unrecorded |= newer - owners[owner].keys() - fixed.keys()
    run = RunSettings(**{**of_run, **owners[RunSettings]})
    if facts.trains_policy:
        fixed = {**fixed, "algorithms": {facts.objective: algorithm}}
    if owners[trainer].get("lr_scheduler_type", "constant") != "constant":
        # How many steps there are is known with the data; until then any number will do.
        fixed = {**fixed, "max_steps": run.max_steps or 1}
    settings = Settings(
        run=run,
        trainer=trainer(**{**of_trainer, **owners[trainer], **fixed}),
        unrecorded=frozenset(unrecorded),
    )
    if sampled and settings.run.batch_size % settings.run.samples_per_prompt:
        raise SettingsError(
            f"batch_size {settings.run.batch_size} must be a multiple of samples_per_prompt "
            f"{settings.run.samples_per_prompt}: a step takes all completions of a prompt",
            param="batch_size",
        )
    return settings


def read_assignments(
    assignments: Iterable[str],
    owners: Mapping[type[Any], dict[str, Any]],
    other_names: Mapping[str, str],
) -> None:
    """Put the value of each `key=value` into the settings of the class that has the key.

    `other_names` are TRL's. Raises `SettingsError` naming the key.
    """
    for assignment in assignments:
        given, equals, text = (part.strip() for part in assignment.partition("="))
        key = other_names.get(given, given)
        owner = next((c for c in owners if key in field_names(c)), None)
        if not equals or owner is None:
            raise unknown(assignment, key, owners)
        require(key not in owners[owner], key, "set once")
        owners[owner][key] = parse(owner, key, text)


def earlier_defaults(
    owner: type[Any], recorded: Mapping[str, Any]
) -> tuple[dict[str, Any], set[str]]:
    """Return the defaults a recorded run was started with, where they have changed since.

    Also returns the settings that are newer than the run: what is not in its record.
    """
    kept: dict[str, Any] = {}
    newer: set[str] = set()
    for each in dataclasses.fields(owner):
        known = each.name in recorded
        if not known:
            newer.add(each.name)
        before = each.metadata.get(BEFORE, each.default)
        if before is not dataclasses.MISSING and (not known or recorded[each.name] == before):
            kept[each.name] = before
        elif each.name == "objective_weights" and known:
            # Nothing sets it here, and objectives that came later weigh the same.
            kept[each.name] = recorded[each.name]
    return kept, newer


def field_names(owner: type[Any]) -> list[str]:
    """Return what `--set` may name of a settings class."""
    return [f.name for f in dataclasses.fields(owner) if f.name not in OWN_OPTIONS]


def parse(owner: type[Any], key: str, text: str) -> Any:
    """Return the value of a field from text, by the field's type; raises `SettingsError`."""
    from pydantic import TypeAdapter, ValidationError

    wanted = typing.get_type_hints(owner)[key]
    adapter: TypeAdapter[Any] = TypeAdapter(wanted)
    value: Any = None if text.lower() == "none" else text
    try:
        if text.startswith(("[", "{")):
            return adapter.validate_json(text)
        return adapter.validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise SettingsError(f"--set {key}={text}: {problem}", param=key) from error


def unknown(assignment: str, key: str, owners: Iterable[type[Any]]) -> SettingsError:
    """Return the error to raise about an assignment that sets nothing."""
    names = sorted({name for owner in owners for name in field_names(owner)})
    if key in OWN_OPTIONS:
        return SettingsError(f"--set {assignment}: not here; {OWN_OPTIONS[key]}", param=key)
    if "=" not in assignment:
        return SettingsError(f"--set {assignment}: write key=value", param=key)
    close = difflib.get_close_matches(key, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"
    return SettingsError(f"--set {assignment}: no such setting; {hint}", param=key)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInputs:
    """Model, data, rewards and settings of a run."""

    algorithm: str
    model: Path
    """Folder of version 0."""
    model_name: str
    settings: Settings
    samples: Sequence[Any]
    """Samples of the objective, or prompts."""
    dropped: int
    """Rows left out as too long."""
    tokens: PromptTokenizer | None
    """None for the reward model."""
    rewards: Rewards | None
    """None where the data, or a judge, says which answers are better."""
    verdicts: Verdicts | None
    """A judge that compares what the policy samples; None where none does."""
    identity: Mapping[str, Any]
    """What decides the result, as JSON: a run resumes only with the same."""

    @property
    def facts(self) -> Algorithm:
        """Return the algorithm's entry in the registry."""
        return algorithms[self.algorithm]

    @property
    def objective(self) -> Objective:
        """Return what the samples are called in a step."""
        return self.facts.objective
