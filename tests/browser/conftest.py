"""One Chromium for the tests of a module, and a gateway over fakes for each."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from support import node_env
from support.browser_page import CHROMIUM, FLAGS
from support.gateway_stack import Stack, gateway_of_test


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Any]:
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        await browser.close()


@pytest.fixture(scope="session")
def axe_source() -> str:
    node_env.npm_ci()
    return (node_env.FOLDER / "node_modules" / "axe-core" / "axe.min.js").read_text()


@pytest_asyncio.fixture(loop_scope="module")
async def stack(request: pytest.FixtureRequest) -> AsyncIterator[Stack]:
    """The same as in integration tests, on the event loop of `browser`."""
    async with gateway_of_test(request) as running:
        yield running
