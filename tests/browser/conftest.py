"""One Chromium for the tests of a module, and a gateway over fakes for each."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from support import node_env
from support.browser_page import CHROMIUM, FLAGS
from support.gateway_fakes import Stack, running_gateway


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Any]:
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def stack() -> AsyncIterator[Stack]:
    async with running_gateway() as running:
        yield running


@pytest.fixture(scope="session")
def axe_source() -> str:
    node_env.npm_ci()
    return (node_env.FOLDER / "node_modules" / "axe-core" / "axe.min.js").read_text()
