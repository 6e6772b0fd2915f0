"""The loop on a trainer that counts: batches, commits, versions, and every place it can be cut."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import select
from support.learner_events import make_comparison, make_rollout, make_score
from support.learner_parts import Parts
from support.waiting import until

from tuneloop.bus.subjects import stable_policy_key
from tuneloop.errors import Unavailable
from tuneloop.learner import loop as loop_module
from tuneloop.learner.fault_search import FaultSearch
from tuneloop.learner.ledger.accounting import lineage, promotions, steps, versions
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.events.sample_rules import SampleRules
from tuneloop.learner.ledger.queue import ready
from tuneloop.learner.ledger.schema import samples
from tuneloop.learner.release import publisher
from tuneloop.policies import ReleaseState
from tuneloop.v1 import generation_pb2
from tuneloop.wire import decode_weights_published, weights_from_proto


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(folder=tmp_path)


def count_of(name: str, labels: dict[str, str] | None = None) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def learned_by(parts: Parts, version: int) -> list[str]:
    """What the weights of a published version were trained on."""
    _, folder = parts.store.fetch(versions.get_version(parts.database, "policy", version).reference)
    data = (folder / "adapter_model.safetensors").read_bytes()
    return list(json.loads(json.loads(data[8:])["__metadata__"]["learned"]))


async def test_a_full_batch_steps_at_once_and_a_small_one_after_a_wait(parts: Parts) -> None:
    parts.thumbs(0, 5)
    assert await parts.turn()
    assert parts.used() == {"f0": 1, "f1": 1, "f2": 1, "f3": 1}
    assert not await parts.turn()
    parts.clock.now += 5
    assert await parts.turn()
    assert parts.used()["f4"] == 2


async def test_a_clock_set_back_before_a_restart_holds_no_sample_up(parts: Parts) -> None:
    parts.thumbs(0, 1)
    parts.clock.now -= 3600
    assert await parts.turn()
    assert parts.used() == {"f0": 1}


async def test_a_version_is_stored_announced_and_routed(parts: Parts) -> None:
    parts.thumbs(0, 8)
    await parts.turn()
    await parts.turn()
    assert parts.store.versions("tuneloop") == [1]
    manifest = parts.store.manifest("tuneloop", 1)
    assert manifest.parent == 0
    assert manifest.data.samples == {"kto": 8}
    assert (manifest.data.first_step, manifest.data.last_step) == (0, 2)
    assert manifest.algorithms == ("kto",)
    assert manifest.metrics["kl"] == 0.1
    entry = await parts.bus.routing(stable_policy_key("tuneloop"))
    assert entry is not None
    reference = weights_from_proto(generation_pb2.WeightsReference.FromString(entry.value))
    event = await parts.bus.last("tuneloop.v1.tuneloop.weights.published")
    assert event is not None
    assert decode_weights_published(event.data) == reference
    assert learned_by(parts, 1) == [f"kto:f{n}" for n in range(8)]
    version = versions.get_version(parts.database, "policy", 1)
    assert version.state is ReleaseState.STABLE
    assert not list((parts.settings.data_dir / "outbox" / "policy").iterdir())


async def test_a_lone_step_is_published_after_a_while(parts: Parts) -> None:
    parts.thumbs(0, 4)
    await parts.turn()
    assert parts.store.versions("tuneloop") == []
    parts.clock.now += parts.settings.publish_every_seconds
    await parts.turn()
    assert parts.store.versions("tuneloop") == [1]


async def test_versions_follow_each_other_without_gaps(parts: Parts) -> None:
    for round_number in range(3):
        parts.thumbs(8 * round_number, 8)
        await parts.turn()
        await parts.turn()
    assert parts.store.versions("tuneloop") == [1, 2, 3]
    assert parts.store.manifest("tuneloop", 3).parent == 2
    found = versions.list_versions(parts.database, "policy", limit=9)
    assert [v.state.value for v in found] == ["stable", "retired", "retired"]


async def test_pairs_and_scores_join_the_thumbs(parts: Parts) -> None:
    parts.thumbs(0, 8)
    comparison = make_comparison("p0", "c0", "c1", second=1)
    recorder.record_feedback(parts.database, [(comparison, 9)], parts.clock())
    recorder.record_scores(parts.database, [make_score(f"c{n}") for n in range(8)], 0.0)
    await parts.turn()
    assert sorted(parts.trainer.learned) == sorted(
        ["dpo:p0", "kto:f0", "kto:f1", "kto:f2", *(f"ppo:c{n}" for n in range(8))]
    )


async def test_ppo_waits_for_a_batch_of_its_own_and_stays_out_when_off(tmp_path: Path) -> None:
    for option, expected in (("auto", True), ("off", False)):
        parts = Parts(folder=tmp_path / option, options={"policy_gradient": option})
        rollouts = [make_rollout(f"c{n}") for n in range(8)]
        recorder.record_rollouts(parts.database, rollouts, 0.0)
        recorder.record_scores(parts.database, [make_score(f"c{n}") for n in range(7)], 0.0)
        parts.clock.now += 1000
        assert not await parts.turn()
        recorder.record_scores(parts.database, [make_score("c7")], 0.0)
        assert await parts.turn() is expected


@pytest.mark.parametrize(("newest", "learns"), [(4, True), (5, False)])
@pytest.mark.parametrize("objective", ["ppo", "grpo"])
async def test_rollouts_older_than_max_staleness_are_left_out(
    tmp_path: Path, objective: str, newest: int, learns: bool
) -> None:
    """They are of version 0, and 4 versions may lie between that and the newest, which serves."""
    parts = Parts(folder=tmp_path, options={"policy_gradient": objective})
    rollouts = [make_rollout(f"c{n}", group_id="g", n=8) for n in range(8)]
    recorder.record_rollouts(parts.database, rollouts, 0.0)
    for version in range(1, newest + 1):
        versions.add_version(
            parts.database,
            model="policy",
            version=version,
            policy="tuneloop",
            parent=version - 1,
            first_step=0,
            last_step=0,
            manifest="{}",
            created_time=versions.moment(0),
        )
        versions.mark_stage(parts.database, "policy", version, "released")
        versions.mark_place(parts.database, "policy", version, f"file:///{version}")
    await parts.release.promote(newest, "gate")
    scores = [make_score(f"c{n}", float(n)) for n in range(8)]
    recorder.record_scores(parts.database, scores, 0.0, SampleRules(scored_objective=objective))
    before = count_of("tuneloop_learner_rollouts_stale_total")
    assert await parts.turn() is learns
    assert count_of("tuneloop_learner_rollouts_stale_total") == before + (0 if learns else 8)
    used = ready.SampleCounts(ready=0, waiting=0, used=8 if learns else 0)
    assert ready.counts(parts.database, objective) == used


async def test_a_sample_the_trainer_refuses_does_not_hold_up_the_others(parts: Parts) -> None:
    parts.thumbs(0, 4)
    parts.trainer.refuses = {"f2"}
    await parts.turn()
    assert set(parts.used()) == {"f0", "f1", "f3"}
    parts.clock.now += 100
    assert not await parts.turn()


async def test_a_sample_every_step_falls_over_is_found_and_left_out(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts.thumbs(0, 4)
    parts.trainer.fails_on = {"f1"}
    parts.clock.now += 100
    monkeypatch.setattr(parts.loop, "_not_before", Never())
    for _ in range(20):
        await parts.turn()
    assert set(parts.used()) == {"f0", "f2", "f3"}


class Never(dict[str, float]):
    """No pause between attempts."""

    def get(self, key: str, default: Any = None) -> Any:
        return default


FAULTS = ("non_finite_loss", "non_finite_gradient", "gradient_spike")


@pytest.mark.parametrize("reason", FAULTS)
@pytest.mark.parametrize("bad", ["f0", "f1", "f3"])
async def test_a_skipped_step_puts_back_its_samples_and_finds_the_one_at_fault(
    parts: Parts, reason: str, bad: str
) -> None:
    parts.thumbs(0, 4)
    parts.clock.now += 100
    parts.trainer.skips_on = {bad: reason}
    labels = {"model": "policy", "reason": reason}
    before = count_of("tuneloop_learner_steps_skipped_total", labels)
    await parts.turn()
    assert count_of("tuneloop_learner_steps_skipped_total", labels) == before + 1
    assert parts.used() == {}
    assert ready.counts(parts.database, "kto").ready == 4
    for _ in range(12):
        await parts.turn()
    assert sorted(parts.used()) == sorted({"f0", "f1", "f2", "f3"} - {bad})
    assert len(parts.trainer.learned) == 3
    assert refused(parts) == {bad: f"step skipped: {reason}"}
    assert not await parts.turn()
    letter = await parts.bus.last("tuneloop.dead.learner-tuneloop-samples.u1")
    assert letter is not None
    assert json.loads(letter.data)["reason"] == f"step skipped: {reason}"


def refused(parts: Parts) -> dict[str, str]:
    """The reason of each refused sample."""
    with parts.database.read() as connection:
        query = select(samples.c.sample_id, samples.c.note).where(samples.c.state == "refused")
        return {row.sample_id: row.note for row in connection.execute(query)}


@pytest.mark.parametrize("fails", [*FAULTS, "raises"])
async def test_nothing_is_refused_while_every_step_fails(
    parts: Parts, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is the device's, say, and ends."""
    monkeypatch.setattr(parts.loop, "_not_before", Never())
    parts.thumbs(0, 8)
    names = {f"f{n}" for n in range(8)}
    if fails == "raises":
        parts.trainer.fails_on = names
    else:
        parts.trainer.skips_on = dict.fromkeys(names, fails)
    now = patch_pauses(parts)
    for _ in range(30):
        await parts.turn()
        now[0] += 1
    assert (parts.used(), refused(parts)) == ({}, {})
    assert ready.counts(parts.database, "kto").ready == 8
    parts.trainer.fails_on, parts.trainer.skips_on = set(), {}
    now[0] += 100
    parts.clock.now += 100
    for _ in range(6):
        await parts.turn()
    assert set(parts.used()) == names


