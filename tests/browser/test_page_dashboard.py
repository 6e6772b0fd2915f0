"""The dashboard in a real browser: it follows the service by itself, and steers it."""

import re
from datetime import UTC, datetime
from typing import Any

import pytest
from support.browser_page import browser_tests, opened, until
from support.gateway_stack import Stack

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.errors import FailedPrecondition
from tuneloop.v1 import learner_pb2

pytestmark = browser_tests


def of_version(page: Any, number: int) -> Any:
    return page.locator(f'.timeline li[data-number="{number}"]')


def chart(page: Any, title: str) -> Any:
    return page.locator("figure.chart", has=page.get_by_role("heading", name=title, exact=True))


async def publish_step(stack: Stack, step: int, **metrics: float) -> None:
    data = wire.encode_learner_stepped("tuneloop", step, metrics, datetime.now(UTC))
    await stack.bus.publish(subjects.learner_step("tuneloop"), data, event_id=f"step-{step}")


async def test_it_changes_by_itself_when_a_version_goes_live(browser: Any, stack: Stack) -> None:
    traffic = learner_pb2.Traffic(rollouts=20, mean_length=31, thumbs_up=3, thumbs_down=9)
    stack.learner.traffic = {1: traffic, 3: traffic}
    async with opened(browser, stack, "/dashboard") as page:
        await page.locator("#serving", has_text="version 3").wait_for()
        await of_version(page, 3).get_by_text("live").wait_for()
        await page.get_by_text("Waiting for 12 more samples.").wait_for()
        assert await page.get_by_role("progressbar", name="thumbs, comparisons, edits").evaluate(
            "bar => [bar.value, bar.max]"
        ) == [4, 16]
        await page.get_by_text("1 of 2, or in 5 s").wait_for()
        thumbs = chart(page, "Thumbs up")
        assert await thumbs.locator("circle").count() == 2
        assert "version 3: 25% (9% to 53%)" in await thumbs.inner_text()

        stack.generation.policy_version = stack.learner.stable = stack.learner.newest = 4
        stack.learner.state = "stepping"
        stack.learner.traffic[4] = learner_pb2.Traffic(
            rollouts=5, mean_length=12, length_margin=2.5, mean_reward=0.5, thumbs_up=5
        )
        await page.locator("#serving", has_text="version 4").wait_for()
        await of_version(page, 4).get_by_text("live").wait_for()
        assert await of_version(page, 3).get_by_text("live").count() == 0
        await page.locator("#learner-word", has_text="learning").wait_for()
        await thumbs.get_by_text("version 4: 100%").wait_for()
        await chart(page, "Length").get_by_text("version 4: 12 (9.5 to 14.5)").wait_for()
        await chart(page, "Reward").get_by_text("version 4: 0.5").wait_for()
        await thumbs.get_by_text("As a table").click()
        assert await thumbs.locator("tbody tr").count() == 3

        stack.generation.canary = (5, 0.1, True)
        await page.get_by_text("Version 5 is being tried on 10% of users").wait_for()

        await publish_step(stack, 6, loss=0.4, kl=0.02)
        await chart(page, "Loss").get_by_text("step 6: 0.4").wait_for()
        await publish_step(stack, 7, loss=0.3)
        await chart(page, "Loss").get_by_text("step 7: 0.3").wait_for()
        await chart(page, "KL").get_by_text("step 6: 0.02").wait_for()
        label = await chart(page, "Loss").get_by_role("img").get_attribute("aria-label")
        assert label == "Loss by step: step 6: 0.4, … step 7: 0.3"


@pytest.mark.slow
async def test_intervals_stay_in_range_and_need_five_samples(browser: Any, stack: Stack) -> None:
    few = learner_pb2.Traffic(rollouts=4, mean_length=68, length_margin=117, thumbs_up=2)
    some = learner_pb2.Traffic(rollouts=5, mean_length=68, length_margin=117, thumbs_up=2)
    stack.learner.traffic = {1: some, 3: few}
    async with opened(browser, stack, "/dashboard") as page:
        length = chart(page, "Length")
        await length.get_by_text("version 3: 68 (too few)").wait_for()
        await length.get_by_text("As a table").click()
        rows = await length.locator("tbody tr").all_inner_texts()
        assert rows == ["3\t68\ttoo few", "1\t68\t0 to 185"]
        await chart(page, "Thumbs up").get_by_text("version 3: 100% (too few)").wait_for()
        await of_version(page, 3).get_by_text("2 of 2 thumbs up").wait_for()


