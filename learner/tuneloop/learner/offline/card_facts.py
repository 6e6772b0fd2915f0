"""What is recorded of a version, for its model card: in manifests, the ledger, a run's folder."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuneloop.errors import InvalidRequest, NotFound
from tuneloop.learner.ledger.accounting import decisions, lineage, versions
from tuneloop.learner.ledger.accounting.decisions import Decision
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.reports import evaluations
from tuneloop.learner.offline.model_card import CARD_NAME, UNKNOWN, ModelCard
from tuneloop.learner.offline.run.folder import read_json
from tuneloop.learner.offline.sources.ledger_rows import is_ledger, open_ledger
from tuneloop.learner.offline.versions import VersionFolder
from tuneloop.learner.samples import ModelRole
from tuneloop.learner.trainer.algorithms import algorithms
from tuneloop.learner.trainer.settings import TrainerSettings
from tuneloop.models.catalog import catalog
from tuneloop.models.resolve import HUB_ID
from tuneloop.policies import ReleaseState, WeightsKind
from tuneloop.weights.manifest import Manifest

COMMON_SETTINGS = (
    "kind",
    "lora_rank",
    "lora_alpha",
    "learning_rate",
    "lr_scheduler_type",
    "batch_size",
    "epochs",
    "max_steps",
    "seed",
)
"""Shown of every training; beside them those that its algorithms name."""
WARNINGS = {
    ReleaseState.QUARANTINED: "this version was quarantined and does not serve",
    ReleaseState.CANDIDATE: "this version is a candidate: nobody has decided yet that it may serve",
    ReleaseState.CANARY: "this version is on trial: it serves a part of the requests",
}


def make_card(version: VersionFolder) -> ModelCard:
    """Return the card of a version, with everything that is recorded of it."""
    base = version.base_name or version.name
    card = ModelCard(
        title=version.title,
        base_model=base,
        base_is_public=HUB_ID.fullmatch(base) is not None and not Path(base).exists(),
        license=license_of(base, version.base),
        facts={"base model": f"`{base}`"},
    )
    if version.manifest is not None:
        return of_service(card, version.manifest, version.data_dir)
    folder = version.folder
    run = read_json((folder.parent if folder.name == "adapter" else folder) / "run.json")
    return card if run is None else of_run(card, run)


def license_of(name: str, folder: Path) -> dict[str, str]:
    """Return what a base model says of its licence: in the catalog, its card, its configuration."""
    if name in catalog:
        return {"license": catalog[name].license.lower()}
    for place in (Path(name).expanduser(), hub_copy(name), folder):
        if place is None or not place.is_dir():
            continue
        for found in (card_metadata(place / CARD_NAME), read_json(place / "config.json")):
            if found is not None and isinstance(found.get("license"), str):
                names = ("license", "license_name", "license_link")
                return {key: str(found[key]) for key in names if found.get(key)}
    return {"license": UNKNOWN}


def hub_copy(name: str) -> Path | None:
    """Return the folder of a hub model in the hub's cache; nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache

    hub = HUB_ID.fullmatch(name)
    found = None if hub is None else try_to_load_from_cache(hub[1], "config.json", revision=hub[2])
    return Path(found).parent if isinstance(found, str) else None


def card_metadata(path: Path) -> dict[str, Any] | None:
    """Return the front matter of a model card; None where there is none."""
    from huggingface_hub.repocard import metadata_load

    try:
        found = metadata_load(path)
    except Exception:  # No file, or none that is YAML: somebody else wrote it.
        return None
    return found if isinstance(found, dict) else None


