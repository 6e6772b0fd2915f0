"""A data folder with two signed LoRA versions and the ledger that they came from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from support.learner_events import make_comparison, make_rollout, make_thumb

from tuneloop.learner.ledger.accounting import decisions, steps, versions
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.models.policy import PolicyModel
from tuneloop.learner.release.gate.answers import GateMeasurements, Measures
from tuneloop.learner.release.gate.suites import SuiteComparison
from tuneloop.learner.stats.paired import PairedDifference
from tuneloop.learner.trainer.settings import TrainerSettings
from tuneloop.policies import WeightsKind
from tuneloop.weights.filesystem import FilesystemStore
from tuneloop.weights.manifest import Manifest, ManifestData
from tuneloop.weights.shapes import base_model_sha256
from tuneloop.weights.signing import Signer, Verifier, write_key_pair

MADE = datetime(2026, 1, 1, 12, 30, tzinfo=UTC)


def make_service(model: Path, root: Path) -> Path:
    """Write the folder: version 1 learned from a thumb, 2 from another thumb and a comparison."""
    write_key_pair(root / "keys")
    (root / "model.json").write_text(json.dumps({"name": str(model)}))
    database = Database.at(root / "learner" / "ledger.db")
    names = ("c1", "c2", "c3", "c4")
    recorder.record_rollouts(
        database, [make_rollout(name, group_id="g" if name > "c2" else "") for name in names], 0.0
    )
    given = [make_thumb("f1", "c1"), make_thumb("f2", "c2"), make_comparison("f3", "c3", "c4")]
    recorder.record_feedback(database, [(one, n) for n, one in enumerate(given, 1)], 0.0)
    add_version(root, database, model, 1, {"kto": ["f1"]})
    add_version(root, database, model, 2, {"kto": ["f2"], "dpo": ["f3"]})
    database.close()
    return root


def add_version(
    root: Path, database: Database, model: Path, number: int, used: Mapping[str, Sequence[str]]
) -> None:
    """Train nothing: move each weight a little, and record a step with these samples."""
    policy = PolicyModel(model, seed=number)
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.add_(0.02 * number)
    policy.save_weights(root / f"adapter-{number}", base_model="the learner's name for it")
    taken = {objective: list(ids) for objective, ids in used.items()}
    step = steps.Step(step=number, samples=taken, skipped=False, metrics={})
    steps.commit_steps(database, "policy", [step], f"step-{number}", 0.0)
    manifest = Manifest(
        policy="tuneloop",
        version=number,
        parent=number - 1,
        kind=WeightsKind.LORA,
        base_model="the learner's name for it",
        base_model_sha256=base_model_sha256(model),
        algorithms=tuple(sorted(used)),
        metrics={"loss": 0.6931},
        data=ManifestData(
            samples={objective: len(ids) for objective, ids in used.items()},
            first_step=number - 1,
            last_step=number,
            oldest_feedback_time=MADE,
            newest_feedback_time=MADE,
        ),
        files=(),
        created_time=MADE,
    )
    keys = root / "keys"
    FilesystemStore(
        str(root / "weights"),
        verifier=Verifier.from_file(keys / "manifest_public.pem"),
        signer=Signer.from_file(keys / "manifest_private.pem"),
    ).publish(root / f"adapter-{number}", manifest)
    trainer = asdict(TrainerSettings(lora_rank=8, learning_rate=3e-4, beta_kto=0.2))
    versions.add_version(
        database,
        model="policy",
        version=number,
        policy="tuneloop",
        parent=number - 1,
        first_step=number - 1,
        last_step=number,
        manifest="{}",
        created_time=MADE,
        settings=json.dumps({"batch_size": 16, "trainer": trainer}),
    )


def examine(root: Path, number: int) -> None:
    """Record that the gate passed a version, with figures of its own."""
    numbers: dict[str, Any] = asdict(
        GateMeasurements(
            change=0.0123,
            change_norm=1.0,
            stable_version=1,
            kl=0.045,
            suites=(
                SuiteComparison(
                    suite="builtin",
                    items=40,
                    mean=0.61,
                    spread=0.2,
                    stable=None,
                    anchor=PairedDifference(
                        pairs=40, difference=-0.012, low=-0.03, high=0.006, confidence=0.95
                    ),
                ),
            ),
            candidate=Measures(
                answers=12,
                length=31.5,
                repetition=0.02,
                empty=0.0,
                leaked=0.0,
                kl=None,
                thought_length=90.0,
            ),
        )
    )
    database = Database.at(root / "learner" / "ledger.db")
    decisions.record_decision(
        database,
        version=number,
        kind="gate",
        outcome="pass",
        numbers=numbers,
        reason="within all bounds",
        actor="gate",
        now=MADE.timestamp(),
    )
    database.close()


def quarantine(root: Path, number: int) -> None:
    """Take a version back."""
    from tuneloop.learner.ledger.accounting import promotions

    database = Database.at(root / "learner" / "ledger.db")
    promotions.quarantine_versions(
        database,
        promotions.QuarantineRange(
            first=number,
            last=number,
            reason="it answers | too briefly",
            numbers={},
            actor="ann",
            kind="quarantine",
        ),
        MADE.timestamp(),
    )
    database.close()
