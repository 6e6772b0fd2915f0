"""Publishing a version: saved, stored, announced, released; each stage is safe to repeat.

The ledger records how far a version got, so a crash or a bus that is down only delays it. The
manifest is written once, when the weights are saved, and has the same bytes at every attempt.
"""

import asyncio
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from tuneloop import tracing
from tuneloop.backoff import Backoff
from tuneloop.bus import Bus
from tuneloop.bus.subjects import weights_published
from tuneloop.errors import Conflict, Overloaded, Unavailable, WeightsRefused
from tuneloop.host import steady_time
from tuneloop.learner import metrics, trace_links
from tuneloop.learner.files import keep_only, write_folder
from tuneloop.learner.ledger.accounting import effects, lineage, steps, versions
from tuneloop.learner.ledger.accounting.versions import Version
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.queue import agreement
from tuneloop.learner.release.promotion import Promotion
from tuneloop.learner.samples import ModelRole
from tuneloop.learner.settings import LearnerSettings
from tuneloop.learner.training_run import TrainingRun
from tuneloop.policies import WeightsKind
from tuneloop.weights.finite import check_finite
from tuneloop.weights.manifest import Manifest, ManifestData, from_json, to_json
from tuneloop.weights.store import WeightStore
from tuneloop.wire import encode_weights_published

logger = logging.getLogger("tuneloop.learner.release")
FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """What version 0 of a model is, as manifests name it."""

    name: str
    sha256: str
    kind: WeightsKind


