"""The page in a real browser: a chat, a thumb, a new version, a stop, an error, a key."""

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from gateway_fakes import Stack, running_gateway

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.errors import Unavailable
from tuneloop.feedback import Thumb

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]

EXPECTED_FAILURES = ("503", "401")


@asynccontextmanager
async def opened(
    stack: Stack, *, failures: bool = False, **context_options: Any
) -> AsyncIterator[Any]:
    """The page in a fresh browser; ends with the assertion that the console stayed clean.

    `failures` allows the lines a browser itself logs for an answer of status 401 or 503.
    """
    from playwright.async_api import async_playwright

    problems: list[str] = []

    def heard(message: Any) -> None:
        told = failures and any(status in message.text for status in EXPECTED_FAILURES)
        if message.type in ("error", "warning") and not told:
            problems.append(message.text)

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = await browser.new_context(**context_options)
        page = await context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", heard)
        page.on("pageerror", lambda error: problems.append(str(error)))
        await page.goto(stack.url)
        yield page
        await browser.close()
    assert problems == []


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_gateway() as running:
        yield running


async def ask(page: Any, text: str) -> Any:
    """Send a message; the answer's element, once it has ended."""
    await page.fill("#prompt", text)
    await page.keyboard.press("Enter")
    answer = page.locator(".answer").last
    await answer.locator(".thumb").first.wait_for()
    return answer


def votes(stack: Stack) -> list[Any]:
    return [wire.decode_feedback(e.data) for e in stack.bus.streams[subjects.FEEDBACK].events]


async def until(page: Any, holds: Callable[[], bool]) -> None:
    for _ in range(200):
        if holds():
            return
        await page.wait_for_timeout(50)
    raise AssertionError("did not come about")


async def test_chat_thumb_and_new_version(stack: Stack) -> None:
    async with opened(stack) as page:
        await page.get_by_text("version 3").wait_for()
        await page.get_by_text("5 thumbs waiting").wait_for()
        stack.generation.pieces = ("**Bold** <b>not</b>\n", "\n- one\n- two\n", "```\nx = 1\n```")
        answer = await ask(page, "hello")
        assert await answer.locator("strong").inner_text() == "Bold"
        assert "<b>not</b>" in await answer.inner_text()
        assert await answer.locator("li").count() == 2
        assert (await answer.locator("pre").inner_text()).strip() == "x = 1"
        assert await answer.locator(".badge").inner_text() == "version 3"
        assert await page.evaluate("document.activeElement.id") == "prompt"

        up, down = answer.get_by_label("Good answer"), answer.get_by_label("Bad answer")
        await up.click()
        await until(page, lambda: len(votes(stack)) == 1)
        assert await up.get_attribute("aria-pressed") == "true"
        await up.click()
        await down.click()
        await until(page, lambda: len(votes(stack)) == 2)
        assert await up.get_attribute("aria-pressed") == "false"
        assert await down.get_attribute("aria-pressed") == "true"
        first, second = votes(stack)
        assert (first.judgement, second.judgement) == (Thumb(up=True), Thumb(up=False))
        assert first.completion_id == second.completion_id
        assert first.user_hash == second.user_hash == stack.generation.requests[0].user_hash

        stack.generation.policy_version = 4
        await page.get_by_text("Version 4 is live").wait_for()
        stack.generation.pieces = ("short",)
        answer = await ask(page, "again")
        assert await answer.locator(".badge").inner_text() == "version 4"
        turns = stack.generation.requests[-1].chat.messages
        assert [turn.role for turn in turns] == ["user", "assistant", "user"]
        stack.generation.policy_version = 3
        await page.get_by_text("Back on version 3").wait_for()
        await page.get_by_role("button", name="New chat").click()
        await page.get_by_text("Then press a thumb").wait_for()


async def test_stop_with_the_keyboard(stack: Stack) -> None:
    stack.generation.pieces = ("word ",) * 10_000
    stack.generation.delay = 0.02
    async with opened(stack) as page:
        await page.fill("#prompt", "go on for ever")
        await page.keyboard.press("Enter")
        await page.get_by_role("button", name="Stop answering").wait_for()
        await page.locator(".answer .text", has_text="word word").wait_for()
        await page.keyboard.press("Escape")
        await stack.generation.cancelled.wait()
        await page.get_by_role("button", name="Send").wait_for()
        assert await page.locator(".answer .thumb").count() == 2


async def test_errors_are_told_and_can_be_retried(stack: Stack) -> None:
    async with opened(stack, failures=True) as page:
        await page.get_by_text("version 3").wait_for()
        stack.generation.fail = Unavailable("generation is restarting")
        await page.get_by_role("button", name="Tell me a fun fact about honey.").click()
        await page.get_by_role("alert").get_by_text("generation is restarting").wait_for()
        stack.generation.fail = None
        await page.get_by_role("button", name="Try again").click()
        await page.locator(".answer .thumb").first.wait_for()
        assert await page.locator(".question").count() == 1
        assert len(stack.generation.requests[-1].chat.messages) == 1

        stack.bus.go_down()
        await page.get_by_role("button", name="Good answer").click()
        await page.get_by_text("trying again").wait_for()
        stack.bus.come_back()
        await page.get_by_text("The next version learns from it").wait_for()
        assert len(votes(stack)) == 1


async def test_a_key_is_asked_for() -> None:
    async with running_gateway(api_key="the key") as stack, opened(stack, failures=True) as page:
        await page.get_by_label("Key", exact=True).fill("the key")
        await page.keyboard.press("Enter")
        await page.get_by_text("version 3").wait_for()
        await ask(page, "hello")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_phone_width_and_contrast(stack: Stack, scheme: Any) -> None:
    viewport = {"width": 360, "height": 640}
    async with opened(stack, color_scheme=scheme, viewport=viewport) as page:
        stack.generation.pieces = ("```\n" + "long " * 100 + "\n```\n", "x" * 300)
        answer = await ask(page, "y" * 300)
        width = await page.evaluate("document.documentElement.scrollWidth")
        assert width == viewport["width"]
        box = await answer.get_by_label("Good answer").bounding_box()
        assert box["width"] >= 44
        assert box["height"] >= 44
        for selector in (".answer .text", ".hint", ".badge", ".note", "#learner", ".question"):
            assert await page.locator(selector).first.evaluate(CONTRAST) >= 4.5, selector


CONTRAST = """node => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (rgb) => rgb.slice(0, 3)
    .map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  let behind = node;
  let background = [0, 0, 0, 0];
  while (behind && background.length === 4 && background[3] === 0) {
    background = parse(getComputedStyle(behind).backgroundColor);
    behind = behind.parentElement;
  }
  const [a, b] = [luminance(parse(getComputedStyle(node).color)), luminance(background)];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""