def patch_pauses(parts: Parts) -> list[float]:
    """Return the time that pauses are counted by."""
    now = [0.0]
    parts.training_run.faults = FaultSearch(clock=lambda: now[0])
    return now


async def test_groups_without_spread_are_used_and_no_fault(tmp_path: Path) -> None:
    parts = Parts(folder=tmp_path)
    parts.thumbs(0, 4)
    parts.trainer.skips_on = {"f0": "no_spread"}
    await parts.turn()
    assert len(parts.used()) == 4
    assert parts.training_run.unpublished_steps == 0


async def test_a_step_that_runs_out_of_memory_is_repeated_in_smaller_pieces(parts: Parts) -> None:
    parts.thumbs(0, 4)
    parts.trainer.most_tokens = 300
    for _ in range(3):
        await parts.turn()
    assert parts.trainer.token_budget == 256
    assert len(parts.used()) == 4
    assert refused(parts) == {}


async def test_a_sample_that_does_not_fit_waits_and_is_never_refused(parts: Parts) -> None:
    now = patch_pauses(parts)
    parts.thumbs(0, 4)
    parts.clock.now += 100
    parts.trainer.too_large = {"f1"}
    parts.trainer.token_budget = 64
    for _ in range(20):
        await parts.turn()
        now[0] += 10
    assert set(parts.used()) == {"f0", "f2", "f3"}
    assert refused(parts) == {}
    parts.trainer.too_large = set()
    now[0] += 100
    assert await parts.turn()
    assert set(parts.used()) == {"f0", "f1", "f2", "f3"}


