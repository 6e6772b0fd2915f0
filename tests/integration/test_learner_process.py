"""A real learner on a tiny model and a real nats-server: it learns, it is killed, it is refused."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from conftest import NatsServer
from support.learner_process import (
    LearnerProcess,
    all_used,
    feed,
    make_learner,
    stable,
    thumbs_used,
)
from support.waiting import until

from tuneloop.bus.jetstream import JetStreamBus
from tuneloop.bus.streams import ROUTING_STREAM, call_api
from tuneloop.bus.subjects import reward_model_key, stable_policy_key
from tuneloop.errors import FailedPrecondition, NotFound, Unavailable
from tuneloop.policies import WeightsReference
from tuneloop.rpc.channel import connect
from tuneloop.rpc.status import error_from_rpc
from tuneloop.v1 import generation_pb2, learner_pb2, learner_pb2_grpc
from tuneloop.weights.filesystem import FilesystemStore
from tuneloop.weights.manifest import from_json
from tuneloop.weights.shapes import base_model_sha256, check_adapter
from tuneloop.weights.signing import Verifier
from tuneloop.wire import weights_from_proto

Stub = learner_pb2_grpc.LearnerServiceStub


@pytest.fixture
def learner(
    tmp_path: Path, nats_server: NatsServer, tiny_policy: Path, tiny_reward_model: Path
) -> Iterator[LearnerProcess]:
    process = make_learner(tmp_path, nats_server.url, tiny_policy, tiny_reward_model)
    yield process
    process.kill()
    print(process.log)


@pytest.fixture
async def stub(learner: LearnerProcess) -> AsyncIterator[Stub]:
    channel = connect(f"127.0.0.1:{learner.environment['TUNELOOP_LEARNER_PORT']}")
    yield Stub(channel)
    await channel.close()


async def status_of(stub: Stub) -> learner_pb2.GetStatusResponse | None:
    try:
        return await stub.GetStatus(learner_pb2.GetStatusRequest(), timeout=5)
    except grpc.aio.AioRpcError:
        return None


async def test_thumbs_become_a_version_and_the_service_answers(
    learner: LearnerProcess,
    bus: JetStreamBus,
    stub: Stub,
    tiny_policy: Path,
    tiny_reward_model: Path,
    tmp_path: Path,
) -> None:
    learner.start()
    await feed(bus, 0, 8, thumb_first=True)
    reference = await until(lambda: stable(bus), 90)
    assert reference.policy_version >= 1
    verifier = Verifier.from_file(tmp_path / "keys" / "manifest_public.pem")
    store = FilesystemStore(
        str(tmp_path / "weights"), verifier=verifier, cache_dir=tmp_path / "cache"
    )
    manifest, folder = store.fetch(reference)
    check_adapter(tiny_policy, folder, max_rank=32)
    assert manifest.base_model == "tiny"
    assert manifest.data.samples["kto"] > 0
    labels = await until(lambda: labels_of_stable_reward_model(bus, store, tiny_reward_model), 90)
    assert 1 <= labels <= 8

    await until(lambda: set(thumbs_used(learner).values()) == {1}, 90)
    status = await stub.GetStatus(learner_pb2.GetStatusRequest())
    assert (status.policy, status.rollouts, status.feedback_events) == ("tuneloop", 8, 8)
    assert {c.objective: c.used for c in status.samples}["kto"] == 8
    assert status.last_step_metrics["loss"] > 0
    assert status.HasField("learns_from_comments")
    assert not status.learns_from_comments

    # The last steps' version may still be on its way.
    await until(lambda: versions_cover(stub, 8), 90)
    listed = await stub.ListPolicyVersions(learner_pb2.ListPolicyVersionsRequest())
    newest = listed.versions[0]
    assert from_json(newest.manifest_json.encode()).version == newest.policy_version
    lineage = await stub.GetLineage(
        learner_pb2.GetLineageRequest(policy_version=newest.policy_version)
    )
    assert lineage.ancestors[-1] == 0
    assert all(use.objective == "kto" and use.epoch == 0 for use in lineage.uses)
    assert json.loads(lineage.settings_json)["batch_size"] == 4
    await trace(stub, lineage, newest.policy_version)
    await steer(stub, bus, newest.policy_version)
    await forget(stub, bus, learner, newest.policy_version)
    assert learner.terminate() == 0


async def labels_of_stable_reward_model(
    bus: JetStreamBus, store: FilesystemStore, backbone: Path
) -> float | None:
    entry = await bus.routing(reward_model_key("tuneloop"))
    if entry is None:
        return None
    reference = weights_from_proto(generation_pb2.WeightsReference.FromString(entry.value))
    assert reference.policy == "tuneloop-reward-model"
    manifest, folder = store.fetch(reference)
    assert manifest.base_model_sha256 == base_model_sha256(backbone)
    assert (folder / "config.json").is_file()
    return manifest.metrics["labels"]


async def versions_cover(stub: Stub, thumbs: int) -> bool:
    listed = await stub.ListPolicyVersions(learner_pb2.ListPolicyVersionsRequest())
    manifests = [from_json(v.manifest_json.encode()) for v in listed.versions if v.policy_version]
    return sum(manifest.data.samples["kto"] for manifest in manifests) == thumbs


async def trace(stub: Stub, lineage: learner_pb2.GetLineageResponse, newest: int) -> None:
    """From a version to its feedback, and from that and its user to the version."""
    feedback_id = lineage.uses[0].feedback_id
    asked = learner_pb2.GetFeedbackLineageRequest(feedback_id=feedback_id)
    found = await stub.GetFeedbackLineage(asked)
    assert list(found.policy.direct) == [newest]
    assert list(found.completion_ids) == [lineage.uses[0].completion_id]
    user = await stub.GetUserLineage(learner_pb2.GetUserLineageRequest(user_hash=found.user_hash))
    assert {*user.policy.direct, *user.policy.descended} >= {newest}
    assert (user.rollouts, user.feedback, user.rebuild_from) == (8, 8, 0)


async def steer(stub: Stub, bus: JetStreamBus, newest: int) -> None:
    answer = await stub.RollBack(learner_pb2.RollBackRequest(policy_version=0, actor="ann"))
    assert answer.policy_version == 0
    entry = await bus.routing(stable_policy_key("tuneloop"))
    assert entry is not None
    assert generation_pb2.WeightsReference.FromString(entry.value).policy_version == 0
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.RollBack(learner_pb2.RollBackRequest())
    assert isinstance(error_from_rpc(refused.value), FailedPrecondition)
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await stub.Promote(learner_pb2.PromoteRequest(policy="other", policy_version=1))
    assert isinstance(error_from_rpc(unknown.value), NotFound)
    await stub.Promote(learner_pb2.PromoteRequest(policy_version=newest, actor="ann"))
    reference = await stable(bus)
    assert reference is not None
    assert reference.policy_version == newest
    await stub.Pause(learner_pb2.PauseRequest())
    await until(lambda: is_paused(stub))  # after the step in progress
    # What the roll-back put back may be learned from already.
    assert (await stub.Resume(learner_pb2.ResumeRequest())).state in {"waiting", "stepping"}


async def is_paused(stub: Stub) -> bool:
    status: learner_pb2.GetStatusResponse = await stub.GetStatus(learner_pb2.GetStatusRequest())
    return status.state == "paused"


async def forget(stub: Stub, bus: JetStreamBus, learner: LearnerProcess, newest: int) -> None:
    gone = await stub.ForgetUser(learner_pb2.ForgetUserRequest(user_hash="u1"))
    assert (gone.rollouts_removed, gone.feedback_removed, gone.events_purged) == (8, 8, 16)
    assert newest in gone.policy_versions
    assert thumbs_used(learner) == {}
    assert await bus.last("tuneloop.v1.*.feedback.*.*.u1") is None


@pytest.mark.slow
async def test_killed_in_the_middle_of_steps_it_uses_every_thumb_once(
    learner: LearnerProcess, bus: JetStreamBus
) -> None:
    total = 48
    learner.environment["TUNELOOP_LEARNER_CHECKPOINT_EVERY_STEPS"] = "3"
    learner.environment["TUNELOOP_LEARNER_PUBLISH_EVERY_STEPS"] = "4"
    await feed(bus, 0, total, tokens=300)
    # Killed with steps that are not committed, then after a commit.
    for steps_taken in (2, 4):
        await run_and_kill(learner, steps_taken)
        assert set(thumbs_used(learner).values()) <= {0, 1}
    assert 0 in thumbs_used(learner).values()
    learner.start()
    await until(lambda: all_used(learner, total), 90)


async def run_and_kill(learner: LearnerProcess, steps_taken: int) -> None:
    """Run it for so many steps, then kill -9 it."""
    goal = learner.log.count(": step ") + steps_taken
    learner.start()
    await until(lambda: learner.log.count(": step ") >= goal, 90)
    learner.kill()


@pytest.mark.slow
async def test_it_starts_without_nats_and_takes_up_what_comes_later(
    learner: LearnerProcess, nats_server: NatsServer, stub: Stub
) -> None:
    nats_server.kill()
    learner.start()
    status = await until(lambda: status_of(stub), 90)
    assert status.waiting_for == "the event bus, which cannot be reached"
    nats_server.start()
    bus = await JetStreamBus.connect(nats_server.url, name="test")
    await feed(bus, 0, 4)
    await until(lambda: ": at step" in learner.log and all_used(learner, 4), 90)
    nats_server.kill()
    nats_server.start()
    await feed(bus, 4, 4)
    await until(lambda: all_used(learner, 8), 90)
    await bus.close()


@pytest.mark.slow
async def test_the_routing_table_lost_under_it_names_the_stable_version_again(
    learner: LearnerProcess, bus: JetStreamBus
) -> None:
    learner.start()
    await feed(bus, 0, 8)
    reference = await until(lambda: stable(bus), 90)
    await call_api(bus.connection, f"STREAM.DELETE.{ROUTING_STREAM}", {}, 5.0)
    again = await until(lambda: stable_if_available(bus), 60)
    assert again.policy_version >= reference.policy_version


async def stable_if_available(bus: JetStreamBus) -> WeightsReference | None:
    try:
        return await stable(bus)
    except Unavailable:
        return None


@pytest.mark.slow
async def test_a_second_learner_with_a_ledger_of_its_own_is_refused_until_it_takes_over(
    learner: LearnerProcess,
    bus: JetStreamBus,
    stub: Stub,
    tmp_path: Path,
    tiny_policy: Path,
    tiny_reward_model: Path,
) -> None:
    learner.start()
    await until(lambda: status_of(stub), 90)
    (tmp_path / "second").mkdir()
    second = make_learner(
        tmp_path / "second",
        learner.environment["TUNELOOP_LEARNER_NATS_URL"],
        tiny_policy,
        tiny_reward_model,
    )
    try:
        second.start()
        assert second.process is not None
        await until(lambda: second.process and second.process.poll() is not None, 90)
        assert second.process.returncode == 1
        assert "Traceback" not in second.log
        assert "TUNELOOP_LEARNER_TAKE_OVER=" in second.log
        await feed(bus, 0, 8)
        await until(lambda: all_used(learner, 8), 90)
        learner.kill()
        lost = second.log.rpartition("TUNELOOP_LEARNER_TAKE_OVER=")[2].split()[0]
        second.environment["TUNELOOP_LEARNER_TAKE_OVER"] = lost
        second.start()
        await feed(bus, 8, 4)
        await until(lambda: second.ledger.exists() and len(thumbs_used(second)) == 4, 90)
    finally:
        second.kill()


@pytest.mark.slow
async def test_a_checkpoint_cut_short_is_passed_over(
    learner: LearnerProcess, bus: JetStreamBus
) -> None:
    await feed(bus, 0, 12)
    learner.start()
    await until(lambda: ": at step" in learner.log and all_used(learner, 12), 90)
    learner.kill()
    checkpoints = sorted((learner.folder / "learner" / "checkpoints" / "policy").iterdir())
    largest = max(checkpoints[-1].glob("policy/*"), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    before = learner.log.count(": step ")
    learner.start()
    await until(lambda: "will be used again" in learner.log, 90)
    await until(lambda: learner.log.count(": step ") > before, 90)
    await until(lambda: all_used(learner, 12), 90)
    assert f"checkpoint {checkpoints[-1].name} cannot be used" in learner.log
    assert largest.name in learner.log


def test_an_unknown_setting_stops_it_at_once(learner: LearnerProcess) -> None:
    learner.environment["TUNELOOP_LEARNER_BATCHSIZE"] = "4"
    command = [sys.executable, "-c", "from tuneloop.learner.main import main; main()"]
    ended = subprocess.run(
        command,
        env={**os.environ, **learner.environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert "unknown setting TUNELOOP_LEARNER_BATCHSIZE" in ended.stderr
    assert "did you mean TUNELOOP_LEARNER_BATCH_SIZE?" in ended.stderr
