"""A backup taken under load, and a service that goes on from it in another place."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.e2e_client import User, kto_uses, wait_until
from typer.testing import CliRunner

from tuneloop.errors import InvalidRequest
from tuneloop.learner.commands import backup as commands
from tuneloop.learner.commands.backup_copy import back_up, restore
from tuneloop.supervisor.child import ServiceChild
from tuneloop.supervisor.data_dir import DataDir

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def arguments(tiny_policy: Path, tiny_reward_model: Path) -> dict[str, Any]:
    return {
        "arguments": [
            *("--model", str(tiny_policy), "--reward-model", str(tiny_reward_model)),
            *("--engine", "transformers"),
        ],
        "environment": {
            "TUNELOOP_LEARNER_BATCH_SIZE": "4",
            "TUNELOOP_LEARNER_BATCH_WAIT_SECONDS": "0.5",
            "TUNELOOP_LEARNER_PUBLISH_EVERY_STEPS": "2",
            "TUNELOOP_LEARNER_PUBLISH_EVERY_SECONDS": "1",
            "TUNELOOP_LEARNER_RELEASE": "off",
        },
    }


@contextmanager
def pressing(user: User) -> Iterator[None]:
    """Thumbs without a pause within the block."""
    stop = threading.Event()

    def press() -> None:
        while not stop.is_set():
            user.chat_and_press(2)

    thread = threading.Thread(target=press)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def known(user: User, version: int) -> bool:
    """Whether the learner answers with the version's manifest."""
    return bool(user.get(f"/v1/policies/{version}")["manifest"]["version"] == version)


@pytest.mark.slow
async def test_a_restored_service_serves_the_same_version_and_learns_on(
    tmp_path: Path, free_port_of_module: int, arguments: dict[str, Any]
) -> None:
    with ServiceChild(tmp_path / "first", port=free_port_of_module, **arguments) as service:
        service.wait_until_ready()
        user = User(service)
        with pressing(user):
            wait_until(lambda: user.serving_version() >= 1, "a version")
            before = list(user.acknowledged)
            made = await back_up(DataDir(root=service.data_dir), tmp_path / "backup")
        assert user.acknowledged[-1] not in before, "the load went on"
    assert made.stable is not None
    restored = await restore(tmp_path / "backup", DataDir(root=tmp_path / "second"))
    assert restored.stable == made.stable
    assert restored.events == made.events
    (tmp_path / "first").rename(tmp_path / "gone")
    with ServiceChild(tmp_path / "second", port=free_port_of_module, **arguments) as service:
        service.wait_until_ready()
        assert user.service.url == service.url
        after = User(service, acknowledged=before)
        assert after.serving_version() >= made.stable
        wait_until(lambda: known(after, made.stable), "the learner knows its version")
        wait_until(lambda: set(kto_uses(service.data_dir)) >= set(before), "all thumbs are used")
        after.chat_and_press(8)
        newest = after.acknowledged[-1]
        wait_until(lambda: newest in kto_uses(service.data_dir), "it learns on")
        wait_until(lambda: after.serving_version() > made.stable, "from a new version")
        assert set(kto_uses(service.data_dir).values()) == {1}
        versions = [v["policy_version"] for v in after.get("/v1/policies")["data"]]
        assert versions == list(range(max(versions), max(versions) - len(versions), -1))


async def test_what_is_no_data_folder_and_no_backup_is_refused(tmp_path: Path) -> None:
    data = DataDir(root=tmp_path / "data")
    with pytest.raises(InvalidRequest, match="no data folder"):
        await back_up(data, tmp_path / "backup")
    with pytest.raises(InvalidRequest, match="not a backup"):
        await restore(tmp_path, data)


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(commands.backup)
    app.command()(commands.restore)
    result = CliRunner().invoke(app, ["restore", str(tmp_path), "--data-dir", str(tmp_path / "d")])
    assert result.exit_code == 1
    assert "not a backup" in result.output
