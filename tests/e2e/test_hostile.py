"""Hostile requests against a running service: nobody else's stream breaks, nothing is a 500."""

import asyncio
from collections.abc import Iterator

import pytest
from support.e2e_client import ServeTiny

from benchmarks.hostile import TOOLS, measure
from tuneloop.supervisor.child import ServiceChild

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def service(serve_tiny: ServeTiny) -> Iterator[ServiceChild]:
    with serve_tiny("hostile", TOOLS) as user:
        yield user.service


def test_the_corpus_hurts_nobody(service: ServiceChild) -> None:
    before = service.run_state()["processes"]
    report = asyncio.run(measure(service.url, quiet_seconds=1.0))
    assert report.wrong == []
    assert report.chat_failures == []
    assert report.chats >= 8
    after = service.run_state()["processes"]
    for name in ("gateway", "generation"):
        assert (after[name]["pid"], after[name]["restarts"]) == (before[name]["pid"], 0)
