"""Hostile requests against a running service: nobody else's stream breaks, nothing is a 500."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.hostile import TOOLS, measure
from tuneloop.supervisor.child import ServiceChild

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_policy: Path,
    tiny_reward_model: Path,
    free_port_of_module: int,
) -> Iterator[ServiceChild]:
    running = ServiceChild(
        tmp_path_factory.mktemp("hostile"),
        port=free_port_of_module,
        arguments=[
            *("--model", str(tiny_policy), "--reward-model", str(tiny_reward_model)),
            *("--engine", "transformers"),
        ],
        environment=TOOLS,
    )
    with running:
        running.wait_until_ready()
        yield running


def test_the_corpus_hurts_nobody(service: ServiceChild) -> None:
    before = service.run_state()["processes"]
    report = asyncio.run(measure(service.url, quiet_seconds=1.0))
    assert report.wrong == []
    assert report.chat_failures == []
    assert report.chats >= 8
    after = service.run_state()["processes"]
    for name in ("gateway", "generation"):
        assert (after[name]["pid"], after[name]["restarts"]) == (before[name]["pid"], 0)
