"""What a learner works with: its ledger, the event bus and the weight store."""

from collections.abc import Mapping

from tuneloop.bus import Bus
from tuneloop.bus.jetstream import JetStreamBus
from tuneloop.learner.app.models import describe_base_models
from tuneloop.learner.files import fingerprint
from tuneloop.learner.intake.consumers import IntakeConsumer, claim_events, make_consumers
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.events.sample_rules import CreditRule, SampleRules, SessionCredit
from tuneloop.learner.ledger.queue import ref_logprobs
from tuneloop.learner.release.publisher import BaseModel
from tuneloop.learner.samples import ModelRole
from tuneloop.learner.settings import LearnerSettings
from tuneloop.weights.filesystem import FilesystemStore
from tuneloop.weights.signing import Signer, Verifier


def open_ledger(settings: LearnerSettings) -> Database:
    """Open the ledger; raises `SettingsError`, `FailedPrecondition`, `Unavailable`."""
    if settings.ledger_url is None:
        return Database.at(settings.data_dir / "ledger.db")
    return Database(settings.ledger_url.get_secret_value(), writer=True)


def prepare_ledger(settings: LearnerSettings, database: Database) -> Mapping[str, BaseModel]:
    """Check that the ledger belongs to these settings, and bring what it caches up to date.

    Returns the base models that they name.
    """
    base_models = describe_base_models(settings)
    database.belongs_to(
        {
            "policy": settings.policy,
            "base model": base_models[ModelRole.POLICY].sha256,
            "kind of weights": settings.weights_kind.value,
        }
    )
    ref_logprobs.set_base_model(database, fingerprint(settings.model))
    recorder.adopt_rewards(database, settings.scored_objective)
    return base_models


def open_store(settings: LearnerSettings) -> FilesystemStore:
    """Return the store that versions are published to."""
    return FilesystemStore(
        settings.weights_uri,
        verifier=Verifier.from_file(settings.verify_key_file),
        signer=Signer.from_file(settings.signing_key_file),
        cache_dir=settings.data_dir / "weights-cache",
    )


async def connect_bus(settings: LearnerSettings, database: Database) -> Bus:
    """Connect to the bus; raises `FailedPrecondition` if its events go to another ledger."""
    bus = await JetStreamBus.connect(
        settings.nats_url,
        name="tuneloop-learner",
        access=settings.nats_access,
        replicas=settings.nats_replicas,
    )
    await claim_events(bus, settings.policy, make_intakes(settings, database))
    return bus


def make_intakes(settings: LearnerSettings, database: Database) -> list[IntakeConsumer]:
    """Make the consumers that record events."""
    return make_consumers(
        database,
        settings.policy,
        rules=sample_rules(settings),
        instead_of=settings.take_over,
    )


def sample_rules(settings: LearnerSettings) -> SampleRules:
    """Return what makes samples by these settings."""
    credit = SessionCredit(settings.session_credit)
    return SampleRules(
        scored_objective=settings.scored_objective,
        all_scores_count=settings.uninformative_scores,
        reward_metric=settings.reward_metric,
        comments_train=settings.comments == "train",
        signals_count=settings.signals == "reward_model",
        follow_ups_noted=settings.follow_ups == "judged",
        credit=CreditRule(credit=credit, discount=settings.session_discount),
    )