async def test_paused_takes_no_step_and_stays_paused_over_a_restart(parts: Parts) -> None:
    parts.thumbs(0, 4)
    parts.loop.pause(True)
    assert not await parts.turn()
    parts = parts.again()
    assert not await parts.turn()
    parts.loop.pause(False)
    assert await parts.turn()


async def test_a_crash_before_the_commit_uses_the_samples_again(parts: Parts) -> None:
    parts.options["checkpoint_every_steps"] = 9
    parts = parts.again()
    parts.thumbs(0, 4)
    await parts.turn()
    assert parts.used() == {}
    # The checkpoint is written, and then the process dies.
    folder = parts.settings.data_dir / "checkpoints" / "policy" / "step-00000001"
    parts.trainer.stage_checkpoint({"step": 1})(folder)
    parts = parts.again()
    parts.training_run.restore()
    assert not folder.exists()
    assert parts.trainer.learned == []
    await parts.turn()
    assert parts.trainer.learned == [f"kto:f{n}" for n in range(4)]


async def test_a_restart_goes_on_from_the_committed_step(parts: Parts) -> None:
    parts.thumbs(0, 4)
    await parts.turn()
    parts = parts.again()
    parts.training_run.restore()
    parts.thumbs(4, 4)
    await parts.turn()
    assert parts.used() == {**{f"f{n}": 1 for n in range(4)}, **{f"f{n}": 2 for n in range(4, 8)}}
    assert learned_by(parts, 1) == [f"kto:f{n}" for n in range(8)]


@pytest.mark.parametrize("damaged", [1, 2])
async def test_damaged_checkpoints_are_passed_over_and_their_samples_used_again(
    parts: Parts, damaged: int
) -> None:
    for round_number in range(3):
        parts.thumbs(4 * round_number, 4)
        await parts.turn()
    folder = parts.settings.data_dir / "checkpoints" / "policy"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["step-00000002", "step-00000003"]
    published = lineage.uses_of(parts.database, "policy", 1)
    assert len(published) == 8
    for name in names[-damaged:]:
        (folder / name / "state.json").write_text('["kto:f')
    parts = parts.again()
    parts.training_run.restore()
    start = 3 - damaged if damaged == 1 else 0
    assert parts.training_run.step == start
    # Its weights are out there, whatever became of the steps.
    assert lineage.uses_of(parts.database, "policy", 1) == published
    while await parts.turn():
        pass
    # Whatever the weights have learned, the accounting says the same, once for each.
    assert sorted(parts.trainer.learned) == sorted(f"kto:f{n}" for n in range(12))
    assert len(parts.used()) == 12


STAGES = ["save_weights", "add_version", "publish", "mark_stored", "announce", "route", "record"]