@pytest.mark.slow
async def test_the_latest_feedback_appears(browser: Any, stack: Stack) -> None:
    async with opened(browser, stack, "/dashboard") as page:
        await page.get_by_text("No feedback yet").wait_for()
        given = learner_pb2.RecordedFeedback(status="accepted", prompt_text="Why?")
        given.feedback.event_id = "fb-1"
        given.feedback.policy = "tuneloop"
        given.feedback.tenant = "default"
        given.feedback.user_hash = "abc"
        given.feedback.completion_id = "chatcmpl-1"
        given.feedback.comment.text = "Too long."
        given.feedback.accepted_time.GetCurrentTime()
        stack.learner.recorded = [given]
        await page.locator(".latest").get_by_text("Too long.").wait_for()
        await page.get_by_role("link", name="All feedback").click()
        await page.get_by_role("heading", name="Feedback", exact=True).wait_for()


async def test_promote_and_roll_back(browser: Any, stack: Stack) -> None:
    async with opened(browser, stack, "/dashboard") as page:
        await page.get_by_role("button", name="Promote version 1").click()
        dialog = page.get_by_role("dialog", name="Promote version 1?")
        await dialog.get_by_role("button", name="Cancel").click()
        assert stack.learner.stable == 3
        await page.get_by_role("button", name="Promote version 1").click()
        await dialog.get_by_role("button", name="Promote version 1").click()
        await until(page, lambda: stack.learner.stable == 1)
        await dialog.wait_for(state="hidden")

        stack.generation.policy_version = 2
        await of_version(page, 2).get_by_text("live").wait_for()
        await page.get_by_role("button", name="Roll back").click()
        dialog = page.get_by_role("dialog", name="Roll back to version 1?")
        await dialog.get_by_role("button", name="Roll back to version 1").click()
        await dialog.wait_for(state="hidden")
        asked = [c for c in stack.learner.calls if isinstance(c, learner_pb2.RollBackRequest)]
        assert [request.policy_version for request in asked] == [1]


@pytest.mark.slow
async def test_learning_is_paused_and_resumed(browser: Any, stack: Stack) -> None:
    async with opened(browser, stack, "/dashboard") as page:
        await page.get_by_role("button", name="Pause", exact=True).click()
        dialog = page.get_by_role("dialog", name="Pause learning?")
        await dialog.get_by_role("button", name="Pause learning").click()
        await until(page, lambda: stack.learner.state == "paused")
        await page.locator("#learner-word", has_text="learning is paused").wait_for()
        await page.get_by_role("button", name="Resume", exact=True).click()
        dialog = page.get_by_role("dialog", name="Resume learning?")
        await dialog.get_by_role("button", name="Resume learning").click()
        await until(page, lambda: stack.learner.state == "waiting")


@pytest.mark.slow
async def test_a_version_tells_what_was_decided_about_it(browser: Any, stack: Stack) -> None:
    async with opened(browser, stack, "/dashboard") as page:
        await of_version(page, 3).get_by_text("1 decision").click()
        await of_version(page, 3).get_by_text("gate: passed").wait_for()
        await of_version(page, 3).get_by_text("within all bounds").wait_for()


@pytest.mark.slow
async def test_a_refusal_is_told_in_the_dialog(browser: Any, stack: Stack) -> None:
    stack.learner.refusal = FailedPrecondition("version 1 is quarantined")
    async with opened(browser, stack, "/dashboard", failures=True) as page:
        await page.get_by_role("button", name="Promote version 1").click()
        await page.get_by_role("dialog").get_by_role("button", name="Promote version 1").click()
        await page.get_by_role("alert").get_by_text("version 1 is quarantined").wait_for()
        await page.keyboard.press("Escape")
        await page.get_by_role("dialog").wait_for(state="hidden")
        assert stack.learner.stable == 3


@pytest.mark.slow
async def test_it_says_so_while_services_are_away(browser: Any, stack: Stack) -> None:
    async with opened(browser, stack, "/dashboard") as page:
        await page.get_by_text("Waiting for 12 more samples.").wait_for()
        await stack.servers["learner"].stop()
        await page.get_by_text("Feedback is kept until it is back.").wait_for()
        await page.locator("#serving", has_text=re.compile("version 3")).wait_for()
        await page.get_by_text("The learner is down. Versions appear when it is back.").wait_for()
        assert await page.get_by_role("button", name="Roll back").is_disabled()
