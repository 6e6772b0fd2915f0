"""Signals from the client to a version of the reward model, and out again when their user is."""

import json
import math
from pathlib import Path

import pytest
from support.gateway_fakes import IDS
from support.gateway_stack import Stack, running_gateway
from support.learner_events import make_rollout
from support.learner_parts import Parts
from support.waiting import until

from tuneloop.bus import subjects
from tuneloop.client import AsyncClient
from tuneloop.learner.batching.batcher import RewardBatcher
from tuneloop.learner.ledger.accounting import downstream, forget_user, versions
from tuneloop.learner.ledger.events.signal_rules import sample_id_of
from tuneloop.learner.ledger.queue import ready
from tuneloop.learner.release.publisher import BaseModel, Publisher
from tuneloop.learner.service.forget_user import ForgetUser
from tuneloop.learner.service.signal_report import report
from tuneloop.learner.trainer.reward_model import RewardTrainer
from tuneloop.learner.trainer.settings import RewardTrainerSettings
from tuneloop.learner.training_run import TrainingRun
from tuneloop.policies import WeightsKind
from tuneloop.wire import encode_rollout_generated

OPTIONS = {"signals": "reward_model", "reward_batch_size": 80, "batch_size": 80}
RATERS = [f"rater-{n}" for n in range(8)]


async def ask(stack: Stack, client: AsyncClient, parts: Parts, user: str) -> str:
    """Ask as a user; the rollout comes as generation would send it. Return the completion's id."""
    completion = await client.chat("Hi", user=user)
    user_hash = IDS.user_hash("default", user)
    rollout = make_rollout(completion.id, user=user_hash, text=completion.text)
    subject = subjects.rollout_generated("tuneloop", user_hash)
    event = encode_rollout_generated(rollout)
    await parts.bus.publish(subject, event, event_id=f"rollout-{completion.id}")
    return completion.id


async def behave(stack: Stack, client: AsyncClient, parts: Parts) -> list[str]:
    """Raters copy what they like and abandon the rest; Ann copies three answers and says nothing.

    Return the completions that she copied.
    """
    for number in range(80):
        user, likes = RATERS[number % 8], number // 8 % 2 == 0
        completion = await ask(stack, client, parts, user)
        await client.signal(completion, "copied" if likes else "abandoned", user=user)
        await client.thumb(completion, "up" if likes else "down", user=user)
    copied = [await ask(stack, client, parts, "ann") for _ in range(3)]
    for completion in copied:
        receipt = await client.signal(completion, "copied")
        assert receipt.status == "accepted"
        await client.signal(completion, "copied")
    return copied


def reward_run(parts: Parts, model: Path) -> tuple[TrainingRun, RewardBatcher]:
    """The reward model in training, as the learner has it."""
    run = TrainingRun(
        model="reward_model",
        policy="tuneloop-reward-model",
        trainer=RewardTrainer(model, RewardTrainerSettings(threads=1, full_step=80.0)),
        database=parts.database,
        checkpoints=parts.settings.data_dir / "checkpoints" / "reward_model",
        keep_checkpoints=2,
        clock=parts.clock,
    )
    run.restore()
    return run, RewardBatcher(parts.database, parts.settings, clock=parts.clock)


def publish(parts: Parts, run: TrainingRun) -> int:
    publisher = Publisher(
        bus=parts.bus,
        store=parts.store,
        database=parts.database,
        release=parts.release,
        outbox=parts.settings.data_dir / "outbox",
        base_models={"reward_model": BaseModel(name="tiny", sha256="00", kind=WeightsKind.FULL)},
        clock=parts.clock,
    )
    return publisher.save_version(run, {})


async def test_what_ann_copies_reaches_a_version_and_goes_with_her(
    tmp_path: Path, tiny_reward_model: Path
) -> None:
    parts = Parts(folder=tmp_path, options=OPTIONS)
    ann = IDS.user_hash("default", "ann")
    async with running_gateway(bus=parts.bus) as stack, parts.taking_in():
        async with AsyncClient(stack.url) as client:
            copied = await behave(stack, client, parts)
        counts = {"rollouts": 83, "feedback": 80, "signals": 83}
        await until(lambda: counts.items() <= forget_user.row_counts(parts.database).items())
    own = {sample_id_of(completion, ann) for completion in copied}

    found = {kind.kind: kind for kind in report(parts.database).kinds}
    assert (found["copied"].rated, found["copied"].used) == (40, True)
    assert (found["copied"].up_with.value, found["copied"].up_without.value) == (1.0, 0.0)
    assert not found["edited"].used

    run, batcher = reward_run(parts, tiny_reward_model)
    batch = run.next_batch(batcher)
    assert batch is not None
    assert {len(batch.samples["reward_model"]), *batch.samples} == {80, "reward_model"}
    parts.clock.now += 301  # Ann has been silent for long enough.
    batch = run.next_batch(batcher)
    assert batch is not None
    assert {sample.sample_id for sample in batch.samples["signals"]} == own
    assert all(sample.chance > 0.8 for sample in batch.samples["signals"])
    result = run.train(batch)
    # A new head loses ln 2; of a user whom no judgement has made known, a quarter counts.
    assert result.metrics["signal_loss"] == pytest.approx(math.log(2) / 4)

    # The process is killed before the step is committed: nothing was used.
    parts = parts.again()
    run, batcher = reward_run(parts, tiny_reward_model)
    batch = run.next_batch(batcher)
    assert batch is not None
    assert {sample.sample_id for sample in batch.samples["signals"]} == own
    run.train(batch)
    version = publish(parts, run)
    manifest = versions.get_version(parts.database, "reward_model", version).manifest
    assert json.loads(manifest)["data"]["samples"] == {"reward_model": 80, "signals": 3}
    assert ready.counts(parts.database, "signals").used == 3

    # The policy learns from thumbs alone.
    judged = parts.batches.form(parts.training_run).batch
    assert judged is not None
    assert set(judged.samples) == {"kto"}

    hers = downstream.of_user(parts.database, ann)
    assert (hers.signals, hers.feedback, hers.reward_model.direct) == (3, 0, (version,))
    gone = await ForgetUser(parts.database, parts.bus, parts.loop).forget_user(ann)
    assert list(gone.reward_model_versions) == [version]
    assert ready.counts(parts.database, "signals").used == 0
    assert downstream.of_user(parts.database, ann).signals == 0
    left = parts.bus.streams[subjects.SIGNALS].events
    assert len(left) == 80
    assert not any(ann in event.subject for event in left)