@pytest.mark.parametrize("stage", STAGES)
async def test_a_publication_cut_at_any_stage_is_finished_after_a_restart(
    parts: Parts, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*args: Any, **kwargs: Any) -> Any:
        raise Killed

    targets: dict[str, tuple[Any, str]] = {
        "save_weights": (parts.trainer, "save_weights"),
        "add_version": (versions, "add_version"),
        "publish": (parts.store, "publish"),
        "mark_stored": (versions, "mark_stored"),
        "announce": (publisher, "encode_weights_published"),
        "route": (parts.bus, "set_routing"),
        "record": (promotions, "set_stable"),
    }
    parts.thumbs(0, 8)
    await parts.turn()
    with monkeypatch.context() as patch:
        patch.setattr(*targets[stage], die)
        with pytest.raises(Killed):
            await parts.turn()
    parts = parts.again()
    parts.publisher.drop_unfinished("policy")
    parts.training_run.restore()
    parts.clock.now += 100
    await parts.turn()
    assert parts.store.versions("tuneloop") == [1]
    assert await parts.release.stable("policy") == 1
    assert versions.get_version(parts.database, "policy", 1).stage == "released"
    assert len(lineage.uses_of(parts.database, "policy", 1)) == 8
    assert learned_by(parts, 1) == [f"kto:f{n}" for n in range(8)]
    assert not list((parts.settings.data_dir / "outbox" / "policy").iterdir())


async def test_while_the_bus_is_down_it_learns_on_and_publishes_later(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuneloop.learner.release.publisher.FIRST_RETRY_SECONDS", 0.0)
    parts = parts.again()
    parts.bus.go_down()
    for round_number in range(2):
        parts.thumbs(8 * round_number, 8)
        await parts.turn()
        await parts.turn()
    assert parts.store.versions("tuneloop") == [1]
    parts.bus.come_back()
    await parts.turn()
    assert parts.store.versions("tuneloop") == [1, 2]
    assert await parts.release.stable("policy") == 2
    assert len(parts.used()) == 16


async def test_a_store_with_versions_of_a_lost_ledger_is_not_overwritten(parts: Parts) -> None:
    parts.thumbs(0, 8)
    await parts.turn()
    await parts.turn()
    parts.database.close()
    shutil.rmtree(parts.settings.data_dir)
    parts = Parts(folder=parts.folder, clock=parts.clock)
    parts.thumbs(8, 8)
    await parts.turn()
    await parts.turn()
    assert parts.store.versions("tuneloop") == [1, 2]
    assert learned_by(parts, 2) == [f"kto:f{n}" for n in range(8, 16)]


async def test_a_version_the_store_refuses_is_published_under_the_next_number(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Parts(folder=parts.folder / "other")
    other.thumbs(0, 8)
    await other.turn()
    await other.turn()

    def unavailable(policy: str) -> list[int]:
        raise Unavailable("the store is away")

    parts.thumbs(0, 8)
    with monkeypatch.context() as patch:
        patch.setattr(parts.store, "versions", unavailable)
        shutil.copytree(other.folder / "weights", parts.folder / "weights")
        await parts.turn()
        await parts.turn()
    assert versions.list_versions(parts.database, "policy", limit=9) == []
    await parts.turn()
    assert versions.newest_version(parts.database, "policy") == 2
    assert len(lineage.uses_of(parts.database, "policy", 2)) == 8


async def test_the_steps_taken_are_committed_at_the_end(parts: Parts) -> None:
    parts.options["checkpoint_every_steps"] = 9
    parts = parts.again()
    parts.thumbs(0, 4)
    await parts.turn()
    await parts.loop.drain()
    assert len(parts.used()) == 4
    newest = steps.newest_step(parts.database, "policy")
    assert newest is not None
    assert newest.metrics["kl"] == 0.1


@pytest.mark.parametrize("where", ["train", "commit"])
async def test_while_the_ledger_is_away_nothing_is_lost_and_no_sample_is_at_fault(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(loop_module, "AWAY_SECONDS", 0.01)
    really, refusals = getattr(parts.training_run, where), iter(range(3))

    def away(*arguments: Any) -> Any:
        for _ in refusals:
            raise Unavailable("ledger postgresql://db: the server closed the connection")
        return really(*arguments)

    monkeypatch.setattr(parts.training_run, where, away)
    parts.thumbs(0, 8)
    running = asyncio.create_task(parts.loop.run())
    await until(lambda: running.done() or versions.stable_version(parts.database, "policy") == 1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert learned_by(parts, 1) == [f"kto:f{n}" for n in range(8)]
    assert set(parts.used().values()) == {1, 2}
    with parts.database.read() as connection:
        states = connection.execute(select(samples.c.state).distinct()).scalars().all()
    assert "refused" not in states