def of_service(card: ModelCard, manifest: Manifest, data_dir: Path | None) -> ModelCard:
    """Add what the manifest says, and the ledger where the data folder has it."""
    data = manifest.data
    facts: dict[str, Any] = {
        **card.facts,
        "policy": f"`{manifest.policy}`",
        "version": manifest.version,
        "grew from version": manifest.parent,
        "made": manifest.created_time,
        "optimizer steps": f"{data.last_step:,} in all, "
        f"{data.last_step - data.first_step:,} since its parent",
        "weights": manifest.kind,
    }
    times = {
        "oldest feedback since its parent": data.oldest_feedback_time,
        "newest feedback": data.newest_feedback_time,
    }
    card = replace(
        card,
        origin="on what its users said",
        facts=facts,
        algorithms=manifest.algorithms,
        new_samples=data.samples,
        data={name: time for name, time in times.items() if time is not None},
        evaluation=[
            (f"training, last step: `{name}`", f"{value:.4g}")
            for name, value in sorted(manifest.metrics.items())
            if name in ("loss", "kl", "reward")
        ],
    )
    try:
        database = open_ledger(str(data_dir))
    except InvalidRequest:
        return card
    try:
        return of_ledger(card, database, manifest)
    except NotFound:
        # The ledger was lost and begun again.
        return card
    finally:
        database.close()


def of_ledger(card: ModelCard, database: Database, manifest: Manifest) -> ModelCard:
    """Add what the ledger knows; raises `NotFound` where it does not know the version."""
    number = manifest.version
    recorded = recorded_version(database, manifest)
    counts = lineage.count_data(database, recorded.model, number)
    decided = decisions.of_version(database, recorded.model, number)
    is_policy = recorded.model == ModelRole.POLICY
    settings = json.loads(recorded.settings)
    trained = {**settings, **settings.get("trainer", {})}
    names = trained.get("algorithms", {})
    used = [names.get(objective, objective) for objective in sorted(counts.samples)]
    return replace(
        card,
        warnings=[*warnings_of(recorded.state, decided)],
        facts={**card.facts, "state": recorded.state},
        algorithms=used or card.algorithms,
        samples=counts.samples,
        feedback=counts.feedback,
        hyperparameters=main_settings(trained, used or card.algorithms),
        evaluation=[
            *(gate_figures(decided) if is_policy else ()),
            *decision_lines(decided),
            *(eval_figures(database, number) if is_policy else ()),
            *card.evaluation,
        ],
    )


def recorded_version(database: Database, manifest: Manifest) -> versions.Version:
    """Return the ledger's record of a manifest's version; raises `NotFound` where it has none."""
    for role in ModelRole:
        with suppress(NotFound):
            found = versions.get_version(database, role, manifest.version)
            if found.policy == manifest.policy:
                return found
    raise NotFound(f"no version {manifest.version} of {manifest.policy}", param="weights")


def warnings_of(state: ReleaseState, decided: Sequence[Decision]) -> Iterator[str]:
    """Say why a version should not be used, if there is a reason."""
    if state not in WARNINGS:
        return
    reasons = [one.reason for one in decided if one.kind in ("quarantine", "rebuild")]
    because = f": {reasons[-1]}" if reasons and state is ReleaseState.QUARANTINED else ""
    yield f"{WARNINGS[state]}{because}."


def decision_lines(decided: Sequence[Decision]) -> Iterator[tuple[str, str]]:
    """Return what was decided about a version beside the gate's verdict, oldest first."""
    for one in decided:
        if one.kind in ("canary", "promote", "roll back", "quarantine", "rebuild"):
            reason = f": {one.reason}" if one.reason else ""
            yield f"{one.kind}, {one.time:%Y-%m-%d}", f"{one.outcome}{reason}"


def gate_figures(decided: Sequence[Decision]) -> Iterator[tuple[str, str]]:
    """Return the newest verdict of the gate, and what it measured."""
    verdicts = [one for one in decided if one.kind == "gate"]
    if not verdicts:
        yield "gate", "did not examine this version"
        return
    newest = verdicts[-1]
    found = newest.numbers
    yield f"gate, {newest.time:%Y-%m-%d}", f"{newest.outcome}: {newest.reason}"
    if found.get("kl") is not None:
        yield "KL to the base model", f"{found['kl']:.3g} nats per token"
    if found.get("change") is not None:
        yield "change of the weights", f"{100 * found['change']:.3g} % of the base weights' norm"
    for suite in found.get("suites", ()):
        name = f"ability suite `{suite['suite']}`, {suite['items']} items"
        yield name, f"{suite['mean']:.4g}"
        for against, other in (("version 0", "anchor"), (stable_of(found), "stable")):
            if suite.get(other) is not None:
                yield f"`{suite['suite']}` against {against}", difference(suite[other])
    answers = found.get("candidate")
    if answers is not None:
        yield "length of its answers", f"{answers['length']:.4g} tokens"
        if answers.get("thought_length"):
            yield "length of the thoughts before them", f"{answers['thought_length']:.4g} tokens"
        for name in ("repetition", "empty", "leaked"):
            yield f"share of answers: {name}", f"{answers[name]:.3g}"
    if found.get("reward") is not None:
        yield f"reward against {stable_of(found)}", difference(found["reward"])


