"""The gateway over fakes that most integration tests ask for."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from support.gateway_stack import Stack, gateway_in_thread, gateway_of_test

from tuneloop.bus import subjects


@pytest.fixture
async def stack(request: pytest.FixtureRequest) -> AsyncIterator[Stack]:
    async with gateway_of_test(request) as running:
        yield running


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the stack's gateway."""
    async with httpx.AsyncClient(base_url=stack.url, timeout=20) as client:
        yield client


@pytest.fixture(scope="module")
def gateway_thread() -> Iterator[Stack]:
    """A gateway for all tests of a module, in a thread of its own."""
    with gateway_in_thread() as running:
        yield running


@pytest.fixture
def shared_stack(gateway_thread: Stack) -> Stack:
    """Return the module's gateway without what the test before left; what calls it may block."""
    gateway_thread.generation.fail, gateway_thread.generation.fail_after = None, 0
    gateway_thread.generation.requests.clear()
    gateway_thread.bus.streams[subjects.FEEDBACK].events.clear()
    return gateway_thread
