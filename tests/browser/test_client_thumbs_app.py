"""The example application in a browser: its page streams an answer and sends a thumb through it."""

import asyncio
from typing import Any

import pytest
import uvicorn
from support.browser_page import browser_tests, feedback_of
from support.gateway_fakes import IDS
from support.gateway_stack import PromptServer, Stack

from examples.thumbs_app.app import app
from tuneloop.errors import Overloaded
from tuneloop.feedback import Thumb

pytestmark = browser_tests


@pytest.mark.slow
async def test_thumbs_through_the_backend(
    browser: Any, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNELOOP_URL", stack.url)
    server = PromptServer(uvicorn.Config(app, port=0, log_config=None))
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    context = await browser.new_context()
    try:
        page = await context.new_page()
        page.set_default_timeout(15_000)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        await page.goto(url)
        await page.fill("#question", "Who are you?")
        await page.keyboard.press("Enter")
        await page.click("button[value=up]")
        await page.get_by_text("Thank you!").wait_for()
        assert (await page.inner_text("#answer")).startswith("Hello, wörld")
        await page.click("button[value=up]")
        (request,) = stack.generation.requests
        (given,) = feedback_of(stack)
        assert given.judgement == Thumb(up=True)
        assert given.completion_id == request.completion_id
        (cookie,) = await context.cookies()
        assert given.user_hash == request.user_hash == IDS.user_hash("default", cookie["value"])
        stack.generation.fail = Overloaded("everybody asks at once", retry_after=3600)
        await page.fill("#question", "And now?")
        await page.keyboard.press("Enter")
        await page.get_by_text("[everybody asks at once]").wait_for()
        assert problems == []
    finally:
        await context.close()
        server.ended.set()
        await running
