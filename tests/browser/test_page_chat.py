"""The chat page in a real browser: every kind of feedback, versions, and whatever goes wrong."""

import math
from pathlib import Path
from typing import Any

import pytest
from support.browser_page import (
    ask,
    browser_tests,
    feedback_of,
    opened,
    retracted_ids,
    signals_of,
    until,
)
from support.gateway_stack import Stack, running_gateway

from tuneloop.errors import Unavailable
from tuneloop.feedback import Comment, Comparison, Demonstration, Thumb
from tuneloop.gateway.keys.store import KeyFile, Limits, Scope, new_key
from tuneloop.v1 import learner_pb2

pytestmark = browser_tests


def texts(request: Any) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in request.chat.messages]


async def status_says(page: Any, text: str) -> None:
    await page.get_by_role("group", name="Status").get_by_text(text).wait_for()


async def test_a_thumb_is_given_changed_and_taken_back(browser: Any, stack: Stack) -> None:
    async with opened(browser, stack) as page:
        await status_says(page, "version 3")
        await status_says(page, "5 thumbs waiting")
        answer = await ask(page, "hello")
        assert await answer.locator(".badge").inner_text() == "version 3"
        assert await page.evaluate("document.activeElement.id") == "prompt"

        up, down = answer.get_by_label("Good answer"), answer.get_by_label("Bad answer")
        await up.click()
        await answer.get_by_text("The next version learns from it").wait_for()
        assert await up.get_attribute("aria-pressed") == "true"
        await down.click()
        await answer.get_by_text("Changed.").wait_for()
        assert await up.get_attribute("aria-pressed") == "false"
        assert await down.get_attribute("aria-pressed") == "true"
        first, second = feedback_of(stack)
        assert (first.judgement, second.judgement) == (Thumb(up=True), Thumb(up=False))
        assert first.completion_id == second.completion_id
        assert first.user_hash == second.user_hash == stack.generation.requests[0].user_hash

        await down.click()
        await answer.get_by_text("Taken back.").wait_for()
        assert await down.get_attribute("aria-pressed") == "false"
        assert sorted(retracted_ids(stack)) == sorted([first.feedback_id, second.feedback_id])


async def test_a_better_answer_and_a_comment(browser: Any, stack: Stack) -> None:
    stack.generation.pieces = ("Bees make *wax*.",)
    async with opened(browser, stack) as page:
        answer = await ask(page, "What do bees make?")
        await answer.get_by_label("Write a better answer").click()
        box = page.get_by_label("The answer as it should have been")
        assert await box.input_value() == "Bees make *wax*."
        await box.fill("Bees make honey.")
        await page.get_by_role("button", name="Save the better answer").click()
        await answer.get_by_text("The next version learns to answer like that").wait_for()
        assert await answer.locator(".text").first.inner_text() == "Bees make honey."
        await answer.get_by_text("What the model wrote").click()
        await answer.get_by_text("Bees make wax.").wait_for()

        await answer.get_by_label("Comment", exact=True).click()
        await page.keyboard.type("It forgot the honey.")
        await page.keyboard.press("Enter")
        await answer.get_by_text("“It forgot the honey.”").wait_for()
        await answer.get_by_text("stored for people to read, not learned from").wait_for()
        await until(page, lambda: len(feedback_of(stack)) == 2)
        edited, commented = (feedback.judgement for feedback in feedback_of(stack))
        assert edited == Demonstration(text="Bees make honey.")
        assert commented == Comment(text="It forgot the honey.")

        await ask(page, "And wasps?")
        said = texts(stack.generation.requests[-1])
        assert said[1:] == [("assistant", "Bees make honey."), ("user", "And wasps?")]

        await answer.get_by_role("button", name="Take it back").first.click()
        await answer.get_by_text("Taken back.").wait_for()
        assert retracted_ids(stack) == [feedback_of(stack)[0].feedback_id]
        assert await answer.locator(".text").first.inner_text() == "Bees make wax."


