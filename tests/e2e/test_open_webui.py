"""The real Open WebUI in front of a whole service: what its users do reaches the learner."""

import json
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support import open_webui
from support.browser_page import CHROMIUM, FLAGS
from support.e2e_client import ServeTiny, User, wait_until
from support.open_webui import WebUser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        sys.version_info[:2] not in open_webui.PYTHONS,
        reason="Open WebUI needs Python 3.11 or 3.12",
    ),
]


@pytest.fixture(scope="module")
def user(serve_tiny: ServeTiny) -> Iterator[User]:
    environment = {
        "TUNELOOP_GATEWAY_OPEN_WEBUI": '["local"]',
        "TUNELOOP_LEARNER_RELEASE": "off",
        "TUNELOOP_LEARNER_BATCH_SIZE": "2",
        "TUNELOOP_LEARNER_BATCH_WAIT_SECONDS": "0.5",
        "TUNELOOP_LEARNER_PUBLISH_EVERY_STEPS": "1",
        "TUNELOOP_LEARNER_PUBLISH_EVERY_SECONDS": "0",
    }
    with serve_tiny("open-webui", environment) as user:
        wait_until(lambda: user.get("/v1/learner"), "the learner answers")
        yield user


@pytest.fixture(scope="module")
def admin(user: User, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUser]:
    with open_webui.running(tmp_path_factory.mktemp("open-webui")) as webui:
        admin = webui.sign_up("admin")
        open_webui.connect(admin, user.service.url)
        yield admin


@pytest.fixture(scope="module")
def ann(admin: WebUser) -> WebUser:
    return open_webui.add_user(admin, "ann")


def feedback(user: User, kind: str) -> list[dict[str, Any]]:
    """What the ledger has of a kind, newest first."""
    return list(user.get(f"/v1/feedback?kind={kind}")["data"])


def rollouts(user: User) -> list[str]:
    text = httpx.get(f"{user.service.url}/v1/export?kind=rollouts", timeout=30).text
    return [json.loads(line)["completion_id"] for line in text.splitlines()]


def test_a_thumb_and_a_comment_arrive_and_are_retracted(user: User, ann: WebUser) -> None:
    about = ann.chat("What is a loop?")
    rating = ann.call("POST", "/api/v1/evaluations/feedback", ann.rating(about, rating=1))
    wait_until(lambda: bool(feedback(user, "thumb")), "the thumb arrives")
    (thumb,) = feedback(user, "thumb")
    assert (thumb["value"], thumb["status"]) == ("up", "accepted")
    wait_until(lambda: thumb["completion_id"] in rollouts(user), "its answer is known")
    (thumb,) = feedback(user, "thumb")
    assert thumb["prompt"][-1]["content"] == "What is a loop?"
    of_user = user.get(f"/v1/lineage/users/{ann.id}")
    assert (of_user["rollouts"], of_user["feedback"]) == (1, 1)

    said = ann.rating(about, rating=1, reason="too_verbose", comment="no tables")
    ann.call("POST", f"/api/v1/evaluations/feedback/{rating['id']}", said)
    wait_until(lambda: bool(feedback(user, "comment")), "the comment arrives")
    assert feedback(user, "comment")[0]["text"] == "too verbose: no tables"
    assert len(feedback(user, "thumb")) == 1

    ann.call("DELETE", f"/api/v1/evaluations/feedback/{rating['id']}")
    for kind in ("thumb", "comment"):
        wait_until(lambda kind=kind: feedback(user, kind)[0]["status"] == "retracted", f"no {kind}")


