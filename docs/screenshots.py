"""Draws docs/page.png and docs/dashboard.png from a running service.

`python -m docs.screenshots [http://127.0.0.1:8000]`
"""

import asyncio
import shutil
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
SIZE = {"width": 1200, "height": 760}
TALL = {"width": 1200, "height": 1260}
SECONDS = 180


async def ask(page: Any, question: str) -> None:
    """Send a message and wait for its end."""
    await page.fill("#prompt", question)
    await page.keyboard.press("Enter")
    await page.get_by_role("button", name="Stop answering").wait_for()
    await page.get_by_role("button", name="Send").wait_for()


async def draw_chat(page: Any, url: str) -> None:
    """A thumb on an answer, and two answers side by side."""
    await page.goto(url)
    await page.get_by_role("group", name="Status").get_by_text("version").wait_for()
    await ask(page, "What do bees make?")
    await page.get_by_label("Good answer").click()
    await page.get_by_text("The next version learns from it").wait_for()
    await page.get_by_role("button", name="Side by side").click()
    await ask(page, "Explain why the sky is blue in one sentence.")
    await page.get_by_role("button", name="Answer B is better").click()
    await page.get_by_text("The next version learns from it").nth(1).wait_for()
    await page.evaluate("document.activeElement.blur()")
    await page.screenshot(path=DOCS / "page.png")


async def draw_dashboard(page: Any, url: str) -> None:
    """After some seconds, for the line of the throughput."""
    await page.set_viewport_size(TALL)
    await page.goto(f"{url}/dashboard")
    await page.locator("#serving", has_text="version").wait_for()
    await page.wait_for_timeout(40_000)
    await page.screenshot(path=DOCS / "dashboard.png")


async def main(url: str) -> None:
    """Both pictures."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = await browser.new_page(viewport=SIZE, color_scheme="light")
        page.set_default_timeout(SECONDS * 1000)
        await draw_chat(page, url)
        await draw_dashboard(page, url)
        await browser.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"))