async def test_a_conversation_is_rated_as_a_whole(browser: Any, stack: Stack) -> None:
    async with opened(browser, stack) as page:
        await ask(page, "hello")
        rating = page.locator("#session")
        # One answer has thumbs of its own.
        assert not await rating.is_visible()
        await ask(page, "and again")
        first, second = stack.generation.requests
        assert first.session_id
        assert first.session_id == second.session_id

        up = rating.get_by_label("Good conversation")
        await up.click()
        await rating.get_by_text("learns from the whole conversation").wait_for()
        assert await up.get_attribute("aria-pressed") == "true"
        (given,) = feedback_of(stack)
        assert (given.judgement, given.completion_id) == (Thumb(up=True), "")
        assert given.session_id == first.session_id
        stack.learner.effects = [learner_pb2.Effect(policy_version=4, text="answer", tokens=1)]
        await page.reload()
        assert await up.get_attribute("aria-pressed") == "true"
        stack.generation.policy_version = 4
        await rating.get_by_text("Version 4 learned from this conversation.").wait_for()

        await up.click()
        await rating.get_by_text("Taken back.").wait_for()
        assert retracted_ids(stack) == [given.feedback_id]
        await page.get_by_role("button", name="New chat").click()
        assert not await rating.is_visible()
        await ask(page, "something else")
        assert stack.generation.requests[-1].session_id not in ("", first.session_id)


async def test_what_is_done_with_answers_is_told_unless_switched_off(
    browser: Any, stack: Stack
) -> None:
    stack.generation.pieces = ("Bees make wax.",)
    async with opened(browser, stack) as page:
        answer = await ask(page, "What do bees make?")
        await answer.get_by_label("Copy", exact=True).click()
        await answer.get_by_label("Write a better answer").click()
        await page.get_by_label("The answer as it should have been").fill("Bees make honey.")
        await page.get_by_role("button", name="Save the better answer").click()
        await answer.get_by_role("button", name="Ask again").click()
        await answer.get_by_text("2 / 2").wait_for()
        again = stack.generation.requests[-1].completion_id
        await ask(page, "And wasps?")
        await until(page, lambda: len(signals_of(stack)) == 4)
        first = stack.generation.requests[0].completion_id
        assert [(s.kind, s.completion_id) for s in signals_of(stack)] == [
            ("copied", first),
            ("edited", first),
            ("regenerated", first),
            ("follow_up", again),
        ]
        # "Bees make " and "." stayed of 16 characters.
        assert signals_of(stack)[1].distance == pytest.approx(5 / 16)
        assert signals_of(stack)[0].user_hash == stack.generation.requests[0].user_hash

        await page.get_by_label("Tell the service when I copy").uncheck()
        await ask(page, "And hornets?")
        await page.reload()
        assert not await page.get_by_label("Tell the service when I copy").is_checked()
        assert len(signals_of(stack)) == 4


@pytest.mark.slow
async def test_regenerate_keeps_every_answer(browser: Any, stack: Stack) -> None:
    async with opened(browser, stack) as page:
        stack.generation.pieces = ("first",)
        answer = await ask(page, "hello")
        stack.generation.pieces = ("second",)
        await answer.get_by_role("button", name="Ask again").click()
        await answer.get_by_text("2 / 2").wait_for()
        assert await answer.locator(".text").inner_text() == "second"
        assert texts(stack.generation.requests[-1]) == [("user", "hello")]
        await page.get_by_label("Previous answer").click()
        await answer.get_by_text("1 / 2").wait_for()
        assert await answer.locator(".text").inner_text() == "first"
        assert await page.evaluate("document.activeElement.ariaLabel") == "Previous answer"
        await ask(page, "go on")
        assert texts(stack.generation.requests[-1])[1] == ("assistant", "first")
        assert await answer.get_by_role("button", name="Ask again").count() == 0


async def test_two_samples_side_by_side(browser: Any, stack: Stack) -> None:
    async with opened(browser, stack) as page:
        await page.get_by_role("button", name="Side by side").click()
        pair = await ask(page, "hello")
        [request] = stack.generation.requests
        assert request.sampling.n == 2
        assert not request.HasField("policy_version")
        assert await pair.count() == 2
        left, right = request.completion_id, f"{request.completion_id}.1"

        await page.get_by_role("button", name="Answer B is better").click()
        await page.get_by_text("The next version learns from it").wait_for()
        assert [f.judgement for f in feedback_of(stack)] == [
            Comparison(chosen=right, rejected=(left,))
        ]
        await page.get_by_role("button", name="Answer A is better").click()
        await until(page, lambda: len(feedback_of(stack)) == 2)
        assert feedback_of(stack)[1].judgement == Comparison(chosen=left, rejected=(right,))
        assert retracted_ids(stack) == []

        await page.get_by_role("button", name="A tie").click()
        await page.get_by_text("nothing is learned from a tie").wait_for()
        assert sorted(retracted_ids(stack)) == sorted(f.feedback_id for f in feedback_of(stack))
        await page.get_by_role("button", name="Side by side").click()
        await ask(page, "go on")
        await page.get_by_text("1 / 2").wait_for()


