"""The loop on real trainers: versions fit the base model, a restart changes nothing."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.learner_parts import Parts

from tuneloop.learner.ledger.accounting import versions
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.settings import TrainerSettings
from tuneloop.policies import WeightsKind
from tuneloop.weights.shapes import check_adapter, check_full


def with_policy(parts: Parts, model: Path, kind: WeightsKind) -> Parts:
    settings = TrainerSettings(kind=kind, learning_rate=1e-3, threads=1)
    parts.training_run.trainer = PolicyTrainer(model, settings, base_model="tiny")
    return parts


async def published(parts: Parts, version: int) -> Path:
    manifest = parts.store.manifest("tuneloop", version)
    assert manifest.metrics["kto_loss"] > 0
    found = await parts.bus.routing("policy.tuneloop.stable")
    assert found is not None
    return parts.store.fetch(versions.get_version(parts.database, "policy", version).reference)[1]


@pytest.mark.parametrize("kind", list(WeightsKind))
async def test_versions_fit_the_base_model_and_a_restart_changes_no_bit(
    tmp_path: Path, tiny_policy: Path, kind: WeightsKind
) -> None:
    folders = []
    for name, restarts in (("straight", False), ("restarted", True)):
        parts = with_policy(Parts(folder=tmp_path / name), tiny_policy, kind)
        parts.thumbs(0, 8)
        await parts.turn()
        if restarts:
            parts = with_policy(parts.again(), tiny_policy, kind)
            parts.training_run.restore()
        await parts.turn()
        folders.append(await published(parts, 1))
    if kind is WeightsKind.LORA:
        check_adapter(tiny_policy, folders[0], max_rank=32)
    else:
        check_full(tiny_policy, folders[0])
    (file,) = (path.name for path in folders[0].glob("*.safetensors"))
    straight, restarted = (load_file(folder / file) for folder in folders)
    assert straight.keys() == restarted.keys()
    assert all(bool((straight[key] == restarted[key]).all()) for key in straight)
