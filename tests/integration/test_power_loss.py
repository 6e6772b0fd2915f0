"""What a call has written when it returns survives a power failure: nothing else is synced here."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.learner_events import START, make_thumb
from support.nats_servers import Server
from support.policy_samples import SampleMaker
from support.ports import free_port
from support.small_disk import SmallDisk, small_disk
from support.weights_parts import Place, make_manifest, make_weights

from tuneloop.bus import subjects
from tuneloop.bus.jetstream import JetStreamBus
from tuneloop.files import rename_folder, write_file
from tuneloop.gateway.keys.scopes import Scope
from tuneloop.gateway.keys.store import KeyFile, Limits, new_key
from tuneloop.learner.files import write_folder
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.release.gate.suites import KeptScores
from tuneloop.learner.trainer import checkpoint
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.settings import TrainerSettings
from tuneloop.supervisor import nats
from tuneloop.weights.signing import write_key_pair


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk") as mounted:
        if mounted is None or mounted.image is None:
            pytest.skip("a file system in a file cannot be mounted here")
        yield mounted


def lose_power(disk: SmallDisk) -> None:
    disk.cut_power()
    disk.restore_power()


def test_what_was_not_synced_is_lost(disk: SmallDisk) -> None:
    (disk.root / "file").write_bytes(b"content")
    lose_power(disk)
    assert not (disk.root / "file").exists()


def test_a_file_that_was_replaced_has_its_new_content(disk: SmallDisk) -> None:
    for content in (b"first", b"second"):
        write_file(disk.root / "file", content)
    lose_power(disk)
    assert (disk.root / "file").read_bytes() == b"second"


def test_a_folder_has_its_name_and_its_files(disk: SmallDisk) -> None:
    (disk.root / "partial").mkdir()
    (disk.root / "partial" / "file").write_bytes(b"content")
    rename_folder(disk.root / "partial", disk.root / "final")

    def fill(folder: Path) -> None:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_bytes(b"content")

    write_folder(disk.root / "written", fill)
    lose_power(disk)
    assert (disk.root / "final" / "file").read_bytes() == b"content"
    assert (disk.root / "written" / "inner" / "file").read_bytes() == b"content"


def test_a_revoked_key_stays_revoked(disk: SmallDisk) -> None:
    file = KeyFile(disk.root / "keys" / "api_keys.json")
    file.add(new_key("app", [Scope.INFER], Limits())[1])
    file.revoke("app")
    lose_power(disk)
    assert [key.is_active for key in file.read()] == [False]


def test_a_published_version_verifies(disk: SmallDisk, tmp_path: Path) -> None:
    keys = write_key_pair(disk.root / "keys")
    place = Place(root=str(disk.root / "weights"), keys=keys, cache=disk.root / "cache")
    published = place.store().publish(make_weights(tmp_path / "new"), make_manifest())
    lose_power(disk)
    _, folder = place.store().fetch(published)
    assert (folder / "model.safetensors").stat().st_size
    lose_power(disk)
    assert place.store().fetch(published)[1] == folder


def test_a_checkpoint_is_whole(disk: SmallDisk, tiny_policy: Path) -> None:
    options = TrainerSettings(threads=1)
    trainer = PolicyTrainer(tiny_policy, options)
    for step in (1, 2):
        trainer.step({"kto": SampleMaker(step).thumbs(4)})
        folder = disk.root / "checkpoints" / f"step-{step:08d}"
        checkpoint.save(folder, {"policy": trainer}, {"step": step})
    lose_power(disk)
    newest = checkpoint.latest(disk.root / "checkpoints")
    assert newest is not None
    loaded = checkpoint.load(newest)
    assert loaded.position == {"step": 2}
    loaded.put_back("policy", PolicyTrainer(tiny_policy, options))


def test_what_the_ledger_committed_is_in_it(disk: SmallDisk) -> None:
    path = disk.root / "learner" / "ledger.db"
    database = Database.at(path)
    recorder.record_feedback(database, [(make_thumb("fb-1", "c1"), 1)], START.timestamp())
    disk.cut_power()
    database.close()
    disk.restore_power()
    after = Database.at(path)
    assert recorder.recorded_feedback(after, ["fb-1"]) == {"fb-1"}
    after.close()


def test_what_the_gate_kept_can_be_read(disk: SmallDisk) -> None:
    scores = KeptScores(disk.root / "scores")
    scores.save(1, {"suite": {"item": 0.5}}, kl=0.25)
    # A sync brings the names of all files to the disk, but only the content of its own.
    write_file(disk.root / "other", b"content")
    lose_power(disk)
    assert scores.kl_of_version(1) == 0.25


@pytest.mark.parametrize("kills", [1, 3])
async def test_what_the_bus_acknowledged_is_stored(disk: SmallDisk, kills: int) -> None:
    folder = disk.root / "nats"
    folder.mkdir()
    port = free_port()
    server = Server(nats.write_config(folder, port=port), port)
    chance = np.random.default_rng(kills)
    acknowledged: list[str] = []
    key = subjects.stable_policy_key("tuneloop")
    revision = None
    for _ in range(kills):
        server.start()
        server.wait()
        bus = await JetStreamBus.connect(f"nats://127.0.0.1:{port}", wait=20)
        for _ in range(int(chance.integers(1, 30))):
            name = f"fb-{len(acknowledged)}"
            subject = subjects.feedback("tuneloop", "thumb", "u1", name)
            data = chance.bytes(int(chance.integers(1, 4000)))
            await bus.publish_first(
                subject, data, event_id=name, unique_filter=subjects.feedback_with_id(name)
            )
            acknowledged.append(name)
        entry = await bus.set_routing(key, acknowledged[-1].encode(), revision=revision)
        revision = entry.revision
        disk.cut_power()
        server.kill()
        await bus.close()
        disk.restore_power()
    server.start()
    server.wait()
    bus = await JetStreamBus.connect(f"nats://127.0.0.1:{port}", wait=20)
    lost = [n for n in acknowledged if await bus.last(subjects.feedback_with_id(n)) is None]
    routed = await bus.routing(key)
    await bus.close()
    server.kill()
    assert lost == []
    assert routed is not None
    assert routed.value == acknowledged[-1].encode()
