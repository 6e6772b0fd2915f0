"""A page in real Chromium: opened, watched for whatever goes wrong in it, and used."""

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.gateway_stack import Stack

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.feedback import Feedback, Signal

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
EXPECTED_FAILURES = (
    "400",
    "401",
    "403",
    "412",
    "503",
    "ERR_CONNECTION_REFUSED",
    "ERR_INCOMPLETE_CHUNKED",
)

browser_tests = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]

TELL_VIOLATIONS = """document.addEventListener("securitypolicyviolation", (event) =>
  console.error(`CSP: ${event.violatedDirective} ${event.blockedURI}`));"""


@asynccontextmanager
async def opened(
    browser: Any, stack: Stack, path: str = "/", *, failures: bool = False, **options: Any
) -> AsyncIterator[Any]:
    """A page in a context of its own.

    Ends with the assertion that the console stayed clean, the content security policy held and
    nothing was asked of any other host. `failures` allows the lines that a browser itself logs for
    an answer that is an error, or none.
    """
    problems: list[str] = []

    def heard(message: Any) -> None:
        told = failures and any(failure in message.text for failure in EXPECTED_FAILURES)
        if message.type in ("error", "warning") and not told:
            problems.append(message.text)

    def requested(request: Any) -> None:
        if not request.url.startswith((stack.url, "blob:", "data:")):
            problems.append(f"asked for {request.url}")

    context = await browser.new_context(**options)
    await context.add_init_script(TELL_VIOLATIONS)
    page = await context.new_page()
    page.set_default_timeout(15_000)
    page.on("console", heard)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", requested)
    try:
        await page.goto(stack.url + path)
        yield page
    finally:
        await context.close()
    assert problems == []


async def ask(page: Any, text: str) -> Any:
    """Send a message; the answer's element, once it has ended. An answer that failed fails here."""
    before = await page.locator(".turn").count()
    await page.fill("#prompt", text)
    await page.keyboard.press("Enter")
    answer = page.locator(".turn").nth(before).locator(".answer")
    await answer.locator("footer.meta").first.wait_for()
    assert await answer.locator(".failure").all_inner_texts() == []
    await answer.locator(".tools").first.wait_for()
    return answer


def feedback_of(stack: Stack) -> list[Feedback]:
    """What was given, in order; retractions are left out."""
    events = stack.bus.streams[subjects.FEEDBACK].events
    return [wire.decode_feedback(e.data) for e in events if not subjects.is_retraction(e.subject)]


def signals_of(stack: Stack) -> list[Signal]:
    """What the page said that a person did, in order."""
    return [wire.decode_signal(e.data) for e in stack.bus.streams[subjects.SIGNALS].events]


def retracted_ids(stack: Stack) -> list[str]:
    events = stack.bus.streams[subjects.FEEDBACK].events
    return [
        wire.decode_retraction(e.data).feedback_id
        for e in events
        if subjects.is_retraction(e.subject)
    ]


async def until(page: Any, holds: Callable[[], bool]) -> None:
    for _ in range(200):
        if holds():
            return
        await page.wait_for_timeout(50)
    raise AssertionError("did not come about")