def stable_of(found: Mapping[str, Any]) -> str:
    """Return the name of the version that the gate compared with."""
    return f"version {found.get('stable_version', 0)}"


def difference(found: Mapping[str, Any]) -> str:
    """Return a paired difference with its interval."""
    percent = f"{100 * found['confidence']:.4g} %"
    return (
        f"{found['difference']:+.3g} ({percent} interval {found['low']:+.3g} to "
        f"{found['high']:+.3g}, {found['pairs']} pairs)"
    )


def eval_figures(database: Database, number: int) -> Iterator[tuple[str, str]]:
    """Return how a version answered the eval prompts, if it was asked."""
    found = evaluations.evaluate(database, number)
    if found is None:
        return
    yield "eval prompts answered", f"{found.prompts:,}"
    if found.reward is not None:
        margin = "" if found.reward.margin is None else f" ± {found.reward.margin:.2g}"
        yield "mean reward of these answers", f"{found.reward.value:.3g}{margin}"


def main_settings(given: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the settings to show of a training with these algorithms."""
    wanted = [*COMMON_SETTINGS]
    for one in (algorithms[name] for name in names if name in algorithms):
        wanted += [*one.trl_names.values(), *one.settings]
    found = {name: given[name] for name in dict.fromkeys(wanted) if given.get(name) is not None}
    if "learning_rate" not in found and "kind" in found:
        usual = TrainerSettings(kind=WeightsKind(found["kind"])).optimizer.learning_rate
        found["learning_rate"] = usual
    return found


def of_run(card: ModelCard, run: Mapping[str, Any]) -> ModelCard:
    """Add what a run of `tuneloop train` left in its `run.json`."""
    algorithm = str(run["algorithm"])
    judged = {"rewards": ", ".join(run.get("rewards", ())), "judge": judge_of(run)}
    return replace(
        card,
        origin="by `tuneloop train`",
        facts={
            **card.facts,
            "optimizer steps": f"{run['step']:,}",
            "weights": run["settings"].get("kind", "full"),
        },
        algorithms=[algorithm],
        data={
            "data": data_of(str(run["data"])),
            "rows": f"{run.get('rows', 0):,}",
            **{name: value for name, value in judged.items() if value},
        },
        hyperparameters=main_settings(run["settings"], [algorithm]),
        evaluation=[*run_figures(run)],
    )


def data_of(reference: str) -> str:
    """Return the name of a run's data, without the folders it lay in."""
    if is_ledger(reference):
        return "the feedback in a service's ledger"
    return f"`{reference if HUB_ID.fullmatch(reference) else Path(reference).name}`"


def judge_of(run: Mapping[str, Any]) -> str:
    """Return the model that judged, if one did, without the address of its endpoint."""
    return str(run.get("judge") or "").partition(" at ")[0]


def run_figures(run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Return the ability suite after a run, and the run's own figures at its ends."""
    for row in run.get("abilities", [])[-1:]:
        yield "ability suite", f"{row['figures']['value']:.4g}"
        if row.get("change") is not None:
            yield "ability suite against before the run", difference(row["change"]["value"])
    for name, pair in run.get("metrics", {}).items():
        if name in ("loss", "reward", "kl", "accuracy", "preference_accuracy"):
            ends = f"{pair['first']:.4g} in the first tenth, {pair['last']:.4g} in the last"
            yield f"training: `{name}`", ends