@pytest.mark.slow
async def test_two_versions_side_by_side_are_named_when_one_was_picked(
    browser: Any, stack: Stack
) -> None:
    stack.generation.loaded_versions = (0, 2, 3)
    async with opened(browser, stack) as page:
        await status_says(page, "version 3")
        await page.get_by_role("button", name="Side by side").click()
        await page.get_by_label("Version of one answer").select_option("3")
        await page.get_by_label("Version of the other answer").select_option("0")
        pair = await ask(page, "hello")
        await page.get_by_text("Which is better?").wait_for()
        asked = {r.policy_version: r.completion_id for r in stack.generation.requests}
        assert set(asked) == {0, 3}
        assert await pair.locator(".badge").all_inner_texts() == ["Answer A", "Answer B"]
        await page.get_by_role("button", name="Answer A is better").click()
        await page.get_by_text("The next version learns from it").wait_for()
        names = await pair.locator(".badge").all_inner_texts()
        assert sorted(names) == ["version 0", "version 3"]
        chosen, rejected = (asked[int(name.removeprefix("version "))] for name in names)
        [given] = feedback_of(stack)
        assert given.judgement == Comparison(chosen=chosen, rejected=(rejected,))


async def test_a_new_version_tells_what_it_learned_from_a_thumb(browser: Any, stack: Stack) -> None:
    async with opened(browser, stack) as page:
        await ask(page, "hello")
        await page.get_by_role("button", name="Good answer").click()
        await page.get_by_text("The next version learns from it").wait_for()
        stack.learner.effects = [
            learner_pb2.Effect(
                policy_version=4,
                text="answer",
                completion_id=feedback_of(stack)[0].completion_id,
                tokens=3,
                logprob_before=-3.0,
                logprob_after=-3.0 + math.log(1.3),
            )
        ]
        stack.generation.policy_version = 4
        words = "Version 4 learned from it: this answer is now 1.3 times as likely."
        await page.get_by_text(words).wait_for()
        await page.get_by_role("button", name="Ask again to see the difference").wait_for()
        await page.reload()
        await page.get_by_text(words).wait_for()
        await page.get_by_role("button", name="Good answer").click()
        await page.get_by_text("Taken back").wait_for()
        assert await page.get_by_text(words).count() == 0


async def test_a_new_version_tells_what_it_learned_from_a_comment(
    browser: Any, stack: Stack
) -> None:
    stack.learner.learns_from_comments = True
    async with opened(browser, stack) as page:
        await status_says(page, "5 thumbs waiting")
        answer = await ask(page, "hello")
        await page.keyboard.press("Escape")
        await page.keyboard.press("c")
        box = page.get_by_label("Your comment")
        assert "next version learns from it" in (await box.get_attribute("placeholder"))
        await page.keyboard.type("Too long,")
        await page.keyboard.press("Shift+Enter")
        await page.keyboard.type("no tables.")
        await page.keyboard.press("Enter")
        await answer.get_by_text("Thanks. The next version learns from it.").wait_for()
        [given] = feedback_of(stack)
        assert given.judgement == Comment(text="Too long,\nno tables.")
        stack.learner.effects = [
            learner_pb2.Effect(
                policy_version=4,
                text="answer",
                completion_id=given.completion_id,
                tokens=3,
                logprob_before=-3.0,
                logprob_after=-3.0 + math.log(0.8),
            )
        ]
        stack.generation.policy_version = 4
        words = "Version 4 learned from it: this answer is now 0.8 times as likely."
        await answer.locator(".said").get_by_text(words).wait_for()
        assert await answer.get_by_text("Thanks").count() == 0
        await page.reload()
        await answer.locator(".said").get_by_text(words).wait_for()
        await answer.get_by_role("button", name="Take it back").click()
        await answer.get_by_text("Taken back.").wait_for()
        assert retracted_ids(stack) == [given.feedback_id]
        assert await page.get_by_text(words).count() == 0


