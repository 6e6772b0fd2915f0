"""The feedback browser in a real browser: filter, read, take back, export."""

from pathlib import Path
from typing import Any

from support.browser_page import browser_tests, opened, retracted_ids
from support.gateway_fakes import IDS
from support.gateway_stack import Stack
from support.page_samples import recorded

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.v1 import learner_pb2

pytestmark = browser_tests


def some() -> list[learner_pb2.RecordedFeedback]:
    pair = recorded(2, comparison={"chosen": "chatcmpl-2", "rejected": ["other"]})
    pair.completions.append(
        learner_pb2.JudgedCompletion(completion_id="other", text="Worse.", policy_version=1)
    )
    retracted = recorded(4, comment={"text": "Too long."})
    retracted.status = "retracted"
    return [
        recorded(1, thumb={"value": "THUMB_VALUE_UP"}),
        pair,
        recorded(3, demonstration={"text": "A better answer."}),
        retracted,
    ]


async def test_filter_and_read(browser: Any, stack: Stack) -> None:
    stack.learner.recorded = some()
    async with opened(browser, stack, "/feedback") as page:
        await page.get_by_text("4 found").wait_for()
        await page.get_by_text("Question 1?").click()
        opened_item = page.locator("details.item[open]")
        assert await opened_item.locator(".text em").inner_text() == "answer"
        facts = await opened_item.locator(".facts").inner_text()
        assert "version 3" in facts
        assert "fb-1" in facts
        assert "shop" in facts
        await page.get_by_text("Question 2?").click()
        blocks = opened_item.nth(1).locator(".block h3")
        assert await blocks.all_inner_texts() == [
            "User",
            "Chosen, version 2",
            "Rejected, version 1",
        ]

        await page.get_by_label("Kind").select_option("comment")
        await page.get_by_text("1 found").wait_for()
        assert await page.get_by_label("Thumb").is_disabled()
        await page.get_by_text("Question 4?").click()
        await page.get_by_text("Too long.").wait_for()
        assert page.url.endswith("?kind=comment")

        await page.get_by_role("button", name="Clear").click()
        await page.get_by_label("Thumb").select_option("down")
        await page.get_by_label("Version").fill("2")
        await page.get_by_label("User").fill("ann")
        await page.get_by_label("Status").select_option("retracted")
        await page.get_by_text("1 found").wait_for()
        await page.wait_for_url("**user=ann**")
        asked = [c for c in stack.learner.calls if isinstance(c, learner_pb2.ListFeedbackRequest)]
        last = asked[-1]
        assert (last.value, last.policy_version, last.status) == ("down", 2, "retracted")
        assert last.user_hash == IDS.user_hash("default", "ann")
        await page.reload()
        await page.get_by_text("1 found").wait_for()
        assert await page.get_by_label("User").input_value() == "ann"


async def test_more_than_a_page(browser: Any, stack: Stack) -> None:
    stack.learner.recorded = [
        recorded(number, thumb={"value": "THUMB_VALUE_DOWN"}) for number in range(60)
    ]
    async with opened(browser, stack, "/feedback") as page:
        await page.get_by_text("The latest 50").wait_for()
        await page.get_by_role("button", name="Show more").click()
        await page.get_by_text("60 found").wait_for()
        assert await page.locator(".item").count() == 60
        assert "Question 50?" in await page.evaluate("document.activeElement.textContent")
        assert await page.get_by_role("button", name="Show more").count() == 0


async def test_retract(browser: Any, stack: Stack) -> None:
    stack.learner.recorded = some()
    given = wire.feedback_from_proto(stack.learner.recorded[0].feedback)
    subject = subjects.feedback("tuneloop", "thumb", given.user_hash, given.feedback_id)
    await stack.bus.publish(subject, wire.encode_feedback(given), event_id=given.feedback_id)
    async with opened(browser, stack, "/feedback") as page:
        await page.get_by_text("Question 1?").click()
        await page.get_by_role("button", name="Retract").click()
        dialog = page.get_by_role("dialog", name="Retract this feedback?")
        await dialog.get_by_role("button", name="Retract").click()
        await page.locator(".item", has_text="Question 1?").get_by_text("retracted").wait_for()
        assert retracted_ids(stack) == ["fb-1"]
        assert await page.locator("details.item[open]").get_by_role("button").count() == 1


async def test_export(browser: Any, stack: Stack, tmp_path: Path) -> None:
    stack.learner.rows = ['{"prompt":"a","completion":"b","label":true}'] * 3
    async with opened(browser, stack, "/feedback") as page:
        await page.locator("#export summary").click()
        async with page.expect_download() as download:
            await page.get_by_role("button", name="Thumbs").click()
        saved = await download.value
        assert saved.suggested_filename == "thumbs.jsonl"
        await saved.save_as(tmp_path / "thumbs.jsonl")
        assert (tmp_path / "thumbs.jsonl").read_text().splitlines() == stack.learner.rows
        await page.get_by_text("thumbs.jsonl: 1 kB.").wait_for()
        [asked] = [c for c in stack.learner.calls if isinstance(c, learner_pb2.ExportDataRequest)]
        assert asked.kind == "thumbs"
        stack.learner.rows = []
        await page.get_by_role("button", name="Pairs").click()
        await page.get_by_text("There is nothing of this kind yet").wait_for()
        await page.keyboard.press("Escape")
        assert not await page.locator("#export").evaluate("menu => menu.open")


async def test_problems_are_told_and_can_be_retried(browser: Any, stack: Stack) -> None:
    await stack.servers["learner"].stop()
    async with opened(browser, stack, "/feedback", failures=True) as page:
        await page.get_by_role("alert").wait_for()
        await page.get_by_role("button", name="Try again").click()
        await page.get_by_label("Version").fill("many")
        await page.get_by_role("alert").get_by_text("policy_version").wait_for()