class Publisher:
    """Makes versions of training runs and publishes them to the store and the routing table."""

    def __init__(
        self,
        *,
        bus: Bus,
        store: WeightStore,
        database: Database,
        release: Promotion,
        outbox: Path,
        base_models: Mapping[str, BaseModel],
        trained_with: Mapping[str, str] = MappingProxyType({}),
        before_publishing: Callable[[int, Path], None] | None = None,
        clock: Callable[[], float] = steady_time,
    ) -> None:
        """`trained_with` has the settings of each model's training, as JSON.

        `before_publishing` is called with a version of the policy whose weights were just saved,
        and their folder.
        """
        self._bus = bus
        self._store = store
        self._database = database
        self._release = release
        self._outbox = outbox
        self._base_models = base_models
        self._trained_with = trained_with
        self._before_publishing = before_publishing
        self._clock = clock
        self._retry_time = 0.0
        self._backoff = Backoff(FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS)

    def save_version(self, training_run: TrainingRun, last_metrics: Mapping[str, float]) -> int:
        """Save the training run's weights as its next version; blocks.

        The checkpoint of its last steps may be written beside the version's files; all of them are
        committed before the version is recorded. Returns the version's number; from then on it
        survives a crash. Raises `WeightsRefused` if a weight is not finite: such weights never
        leave the learner.
        """
        version = self._next_number(training_run)
        folder = self._write_weights(training_run, version)
        if training_run.model == ModelRole.POLICY and self._before_publishing is not None:
            # First, so that every recorded version can be examined.
            self._before_publishing(version, folder)
        training_run.commit()
        learned = lineage.learned_from(self._database, training_run.model, training_run.step)
        created_time = datetime.fromtimestamp(self._clock(), UTC)
        base = self._base_models[training_run.model]
        figures = {name: v for name, v in last_metrics.items() if math.isfinite(v)}
        if training_run.model == ModelRole.REWARD_MODEL:
            # By these the reward service decides whether to use the version.
            figures["labels"] = float(steps.used_samples(self._database, ModelRole.REWARD_MODEL))
            accuracy = agreement.ranking_accuracy(self._database)
            if accuracy is not None:
                figures["ranking_accuracy"] = accuracy
        manifest = Manifest(
            policy=training_run.policy,
            version=version,
            parent=training_run.parent,
            kind=base.kind,
            base_model=base.name,
            base_model_sha256=base.sha256,
            algorithms=tuple(sorted(learned.samples)),
            metrics=figures,
            data=ManifestData(
                samples=learned.samples,
                first_step=training_run.published_step,
                last_step=training_run.step,
                oldest_feedback_time=learned.oldest_feedback_time,
                newest_feedback_time=learned.newest_feedback_time,
            ),
            files=(),
            created_time=created_time,
        )
        versions.add_version(
            self._database,
            model=training_run.model,
            version=version,
            policy=training_run.policy,
            parent=training_run.parent,
            first_step=training_run.published_step,
            last_step=training_run.step,
            manifest=to_json(manifest).decode(),
            created_time=created_time,
            settings=self._trained_with.get(training_run.model, "{}"),
        )
        self._record_effects(training_run, version)
        training_run.mark_published(version)
        return version

    def _write_weights(self, training_run: TrainingRun, version: int) -> Path:
        folder = self._folder(training_run.model, version)
        write_folder(folder, training_run.trainer.save_weights)
        try:
            check_finite(folder)
        except WeightsRefused:
            shutil.rmtree(folder)
            raise
        return folder

    def _record_effects(self, training_run: TrainingRun, version: int) -> None:
        changed = training_run.effects.measure(training_run.trainer.logprobs)
        effects.add_effects(self._database, version, changed)

    def _next_number(self, training_run: TrainingRun) -> int:
        newest = versions.newest_version(self._database, training_run.model)
        try:
            # A store may hold versions of a ledger that was lost; do not overwrite them.
            newest = max([newest, *self._store.versions(training_run.policy)])
        except Unavailable as error:
            logger.warning("the weight store cannot be asked for its versions: %s", error)
        return newest + 1

    def drop_unfinished(self, model: str) -> bool:
        """At start, drop saved versions whose files are gone, and files no version needs.

        Returns whether a version was dropped.
        """
        saved = [v for v in versions.unfinished(self._database, model) if v.stage == "saved"]
        lost = [v for v in saved if not self._folder(model, v.version).is_dir()]
        for version in reversed(lost):
            logger.error("%s: the files of version %d are gone", model, version.version)
            versions.drop_version(self._database, model, version.version)
        kept = {f"{v.version:08d}" for v in saved if v not in lost}
        keep_only(self._outbox / model, kept)
        return bool(lost)

    async def publish_pending(self, training_run: TrainingRun) -> bool:
        """Advance every unfinished version of a run; return False if something must be retried.

        After a failure this does nothing until a delay has passed.
        """
        if time.monotonic() < self._retry_time:
            return False
        try:
            for version in await asyncio.to_thread(
                versions.unfinished, self._database, training_run.model
            ):
                await self._bring_on(version)
        except (Unavailable, Overloaded) as error:
            metrics.publish_failures.labels(training_run.model).inc()
            delay = self._backoff.next_delay()
            logger.warning("publishing is held up, next try in %.0f s: %s", delay, error)
            self._retry_time = time.monotonic() + delay
            return False
        except (Conflict, WeightsRefused) as error:
            metrics.publish_failures.labels(training_run.model).inc()
            logger.error("%s: a version was refused by the store: %s", training_run.model, error)
            await asyncio.to_thread(self._drop_saved, training_run)
            return False
        self._backoff.reset()
        return True

    async def _bring_on(self, version: Version) -> None:
        model, number = version.model, version.version
        made = trace_links.span_of_version(model, number)
        attributes: tracing.Attributes = {
            "tuneloop.model": model,
            "tuneloop.policy_version": number,
        }
        with tracing.span("publish version", kind="producer", parent=made, attributes=attributes):
            await self._advance(version)

    async def _advance(self, version: Version) -> None:
        model, number, stage = version.model, version.version, version.stage
        if stage == "saved":
            await asyncio.to_thread(self._send_to_store, version)
            version = await asyncio.to_thread(versions.get_version, self._database, model, number)
            stage = "stored"
        if stage == "stored":
            await self._bus.publish(
                weights_published(version.policy),
                encode_weights_published(version.reference, version.created_time),
                event_id=f"weights-{version.policy}-{number}",
            )
            await asyncio.to_thread(versions.mark_stage, self._database, model, number, "announced")
        released = await self._release.offer(model, number)
        await asyncio.to_thread(versions.mark_stage, self._database, model, number, "released")
        metrics.versions_published.labels(model).inc()
        metrics.policy_version.labels(model).set(number)
        logger.info(
            "%s: version %d published%s", model, number, "" if released else " as a candidate"
        )

    def _send_to_store(self, version: Version) -> None:
        folder = self._folder(version.model, version.version)
        manifest = from_json(version.manifest.encode())
        reference = self._store.publish(folder, manifest)
        stored = self._store.manifest(version.policy, version.version)
        versions.mark_stored(
            self._database, version.model, version.version, reference, to_json(stored).decode()
        )
        shutil.rmtree(folder)

    def _drop_saved(self, training_run: TrainingRun) -> None:
        for version in reversed(versions.unfinished(self._database, training_run.model)):
            if version.stage == "saved":
                versions.drop_version(self._database, training_run.model, version.version)
                shutil.rmtree(self._folder(training_run.model, version.version), ignore_errors=True)
        training_run.mark_dropped()

    def _folder(self, model: str, version: int) -> Path:
        return self._outbox / model / f"{version:08d}"


OF_THE_POLICY = (
    "batch_size",
    "min_batch_size",
    "replay_fraction",
    "policy_gradient",
    "policy_gradient_batch_size",
    "uninformative_scores",
    "reward_metric",
    "reward_metric_higher_is_better",
    "max_staleness",
    "feedback_max_age_days",
    "samples_per_prompt",
    "prompt_temperature",
    "publish_every_steps",
    "publish_every_seconds",
    "release",
)


OF_THE_REWARD_MODEL = ("reward_batch_size", "reward_replay_fraction", "feedback_max_age_days")


def trained_with(settings: LearnerSettings) -> Mapping[str, str]:
    """JSON by model."""
    given = settings.model_dump(mode="json")
    guards = given["guards"]
    policy = {name: given[name] for name in OF_THE_POLICY} | {"guards": guards}
    reward_model = {name: given[name] for name in OF_THE_REWARD_MODEL} | {"guards": guards}
    return {
        "policy": _json(policy | {"trainer": asdict(settings.trainer())}),
        "reward_model": _json(reward_model | {"trainer": asdict(settings.reward_trainer())}),
    }


def _json(document: Mapping[str, object]) -> str:
    return json.dumps(document, sort_keys=True, default=str)