@pytest.mark.slow
async def test_a_new_version_is_noticed_and_asked_again(browser: Any, stack: Stack) -> None:
    async with opened(browser, stack) as page:
        stack.generation.pieces = ("a long answer",)
        await ask(page, "hello")
        stack.generation.policy_version = 4
        await page.get_by_text("Version 4 is live").wait_for()
        stack.generation.pieces = ("short",)
        await page.get_by_role("button", name="Ask again to see the difference").click()
        await page.get_by_role("button", name="Answer B is better").wait_for()
        answers = page.locator(".answer")
        assert await answers.locator(".badge").all_inner_texts() == ["version 3", "version 4"]
        assert await answers.locator(".text").all_inner_texts() == ["a long answer", "short"]
        assert await page.get_by_text("Version 4 is live").count() == 0
        await page.get_by_role("button", name="Answer B is better").click()
        await until(page, lambda: len(feedback_of(stack)) == 1)
        old, new = (request.completion_id for request in stack.generation.requests)
        assert feedback_of(stack)[0].judgement == Comparison(chosen=new, rejected=(old,))

        stack.generation.policy_version = 3
        await page.get_by_text("Back on version 3").wait_for()
        await page.get_by_role("button", name="New chat").click()
        await page.get_by_text("Then rate the answer").wait_for()
        assert await page.get_by_text("Back on version 3").count() == 0


@pytest.mark.slow
async def test_stop_with_the_keyboard(browser: Any, stack: Stack) -> None:
    stack.generation.pieces = ("word ",) * 10_000
    stack.generation.delay = 0.02
    async with opened(browser, stack) as page:
        await page.fill("#prompt", "go on forever")
        await page.keyboard.press("Enter")
        await page.get_by_role("button", name="Stop answering").wait_for()
        await page.locator(".answer .text", has_text="word word").wait_for()
        await page.keyboard.press("Escape")
        await stack.generation.cancelled.wait()
        await page.get_by_role("button", name="Send").wait_for()
        await page.get_by_text("Stopped.").wait_for()
        await page.get_by_label("Good answer").click()
        await until(page, lambda: len(feedback_of(stack)) == 1)


@pytest.mark.slow
async def test_errors_are_told_and_can_be_retried(browser: Any, stack: Stack) -> None:
    async with opened(browser, stack, failures=True) as page:
        await status_says(page, "version 3")
        stack.generation.fail = Unavailable("generation is restarting")
        await page.get_by_role("button", name="Tell me a fun fact about honey.").click()
        await page.get_by_role("alert").get_by_text("generation is restarting").wait_for()
        stack.generation.fail = None
        await page.get_by_role("button", name="Try again").click()
        await page.get_by_label("Good answer").wait_for()
        assert await page.locator(".question").count() == 1
        assert await page.get_by_role("alert").count() == 0
        assert len(stack.generation.requests[-1].chat.messages) == 1

        stack.bus.go_down()
        await page.get_by_label("Good answer").click()
        await page.get_by_text("trying again").wait_for()
        stack.bus.come_back()
        await page.get_by_text("The next version learns from it").wait_for()
        assert len(feedback_of(stack)) == 1


@pytest.mark.slow
async def test_the_conversation_survives_a_reload(browser: Any, stack: Stack) -> None:
    async with opened(browser, stack) as page:
        stack.generation.pieces = ("first",)
        answer = await ask(page, "hello")
        await answer.get_by_label("Good answer").click()
        await answer.get_by_text("The next version learns from it").wait_for()
        stack.generation.policy_version = 4
        await page.reload()
        answer = page.locator(".answer")
        assert await answer.locator(".text").inner_text() == "first"
        assert await answer.get_by_label("Good answer").get_attribute("aria-pressed") == "true"
        # What was answered before the reload can be asked again too.
        await page.get_by_role("button", name="Ask again to see the difference").wait_for()
        await answer.get_by_label("Good answer").click()
        await until(page, lambda: len(retracted_ids(stack)) == 1)
        await ask(page, "go on")
        assert texts(stack.generation.requests[-1])[:2] == [
            ("user", "hello"),
            ("assistant", "first"),
        ]


