"""The function that runs in Open WebUI: it tells the gateway of ratings and of what became of them.

With the rated answer it shows which version learned from the rating, when that is live.

Open WebUI loads the text of this module (`ratings.SOURCE`), so it imports nothing of tuneloop.
"""

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import Annotated, Any

import httpx
from pydantic import BaseModel, Field

HEADER = "x-openwebui-message-id"
"""The connections that send it are those of a tuneloop."""
DAY = 24 * 3600
SHORTEST_WAIT, LONGEST_WAIT = 1.0, 300.0
"""Seconds from a failure to the next try."""
LOOK_SECONDS, FOLLOWED_SECONDS, MOST_FOLLOWED = 5.0, 3600.0, 100
"""How often the gateway is asked what became of ratings, for how long, and of how many, the newest.
"""

logger = logging.getLogger("tuneloop")


class Event:
    """Sends ratings one after another, and again until they arrive. It runs in Open WebUI."""

    class Valves(BaseModel):
        """Settings, in Open WebUI's page of functions."""

        days: Annotated[
            int, Field(ge=0, description="ratings of so many days are sent again at each start")
        ] = 30

    def __init__(self) -> None:
        self.valves = self.Valves()
        self.waiting: dict[str, str] = {}
        """Ids of ratings, or of users whose ratings were all deleted, and which of both."""
        self.sending: asyncio.Task[None] | None = None
        self.look_seconds = LOOK_SECONDS
        self.followed: dict[str, Followed] = {}
        """Ratings that no version is known to have learned from, by their ids."""
        self.told: deque[str] = deque(maxlen=1000)
        """Receipts whose version was told."""
        self.following: asyncio.Task[None] | None = None

    async def event(self, event: dict[str, Any], __id__: str = "") -> None:
        """Take note of a rating; of all recent ones when Open WebUI or this function starts."""
        name, subject = event["event"], event.get("subject") or {}
        enabled = name == "function.enabled" and subject.get("id") == __id__
        if enabled or name == "system.startup.completed":
            self.waiting |= dict.fromkeys(await recent_ratings(self.valves.days), "old rating")
        elif name == "feedback.deleted_all":
            of_user = subject.get("type") == "user"
            self.waiting[subject["id"] if of_user else ""] = "user"
        elif name.startswith("feedback."):
            self.waiting[subject["id"]] = "rating"
        if self.waiting and (self.sending is None or self.sending.done()):
            self.sending = asyncio.create_task(self.send_waiting())

    async def send_waiting(self) -> None:
        """Send what waits, in order; wait longer after each failure."""
        pause = SHORTEST_WAIT
        while self.waiting:
            about, what = next(iter(self.waiting.items()))
            del self.waiting[about]
            try:
                if what == "user":
                    await send_deletion(about)
                else:
                    found = await send_rating(about)
                    self.follow(about, found if what == "rating" else None)
                pause = SHORTEST_WAIT
            except Exception as error:  # whatever it is, the rating must not be lost
                logger.warning("tuneloop: %s %s waits: %r", what, about, error)
                self.waiting.setdefault(about, what)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_WAIT)

    def follow(self, rating_id: str, found: "Followed | None") -> None:
        """Follow a rating in the place of what it said before; None ends that."""
        self.followed.pop(rating_id, None)
        if found is None or found.receipt in self.told:
            return
        self.followed[rating_id] = found
        if len(self.followed) > MOST_FOLLOWED:
            del self.followed[next(iter(self.followed))]
        if self.following is None or self.following.done():
            self.following = asyncio.create_task(self.tell_versions())

    async def tell_versions(self) -> None:
        """Tell which versions learned from ratings, as they become live."""
        pause = self.look_seconds
        while self.followed:
            await asyncio.sleep(pause)
            pause = self.look_seconds
            for rating_id, found in list(self.followed.items()):
                if self.followed.get(rating_id) is not found:
                    continue
                try:
                    ended = await tell_version(found)
                except Exception as error:  # whatever it is, the others are to be told too
                    logger.warning("tuneloop: what became of %s is not known: %r", rating_id, error)
                    ended, pause = False, LONGEST_WAIT
                if ended:
                    self.told.append(found.receipt)
                late = time.time() > found.since + FOLLOWED_SECONDS
                if (ended or late) and self.followed.get(rating_id) is found:
                    del self.followed[rating_id]


@dataclass(frozen=True)
class Followed:
    """A rating that a version may learn from, and whose answer it is about."""

    receipt: str
    url: str
    """Of the gateway that has it."""
    authorization: dict[str, str]
    answer: dict[str, Any]
    """`user_id`, `chat_id` and `message_id`."""
    since: float
    """Unix seconds."""


