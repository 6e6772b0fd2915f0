"""The learner under torchrun: two ranks, a real nats-server, a version made of thumbs."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import NatsServer
from support.learner_process import LearnerProcess, all_used, feed, make_learner, stable
from support.waiting import until

from tuneloop.bus.jetstream import JetStreamBus
from tuneloop.policies import WeightsKind
from tuneloop.weights.filesystem import FilesystemStore
from tuneloop.weights.shapes import check_adapter
from tuneloop.weights.signing import Verifier

TORCHRUN = ("--standalone", "--nproc-per-node", "2", "--max-restarts", "1", "--no-python")


@pytest.fixture
def learner(
    tmp_path: Path, nats_server: NatsServer, tiny_policy: Path, tiny_reward_model: Path
) -> Iterator[LearnerProcess]:
    process = make_learner(tmp_path, nats_server.url, tiny_policy, tiny_reward_model)
    process.torchrun = (str(Path(sys.executable).with_name("torchrun")), *TORCHRUN)
    yield process
    process.kill()
    print(process.log)


@pytest.mark.slow
async def test_two_ranks_make_a_version_of_thumbs_and_outlive_the_death_of_one(
    learner: LearnerProcess, nats_server: NatsServer, tiny_policy: Path, tmp_path: Path
) -> None:
    bus = await JetStreamBus.connect(nats_server.url, name="test")
    learner.start()
    await feed(bus, 0, 4)
    reference = await until(lambda: stable(bus), 90)
    first, second = learner.ranks
    os.kill(second, signal.SIGKILL)
    await until(lambda: not {first, second} & set(learner.ranks), 90)
    await feed(bus, 4, 4)
    await until(lambda: all_used(learner, 8), 90)
    assert learner.log.count(": at step") == 4  # of policy and reward model, twice
    verifier = Verifier.from_file(tmp_path / "keys" / "manifest_public.pem")
    store = FilesystemStore(
        str(tmp_path / "weights"), verifier=verifier, cache_dir=tmp_path / "cache"
    )
    manifest, folder = store.fetch(reference)
    assert manifest.kind is WeightsKind.LORA
    assert manifest.data.samples["kto"] > 0
    check_adapter(tiny_policy, folder, max_rank=32)
    ranks = learner.ranks
    learner.terminate()
    assert not any(is_alive(rank) for rank in ranks)
    assert "is gone" not in learner.log.rpartition(": at step")[2]
    await bus.close()


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