async def test_what_a_model_writes_stays_text(browser: Any, stack: Stack) -> None:
    stack.generation.pieces = (
        "**Bold** <b>not</b> <img src=x onerror=alert(1)> `a < b`\n\n",
        "- one\n- two\n  - inner\n\n3. three\n\n",
        "```html\n<script>alert(1)</script>\n```\n\n",
        "[good](https://example.org/a_b) [bad](javascript:alert(1)) snake_case_name\n\n",
        "| a | b |\n|---|---|\n| 1 | 2 |\n\n> quoted\n\n```\nopen <fence>",
    )
    async with opened(browser, stack) as page:
        answer = await ask(page, "<i>hello</i>")
        text = answer.locator(".text")
        assert await text.locator("b, img, script, i").count() == 0
        assert await page.locator(".question").inner_text() == "<i>hello</i>"
        assert await text.locator("strong").inner_text() == "Bold"
        assert await text.locator("li li").inner_text() == "inner"
        assert await text.locator("ol").get_attribute("start") == "3"
        codes = await text.locator("pre").all_inner_texts()
        assert codes == ["<script>alert(1)</script>", "open <fence>"]
        [link] = await text.locator("a").all()
        assert await link.get_attribute("href") == "https://example.org/a_b"
        assert await link.get_attribute("rel") == "noopener noreferrer nofollow"
        assert "snake_case_name" in await text.inner_text()
        assert await text.locator("td").all_inner_texts() == ["1", "2"]
        assert await text.locator("blockquote").inner_text() == "quoted"


@pytest.mark.slow
async def test_what_is_written_stays_in_place_while_an_answer_grows(
    browser: Any, stack: Stack
) -> None:
    stack.generation.pieces = ("# Title\n\nA *word*.\n\n", "- one\n- two\n\n", *["more "] * 40)
    stack.generation.delay = 0.02
    async with opened(browser, stack) as page:
        await page.fill("#prompt", "hello")
        await page.keyboard.press("Enter")
        await page.locator(".answer .text li").nth(1).wait_for()
        await page.evaluate("kept = [...document.querySelectorAll('.text h2, .text em, .text li')]")
        assert await page.evaluate("document.querySelector('.answer').ariaBusy") == "true"
        await page.get_by_label("Good answer").wait_for()
        assert await page.evaluate("kept.map((node) => node.isConnected)") == [True] * 4
        assert await page.locator(".answer .text > p").nth(1).inner_text() == ("more " * 40).strip()


async def test_a_key_is_asked_for(browser: Any) -> None:
    async with (
        running_gateway(api_key="the key") as stack,
        opened(browser, stack, failures=True) as page,
    ):
        await page.get_by_label("Key", exact=True).fill("the key")
        await page.keyboard.press("Enter")
        await status_says(page, "version 3")
        await ask(page, "hello")
        assert await page.evaluate("localStorage.getItem('tuneloop-key')") is None
        await page.reload()
        await status_says(page, "version 3")


@pytest.mark.slow
async def test_a_key_that_may_only_chat_and_judge(browser: Any, tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    secret, key = new_key("app", [Scope.INFER, Scope.FEEDBACK], Limits())
    file.add(key)
    async with (
        running_gateway(keys_file=file.path) as stack,
        opened(browser, stack, failures=True) as page,
    ):
        await page.get_by_label("Key", exact=True).fill(secret)
        await page.keyboard.press("Enter")
        await status_says(page, "version 3")
        answer = await ask(page, "hello")
        await answer.get_by_label("Good answer").click()
        await answer.get_by_text("The next version learns from it").wait_for()
        assert len(feedback_of(stack)) == 1
        for name in ("Dashboard", "Feedback"):
            await page.get_by_role("link", name=name, exact=True).click()
            await page.get_by_text("needs a key with the admin scope").wait_for()
            await page.keyboard.press("Escape")


async def test_a_thought_is_open_while_the_model_thinks_and_folded_then(
    browser: Any, stack: Stack
) -> None:
    stack.generation.thoughts = tuple(f"step {n} <b>\n" for n in range(60))
    stack.generation.pieces = ("It is ", "42.")
    stack.generation.delay = 0.05
    async with opened(browser, stack) as page:
        await page.fill("#prompt", "think about it")
        await page.keyboard.press("Enter")
        thought = page.locator(".answer .thought")
        await thought.locator("summary", has_text="Thinking …").wait_for()
        await thought.get_by_text("step 0 <b>").wait_for()
        assert await thought.evaluate("node => node.open")
        answer = page.locator(".answer")
        await answer.locator("footer.meta").wait_for()
        assert await thought.locator("summary").inner_text() == "What the model thought"
        assert not await thought.evaluate("node => node.open")
        assert await answer.locator(".text").inner_text() == "It is 42."
        await thought.locator("summary").click()
        await thought.get_by_text("step 59 <b>").wait_for()
        # A better answer replaces what was said, not what was thought.
        await answer.get_by_label("Write a better answer").click()
        box = page.get_by_label("The answer as it should have been")
        assert await box.input_value() == "It is 42."
        await page.reload()
        await page.locator(".answer .thought summary").wait_for()