def test_thumbs_reach_a_version(user: User, ann: WebUser) -> None:
    for number, thumb in enumerate((1, -1)):
        about = ann.chat(f"Tell me story {number}.")
        ann.call("POST", "/api/v1/evaluations/feedback", ann.rating(about, rating=thumb))

    def versions(thumb: dict[str, Any]) -> list[int]:
        return list(user.get(f"/v1/lineage/feedback/{thumb['id']}")["policy"]["direct"])

    def thumbs() -> list[dict[str, Any]]:
        return [f for f in feedback(user, "thumb") if f["status"] == "accepted"]

    wait_until(lambda: len(thumbs()) == 2, "both arrive")
    wait_until(lambda: all(versions(thumb) for thumb in thumbs()), "both are in a version")
    newest = max(version for thumb in thumbs() for version in versions(thumb))
    wait_until(lambda: user.serving_version() >= newest, "the version is live")


def test_side_tasks_are_not_trained_on(user: User, ann: WebUser) -> None:
    def known() -> int:
        return int(user.get(f"/v1/lineage/users/{ann.id}")["rollouts"])

    before = known()
    about = ann.chat("How do I sharpen a knife?")
    wait_until(lambda: known() == before + 1, "the answer is known")
    body = {
        "model": "tuneloop",
        "chat_id": about["chat_id"],
        "messages": [{"role": "user", "content": "How do I sharpen a knife?"}],
    }
    for task in ("title", "tags", "follow_up"):
        done = ann.call("POST", f"/api/v1/tasks/{task}/completions", body)
        assert done["choices"][0]["completion_id"]
    rating = ann.rating(ann.chat("And scissors?"), rating=-1)
    ann.call("POST", "/api/v1/evaluations/feedback", rating)
    wait_until(
        lambda: (
            [m["content"] for m in feedback(user, "thumb")[0]["prompt"] or []][-1:]
            == ["And scissors?"]
        ),
        "the last is known",
    )
    assert known() == before + 2


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
def test_a_thumb_pressed_on_its_page(user: User, ann: WebUser, admin: WebUser) -> None:
    from playwright.sync_api import sync_playwright

    before = len(feedback(user, "thumb"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = open_page(browser, ann)
        page.locator("#chat-input").click()
        page.keyboard.type("What floats on water?")
        page.keyboard.press("Enter")
        page.get_by_label("Good Response").click()
        wait_until(lambda: len(feedback(user, "thumb")) == before + 1, "the thumb arrives")
        live = page.get_by_text(re.compile(r"Version \d+ is live. It learned from the rating"))
        live.wait_for()
        if folder := os.environ.get("SCREENSHOTS"):
            page.screenshot(path=f"{folder}/open-webui.png")
        told = live.inner_text()
        up = feedback(user, "thumb")[0]
        learned = user.get(f"/v1/lineage/feedback/{up['id']}")["policy"]
        assert int(told.split()[1]) in (*learned["direct"], *learned["descended"])
        page.get_by_label("Bad Response").click()
        wait_until(lambda: len(feedback(user, "thumb")) == before + 2, "the other arrives")
        page.reload()
        page.get_by_text(told).wait_for()

        # Its users cannot take a rating back, administrators can.
        page = open_page(browser, admin, "/admin")
        page.get_by_role("button", name="Okay, Let's Go!").click()
        page.get_by_role("link", name="Evaluations").click()
        page.get_by_role("link", name="Feedback").click()
        page.get_by_role("row", name="tuneloop").first.get_by_label("More").click()
        page.get_by_text("Delete", exact=True).click()
        page.get_by_text("Feedback deleted successfully").wait_for()
        browser.close()
    down, up = feedback(user, "thumb")[:2]
    assert (down["value"], up["value"]) == ("down", "up")
    assert down["completion_id"] == up["completion_id"]
    assert down["prompt"][-1]["content"] == "What floats on water?"
    wait_until(
        lambda: [f["status"] for f in feedback(user, "thumb")[:2]] == ["retracted"] * 2,
        "both are retracted",
    )


def open_page(browser: Any, user: WebUser, path: str = "/") -> Any:
    """Its page, for one who is signed in, in a context of its own."""
    page = browser.new_context().new_page()
    page.set_default_timeout(60_000)
    page.add_init_script(f"localStorage.token = {json.dumps(user.token)}")
    page.goto(f"{user.url}{path}")
    return page