async def tell_version(found: Followed) -> bool:
    """Tell that a version is live that learned from a rating; True once nothing is left to tell."""
    from open_webui.socket.main import get_event_emitter

    async with httpx.AsyncClient(timeout=30.0, headers=found.authorization) as client:
        answer = await client.get(f"{found.url}/receipts/{found.receipt}")
    if answer.status_code == 404:
        return True
    answer.raise_for_status()
    reach = answer.json()
    if reach["status"] != "accepted":
        return True
    if not reach["is_serving"]:
        return False
    words = (
        f"Version {reach['serving_version']} is live. It learned from the rating of this answer."
    )
    emit = await get_event_emitter(found.answer)
    await emit({"type": "status", "data": {"description": words, "done": True}})
    return True


async def recent_ratings(days: int) -> list[str]:
    """Return the ids of the ratings that changed in the last days, oldest first."""
    from open_webui.models.feedbacks import Feedbacks

    since = time.time() - days * DAY
    rows = await Feedbacks.get_all_feedback_ids()
    return [row.id for row in reversed(rows) if row.updated_at >= since]


async def send_rating(rating_id: str) -> Followed | None:
    """Send a rating as it is stored now; return what to follow, if it says anything."""
    from open_webui.models.feedbacks import Feedbacks

    row = await Feedbacks.get_feedback_by_id(rating_id)
    body: dict[str, Any] = {"id": rating_id}
    if row is not None:
        body["feedback"] = row.model_dump(include={"type", "user_id", "data", "meta", "created_at"})
        body |= await of_chat(row.meta or {})
    answers = await call_gateways("POST", json=body)
    meta = {} if row is None else row.meta or {}
    for url, authorization, answer in answers:
        if row is not None and answer.get("receipt"):
            return Followed(
                receipt=answer["receipt"],
                url=url,
                authorization=authorization,
                answer={
                    "user_id": row.user_id,
                    "chat_id": meta.get("chat_id"),
                    "message_id": meta.get("message_id"),
                },
                since=time.time(),
            )
    return None


async def of_chat(meta: dict[str, Any]) -> dict[str, Any]:
    """Return what the chat says of the rated message: who asked, its tools, its siblings."""
    from open_webui.models.chats import Chats

    chat = await Chats.get_chat_by_id(meta["chat_id"]) if meta.get("chat_id") else None
    history = chat.chat.get("history") if chat is not None else None
    messages = (history or {}).get("messages") or {}
    rated = messages.get(meta.get("message_id"))
    if chat is None or rated is None:
        return {}
    question = messages.get(rated.get("parentId"), {})
    siblings = [
        {
            "message_id": child,
            "model_id": messages[child].get("selectedModelId") or messages[child].get("model", ""),
            "results": results_in(messages[child]),
        }
        for child in question.get("childrenIds", [])
        if child != meta["message_id"] and child in messages and not is_liked(messages[child])
    ]
    return {
        # Others may write in a shared chat.
        "asked_by": question.get("user_id") or chat.user_id,
        "results": results_in(rated),
        "siblings": siblings[:63],
    }


def results_in(message: dict[str, Any]) -> int:
    """Return how many results of tools are in an answer."""
    items = message.get("output") or []
    return sum(item.get("type") == "function_call_output" for item in items)


def is_liked(message: dict[str, Any]) -> bool:
    return str((message.get("annotation") or {}).get("rating")) == "1"


async def send_deletion(user_id: str) -> None:
    """Tell that all ratings were deleted: a user's, or everybody's if it is empty."""
    await call_gateways("DELETE", params={"user_id": user_id} if user_id else {})


async def call_gateways(method: str, **what: Any) -> list[tuple[str, dict[str, str], Any]]:
    """Call the gateway of each connection that sends ids of messages.

    Returns the URL, the authorization and the answer of each that took it. Raises
    `httpx.HTTPError` if a later try may succeed; what is refused for good is logged.
    """
    from open_webui.routers.openai import get_openai_runtime_config

    _, urls, keys, configs = await get_openai_runtime_config()
    taken = []
    for index, url in enumerate(urls):
        config = configs.get(str(index), configs.get(url, {}))
        headers = {name.lower() for name in config.get("headers") or {}}
        if HEADER not in headers or not config.get("enable", True):
            continue
        key = keys[index] if index < len(keys) else ""
        authorization = {"authorization": f"Bearer {key}"} if key else {}
        async with httpx.AsyncClient(timeout=30.0, headers=authorization) as client:
            base = url.rstrip("/")
            answer = await client.request(method, f"{base}/open_webui/feedback", **what)
        if answer.status_code in (409, 429) or answer.status_code >= 500:
            answer.raise_for_status()
        elif answer.is_error:
            logger.error("tuneloop refused a rating: %s %s", answer.status_code, answer.text[:500])
        else:
            taken.append((base, authorization, answer.json()))
    return taken
