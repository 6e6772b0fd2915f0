"""Every page for everybody: axe, the keyboard, screen readers, a phone's width, both schemes."""

from typing import Any

import pytest
from support.browser_page import ask, browser_tests, feedback_of, opened, until
from support.gateway_stack import Stack
from support.page_samples import recorded

from tuneloop.feedback import Comparison, Thumb
from tuneloop.v1 import learner_pb2

pytestmark = browser_tests

PHONE = {"width": 360, "height": 640}
AXE = """async (options) => {
  const found = await axe.run(document, options);
  return found.violations.flatMap(({ id, impact, nodes }) =>
    nodes.map((node) => `${impact} ${id}: ${node.target.join(" ")} ${node.failureSummary}`));
}"""


async def axe_problems(page: Any, source: str) -> list[str]:
    """What axe finds wrong, of whatever impact."""
    # By the debugging protocol, not as a script of the page: its policy would refuse that.
    await page.evaluate(source + "; undefined")
    return list(await page.evaluate(AXE, {"resultTypes": ["violations"]}))


def fill(stack: Stack) -> None:
    """Something of everything."""
    traffic = learner_pb2.Traffic(rollouts=20, mean_length=31, length_margin=3, thumbs_up=3)
    stack.learner.traffic = {1: traffic, 2: traffic, 3: traffic}
    stack.learner.recorded = [
        recorded(1, thumb={"value": "THUMB_VALUE_UP"}),
        recorded(2, comparison={"chosen": "chatcmpl-2", "rejected": ["other"]}),
        recorded(3, comment={"text": "Too long."}),
    ]
    stack.learner.recorded[2].status = "retracted"
    stack.generation.pieces = (
        "# Title\n\n**Bold** `code` [link](https://example.org)\n\n",
        "1. one\n\n```python\nlong = '"
        + "long " * 100
        + "'\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n",
        "x" * 300,
    )


async def show_everything(page: Any, path: str) -> None:
    """Bring the page into the state in which most of it is seen."""
    if path == "/":
        answer = await ask(page, "y" * 300)
        await answer.get_by_label("Good answer").click()
        await answer.get_by_text("The next version learns from it").wait_for()
        await answer.get_by_label("Comment", exact=True).click()
        await page.keyboard.type("so so")
        await page.keyboard.press("Control+Enter")
        await answer.get_by_text("“so so”").wait_for()
        await page.get_by_role("button", name="Side by side").click()
        await ask(page, "two of them")
        await page.get_by_role("button", name="Answer A is better").click()
        await page.get_by_label("Comment", exact=True).last.click()
    elif path == "/dashboard":
        await page.locator(".timeline li").nth(2).wait_for()
        await page.locator("figure circle").first.wait_for()
        await page.get_by_text("As a table").first.click()
        await page.locator(".latest strong").first.wait_for()
    else:
        await page.get_by_text("Question 2?").click()
        await page.locator("#export summary").click()


@pytest.mark.parametrize(
    "path",
    ["/", *(pytest.param(path, marks=pytest.mark.slow) for path in ("/dashboard", "/feedback"))],
)
async def test_axe_finds_nothing_and_it_fits_a_phone(
    browser: Any, stack: Stack, axe_source: str, path: str
) -> None:
    fill(stack)
    async with opened(browser, stack, path, color_scheme="light") as page:
        await show_everything(page, path)
        assert await axe_problems(page, axe_source) == []
        await page.emulate_media(color_scheme="dark")
        assert await axe_problems(page, axe_source) == []
        await page.set_viewport_size(PHONE)
        assert await page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        assert await axe_problems(page, axe_source) == []
        assert await page.evaluate(SMALL_TARGETS, [".tools .tool, .bar .tool", 44]) == []
        assert await page.evaluate(SMALL_TARGETS, ["button, select, summary, nav a", 24]) == []


SMALL_TARGETS = """([selector, size]) => [...document.querySelectorAll(selector)]
  .filter((node) => node.checkVisibility({ visibilityProperty: true }))
  .map((node) => [node.ariaLabel ?? node.textContent, node.getBoundingClientRect()])
  .filter(([, box]) => box.height < size || box.width < size)
  .map(([name, box]) => `${name}: ${box.width} x ${box.height}`)"""


@pytest.mark.slow
async def test_axe_finds_nothing_in_dialogs(browser: Any, stack: Stack, axe_source: str) -> None:
    async with opened(browser, stack, "/dashboard") as page:
        for name in ("Keyboard shortcuts", "Promote version 1"):
            await page.get_by_role("button", name=name).click()
            await page.get_by_role("dialog").wait_for()
            assert await axe_problems(page, axe_source) == []
            await page.keyboard.press("Escape")
        await page.evaluate("document.dispatchEvent(new CustomEvent('tuneloop:key-needed'))")
        await page.get_by_role("dialog", name="This service needs a key").wait_for()
        assert await axe_problems(page, axe_source) == []


async def test_everything_by_keyboard(browser: Any, stack: Stack) -> None:
    async with opened(browser, stack) as page:
        answer = await ask(page, "hello")
        await page.keyboard.press("u")
        assert feedback_of(stack) == []
        assert await page.locator("#prompt").input_value() == "u"
        await page.fill("#prompt", "")

        await page.keyboard.press("Escape")
        assert await answer.evaluate("node => node === document.activeElement")
        await page.keyboard.press("u")
        await answer.get_by_text("The next version learns from it").wait_for()
        assert [given.judgement for given in feedback_of(stack)] == [Thumb(up=True)]
        await page.keyboard.press("e")
        await page.keyboard.press("Control+A")
        await page.keyboard.type("Better.")
        await page.keyboard.press("Control+Enter")
        await answer.get_by_text("The next version learns to answer like that").wait_for()
        await page.keyboard.press("r")
        await answer.get_by_text("2 / 2").wait_for()

        await page.keyboard.press("?")
        dialog = page.get_by_role("dialog", name="Keyboard shortcuts")
        await dialog.get_by_text("Thumbs up for the focused answer").wait_for()
        await dialog.get_by_label("Use single-key shortcuts").uncheck()
        await page.keyboard.press("Escape")
        await dialog.wait_for(state="hidden")
        await page.keyboard.press("?")
        assert await dialog.count() == 0

        # Tab from the top: first the way past the bar, then the bar, each with a visible focus.
        await page.goto(stack.url + "/dashboard")
        await page.get_by_role("heading", name="Dashboard").wait_for()
        names = []
        for _ in range(4):
            await page.keyboard.press("Tab")
            names.append(await page.evaluate("document.activeElement.textContent"))
            outline = "getComputedStyle(document.activeElement).outlineStyle"
            assert await page.evaluate(outline) == "solid"
        assert names == ["Skip to content", "tuneloop", "Chat", "Dashboard"]


@pytest.mark.slow
async def test_a_pick_by_keyboard(browser: Any, stack: Stack) -> None:
    async with opened(browser, stack) as page:
        await page.get_by_role("button", name="Side by side").click()
        pair = await ask(page, "hello")
        await page.get_by_text("Which is better?").wait_for()
        await page.keyboard.press("Escape")
        await page.keyboard.press("b")
        await until(page, lambda: len(feedback_of(stack)) == 1)
        [request] = stack.generation.requests
        assert feedback_of(stack)[0].judgement == Comparison(
            chosen=f"{request.completion_id}.1", rejected=(request.completion_id,)
        )
        assert await pair.nth(1).evaluate("node => node.classList.contains('picked')")


@pytest.mark.slow
async def test_screen_readers_hear_an_answer_once(browser: Any, stack: Stack) -> None:
    stack.generation.pieces = ("word ",) * 60
    stack.generation.delay = 0.01
    async with opened(browser, stack) as page:
        await page.evaluate("""() => {
            window.heard = [];
            new MutationObserver(() => heard.push(announcer.textContent))
              .observe(announcer, { childList: true, characterData: true, subtree: true });
        }""")
        await ask(page, "hello")
        await page.get_by_label("Good answer").wait_for()
        heard = await page.evaluate("heard")
        assert heard[0] == "The model is answering."
        assert len(heard) == 2
        assert heard[1].startswith("Answer: word word")
        assert await page.get_by_role("log").get_attribute("aria-live") == "off"


@pytest.mark.slow
async def test_colours_can_be_switched_and_stay(browser: Any, stack: Stack) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    async with opened(browser, stack, color_scheme="light") as page:
        light = await page.evaluate(background)
        await page.get_by_role("button", name="Dark theme").click()
        dark = await page.evaluate(background)
        assert dark != light
        await page.get_by_role("link", name="Dashboard").click()
        await page.get_by_role("heading", name="Dashboard").wait_for()
        assert await page.evaluate(background) == dark
        await page.get_by_role("button", name="Light theme").click()
        assert await page.evaluate(background) == light


@pytest.mark.slow
async def test_nothing_moves_for_who_wants_it_so(browser: Any, stack: Stack) -> None:
    stack.learner.state = "stepping"
    async with opened(browser, stack, "/dashboard", reduced_motion="reduce") as page:
        await page.locator("#learner-word", has_text="learning").wait_for()
        assert await page.evaluate("document.getAnimations().length") == 0
